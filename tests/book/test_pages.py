# SPDX-License-Identifier: Apache-2.0
"""Every page of the built book: it exists, can be read without a network, and by who cannot see its figures."""

import itertools
import re
from pathlib import Path

import accessible
import claims_ledger
import pytest
import yaml
from bs4 import BeautifulSoup

ROOT = Path(__file__).parents[2]
TOC = yaml.safe_load((ROOT / "_toc.yml").read_text())
PAGES = [TOC["root"], *(chapter["file"] for part in TOC["parts"] for chapter in part["chapters"])]
ALT_LETTERS = 20


def read(site: Path, name: str) -> BeautifulSoup:
    return BeautifulSoup((site / f"{name}.html").read_text(encoding="utf-8"), "html.parser")


@pytest.fixture(params=PAGES)
def name(request) -> str:
    return request.param


@pytest.fixture
def page(site, name) -> BeautifulSoup:
    return read(site, name)


@pytest.fixture
def article(page) -> BeautifulSoup:
    return page.select_one("article")


def test_the_opening_page_is_where_a_browser_looks_for_it(site):
    assert f"url={TOC['root']}.html" in (site / "index.html").read_text()


def test_a_page_has_the_title_of_its_source(article, name):
    chapter = name.startswith("notebooks/")
    source = ROOT / f"{name}.{'py' if chapter else 'md'}"
    title = re.search(
        r"^# # (.+)$" if chapter else r"^# (.+)$", source.read_text(encoding="utf-8"), flags=re.MULTILINE
    )[1]
    heading = article.select_one("h1")
    heading.select_one("a.headerlink").extract()
    assert heading.get_text(strip=True) == title.strip()


def test_a_page_names_its_language(page):
    assert page.html["lang"] == "en"


def test_headings_go_down_one_level_at_a_time(article):
    levels = [int(heading.name[1]) for heading in article.select("h1, h2, h3, h4, h5, h6")]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(below - above <= 1 for above, below in itertools.pairwise(levels))


def test_every_image_is_described(article):
    poor = [
        image["src"]
        for image in article.select("img")
        if len(image.get("alt", "")) < ALT_LETTERS or image["alt"].endswith((".png", ".svg"))
    ]
    assert not poor


def test_every_image_is_there(article, site, name):
    for image in article.select("img"):
        assert (site / name).parent.joinpath(image["src"]).exists(), image["src"]


def test_every_table_has_a_head(article):
    headless = [str(table)[:200] for table in article.select("table") if not table.select("th")]
    assert not headless


def test_toggles_are_named_by_what_they_hold(article):
    for toggle in article.select("details.hide > summary"):
        assert "aria-label" not in toggle.attrs  # it would hide the words
        shown, hidden = (part.get_text() for part in toggle.select("p"))
        kinds = (accessible.SETTING_UP, accessible.PLOTTING, accessible.CODE, accessible.OUTPUT, accessible.SOLUTION)
        assert (shown, hidden) in [(f"Show the {kind}", f"Hide the {kind}") for kind in kinds]
        assert (accessible.SOLUTION in shown) == bool(toggle.find_parent(class_="tag_solution"))


def test_nothing_is_left_of_what_a_screen_reader_stumbles_on(page):
    assert not page.select('[role="doc-biblioentry"], .citation-list[role], .search-button-field[aria-label]')
    assert len(page.select('#pst-primary-sidebar[role="complementary"]')) == 1


def test_the_index_of_terms_can_be_reached(site):
    links = [link["href"] for link in read(site, "book/glossary").select("article a[href]")]
    assert "../genindex.html" in links


def test_every_paper_has_a_link(site):
    entries = read(site, "book/references").select("div.citation")
    assert entries
    assert all(entry.select('a[href^="http"]') for entry in entries)


def test_nothing_that_a_page_loads_comes_from_a_network(page):
    loaded = [tag["src"] for tag in page.select("script[src], img[src], iframe[src]")]
    loaded += [tag["href"] for tag in page.select("link[rel=stylesheet], link[rel=preload], link[rel=icon]")]
    assert not [address for address in loaded if re.match(r"(https?:)?//", address)]
    written = [script.get_text() for script in page.select("script:not([src])")]
    assert not [text for text in written if "https://" in text]  # a script that could load another


def test_no_style_fetches_a_font_or_another_style(site):
    fetch = re.compile(r"(@import\s+|url\()\s*['\"]?(https?:)?//")
    assert not [sheet.name for sheet in site.rglob("*.css") if fetch.search(sheet.read_text(encoding="utf-8"))]


def test_formulas_are_drawn_by_a_script_on_the_disk(page, site, name):
    for script in page.select('script[src*="mathjax"]'):
        assert (site / name).parent.joinpath(script["src"].split("?")[0]).resolve().exists()
    if page.select(".math"):
        assert len(page.select('script[src*="tex-svg-full"]')) == 1


def test_links_within_the_book_lead_somewhere(article, site, name):
    here = site / f"{name}.html"
    for link in article.select("a[href]"):
        if re.match(r"[a-z]+:", link["href"]):
            continue
        path, _, anchor = link["href"].partition("#")
        target = (here.parent / path).resolve() if path else here
        assert target.exists(), link["href"]
        if anchor and target.suffix == ".html":
            assert f'id="{anchor}"' in target.read_text(encoding="utf-8"), link["href"]


def test_our_own_colours_of_text_are_those_of_the_theme():
    css = (ROOT / "book" / "_static" / "book.css").read_text()
    colours = re.findall(r"(?<![-\w])color:\s*([^;]+);", css)
    assert colours
    assert all(colour.startswith("var(--pst-color-text") for colour in colours)  # the theme keeps 4.5 to 1


def test_figures_drawn_by_hand_have_a_white_face():
    for drawing in (ROOT / "book" / "figures").glob("*.svg"):
        assert 'fill="#ffffff"' in drawing.read_text(), drawing.name


def test_the_ledger_has_every_claim(site):
    ids = {
        record.id
        for notebook in (ROOT / "notebooks").glob("*.ipynb")
        for record in claims_ledger.read_records(notebook)
    }
    shown = [card.select_one("a").get_text() for card in read(site, "book/ledger").select(".claim-card")]
    assert sorted(shown) == sorted(ids)
