# SPDX-License-Identifier: Apache-2.0
"""What a chapter needs, looks like and where it stands in the book: all of it follows the menu."""

import io
import json
import re
from pathlib import Path

import chapters
import numpy as np
import pytest
import yaml
from bs4 import BeautifulSoup
from PIL import Image

from recipes_lib.recipes import MENU

ROOT = Path(__file__).parents[2]
TOC = yaml.safe_load((ROOT / "_toc.yml").read_text())
ORDER = [
    chapter["file"].removeprefix("notebooks/")
    for part in TOC["parts"]
    for chapter in part["chapters"]
    if chapter["file"].startswith("notebooks/")
]


def read(site: Path, name: str) -> BeautifulSoup:
    return BeautifulSoup((site / f"{name}.html").read_text(encoding="utf-8"), "html.parser")


def test_the_book_has_the_chapters_of_the_menu_in_its_order():
    assert list(MENU) == ORDER


def test_no_chapter_stands_before_one_that_it_needs():
    early = [(name, need) for name in ORDER for need in MENU[name].needs if need not in ORDER[: ORDER.index(name)]]
    assert early == []


def test_a_chapters_heading_is_its_title_in_the_menu():
    headings = {
        name: re.search(r"^# # (.+)$", (ROOT / f"notebooks/{name}.py").read_text(encoding="utf-8"), re.MULTILINE)[1]
        for name in MENU
    }
    assert headings == {name: entry.title for name, entry in MENU.items()}


def test_the_map_has_a_linked_box_per_chapter_and_an_arrow_per_need(site):
    drawing = read(site, "book/index").select_one("figure.chapter-map svg")
    boxes = {link["href"]: link.select_one("text").get_text() for link in drawing.select("a")}
    assert boxes == {f"../notebooks/{name}.html": entry.title for name, entry in MENU.items()}
    assert len(drawing.select("path.need")) == sum(len(entry.needs) for entry in MENU.values())


def test_boxes_of_the_map_do_not_overlap_and_stand_right_of_what_they_need():
    at = chapters.places()
    wide, high = chapters.BOX
    for name, (x, y) in at.items():
        assert all(at[need][0] + wide < x for need in MENU[name].needs)
        assert len(MENU[name].title) * 8 + 12 <= wide  # a letter of 15 units is 8 wide on average
        assert not [other for other, (u, v) in at.items() if other != name and abs(u - x) < wide and abs(v - y) < high]


def test_cards_have_title_thumbnail_time_claims_and_what_to_read_first(site):
    cards = {
        card.select_one("a.sd-stretched-link")["href"]: card for card in read(site, "book/index").select("div.sd-card")
    }
    for name, entry in MENU.items():
        card = cards[f"../notebooks/{name}.html"]
        assert card.select_one(".sd-card-title").get_text(strip=True) == entry.title
        assert card.select_one("img.thumbnail")["src"] == f"../_images/thumbnail-{name}.png"
        foot = card.select_one(".sd-card-footer")
        assert f"about {entry.seconds} s" in foot.get_text()
        needed = [link["href"] for link in foot.select("a")]
        assert needed == [f"../notebooks/{need}.html" for need in entry.needs]


def test_thumbnails_are_small_files(site):
    for name in MENU:
        assert 1_000 < (site / "_images" / f"thumbnail-{name}.png").stat().st_size <= chapters.THUMBNAIL_BYTES


def test_a_thumbnail_keeps_the_figures_proportions_on_white():
    figure = io.BytesIO()
    Image.new("RGB", (300, 300), "red").save(figure, "PNG")
    small = np.asarray(Image.open(io.BytesIO(chapters.thumbnail(figure.getvalue()))).convert("RGB"))
    assert small.shape == (*chapters.THUMBNAIL[::-1], 3)
    red = (small == [255, 0, 0]).all(axis=2)
    assert red.any(axis=1).sum() == red.any(axis=0).sum() == chapters.THUMBNAIL[1]
    assert (small[~red] == 255).all()


def test_a_notebook_without_a_figure_is_named(tmp_path):
    (tmp_path / "soup.ipynb").write_text(json.dumps({"cells": []}))
    with pytest.raises(ValueError, match=r"soup\.ipynb has no figure"):
        chapters.first_figure(tmp_path / "soup.ipynb")
