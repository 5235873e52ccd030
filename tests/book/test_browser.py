# SPDX-License-Identifier: Apache-2.0
"""The built pages in a real browser, from the disk and with no network. Skipped where no Chromium is installed.

The variable COOKBOOK_AXE names the file ``axe.min.js`` of the npm package axe-core; with it, each page is held to axe's rules.
"""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from bs4 import BeautifulSoup
from PIL import Image

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
SECONDS = 90
PAGES = (
    "book/index",
    "notebooks/msn",
    "notebooks/paws",
    "notebooks/pmsn",
    "notebooks/local_sgd",
    "notebooks/switchback",
    "notebooks/imagenet_x",
    "notebooks/clip",
    "notebooks/sieve",
    "book/ledger",
)

MORE_PAGES = (
    "book/start",
    "book/pantry",
    "book/notation",
    "book/glossary",
    "book/provenance",
    "book/add_a_recipe",
    "book/references",
    "genindex",
    "search",
)

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium: the pages are not opened in a browser")


def browse(address: str, profile: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """Opens ``address`` without a window; every host name leads nowhere. A browser that hangs gets a second chance."""
    command = [
        BROWSER,
        "--headless",
        "--no-sandbox",  # containers seldom allow one; the pages are our own
        "--disable-gpu",
        "--hide-scrollbars",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        "--virtual-time-budget=10000",  # the page's clock, not ours
        "--enable-logging=stderr",
        *flags,
    ]
    try:
        return subprocess.run(
            [*command, f"--user-data-dir={profile}", address], capture_output=True, text=True, timeout=SECONDS
        )
    except subprocess.TimeoutExpired:  # seen where ten processes share two cores
        return subprocess.run(
            [*command, f"--user-data-dir={profile}-again", address], capture_output=True, text=True, timeout=3 * SECONDS
        )


@pytest.fixture(params=PAGES)
def address(request, site) -> str:
    return f"{site.resolve().as_uri()}/{request.param}.html"


def ask(site: Path, page: str, script: str, profile: Path, *flags: str) -> object:
    """What ``script`` (the body of an async function) returns on a page that has been loaded and drawn."""
    asked = f"""<script>addEventListener("load", () => setTimeout(async () => {{
        document.body.dataset.answer = JSON.stringify(await (async () => {{ {script} }})());
    }}, 3000));</script>"""
    source = site / f"{page}.html"
    copy = source.with_name(f"{source.stem}-{profile.name}.html")  # beside the page, for its relative links
    try:
        copy.write_text(source.read_text(encoding="utf-8").replace("</body>", f"{asked}</body>"), encoding="utf-8")
        done = browse(copy.resolve().as_uri(), profile, "--dump-dom", "--force-prefers-reduced-motion", *flags)
    finally:
        copy.unlink(missing_ok=True)
    return json.loads(BeautifulSoup(done.stdout, "html.parser").body["data-answer"])


CUT = """
const cut = [];
for (const part of document.querySelectorAll("article .highlight pre, article .cell_output pre, article div.math")) {
  if (part.offsetParent && part.scrollWidth > part.clientWidth + 1) cut.push(part.id || part.textContent.slice(0, 60));
}
return cut;
"""


@pytest.mark.parametrize("page", PAGES)
def test_no_code_output_or_formula_is_cut_at_1280_pixels(page, site, tmp_path):
    assert ask(site, page, CUT, tmp_path, "--window-size=1280,1000") == []


@pytest.mark.skipif("COOKBOOK_AXE" not in os.environ, reason="COOKBOOK_AXE does not name axe-core's file")
@pytest.mark.parametrize("mode", ["light", "dark"])
@pytest.mark.parametrize("page", [*PAGES, *MORE_PAGES])
def test_axe_finds_nothing(page, mode, site, tmp_path):
    axe = Path(os.environ["COOKBOOK_AXE"]).resolve().as_uri()
    script = f"""
    await new Promise(done => {{
      const tag = Object.assign(document.createElement("script"), {{src: "{axe}", onload: done}});
      document.body.append(tag);
    }});
    const found = await axe.run();
    return found.violations.map(rule => [rule.id, rule.impact, rule.nodes.map(node => node.html)]);
    """
    dark = ("--force-dark-mode",) if mode == "dark" else ()
    assert ask(site, page, script, tmp_path, "--window-size=1280,1000", *dark) == []


def test_a_page_draws_its_formulas_and_logs_no_fault(address, tmp_path):
    done = browse(address, tmp_path, "--dump-dom")
    messages = re.findall(r":CONSOLE.*", done.stderr)
    assert not [line for line in messages if re.search(r"Uncaught|[Ee]rror|[Ff]ailed|net::|blocked|[Ii]nvalid", line)]
    page = BeautifulSoup(done.stdout, "html.parser")
    formulas = page.select("article .math")
    assert all(formula.select("mjx-container svg") for formula in formulas)
    assert all(formula.select("mjx-assistive-mml math") for formula in formulas)
    assert not page.select("mjx-merror, [data-mjx-error]")


def test_a_page_is_light_by_day_and_dark_by_night(address, tmp_path):
    brightness = {}
    for mode, flags in {"light": (), "dark": ("--force-dark-mode",)}.items():
        picture = tmp_path / f"{mode}.png"
        browse(address, tmp_path / mode, "--window-size=1200,1000", f"--screenshot={picture}", *flags)
        pixels = np.asarray(Image.open(picture).convert("L"), dtype=float)
        assert pixels.std() > 10  # not blank
        brightness[mode] = np.median(pixels)
    assert brightness["light"] > 200
    assert brightness["dark"] < 60


def test_the_search_finds_a_word_once_a_page_and_without_a_fault(site, tmp_path):
    done = browse(f"{site.resolve().as_uri()}/search.html?q=temperature", tmp_path, "--dump-dom")
    assert not re.findall(r":CONSOLE.*(?:Uncaught|[Ee]rror|[Ff]ailed|blocked).*", done.stderr)
    links = BeautifulSoup(done.stdout, "html.parser").select("#search-results li a")
    found = [link.get_text() for link in links]
    assert "Notation" in found
    assert found.count("Glossary") == 1
    assert next(link["href"] for link in links if link.get_text() == "Glossary").endswith("#term-temperature")
