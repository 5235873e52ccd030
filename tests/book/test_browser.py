# SPDX-License-Identifier: Apache-2.0
"""The built pages in a real browser, from the disk and with no network. Skipped where no Chromium is installed."""

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


def test_a_page_draws_its_formulas_and_logs_no_fault(address, tmp_path):
    done = browse(address, tmp_path, "--dump-dom")
    messages = re.findall(r":CONSOLE.*", done.stderr)
    assert not [line for line in messages if re.search(r"Uncaught|[Ee]rror|[Ff]ailed|net::|blocked", line)]
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


def test_the_search_finds_a_word(site, tmp_path):
    done = browse(f"{site.resolve().as_uri()}/search.html?q=temperature", tmp_path, "--dump-dom")
    found = [link.get_text() for link in BeautifulSoup(done.stdout, "html.parser").select("#search-results li a")]
    assert "Notation" in found
