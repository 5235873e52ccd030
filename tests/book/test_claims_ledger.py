# SPDX-License-Identifier: Apache-2.0
"""The ledger on notebooks of the tests' own, then on the book's."""

import importlib
import json
from pathlib import Path

import claims_ledger
import pytest
from bs4 import BeautifulSoup
from sphinx.testing.util import SphinxTestApp

ROOT = Path(__file__).parents[2]
RECORD = {
    "id": "soup.warm",
    "version": 1,
    "statement": "the soup is warmer than the bowl",
    "metric": "temperature in degrees",
    "better": "higher",
    "margin": 5.0,
    "seeds": [0, 1, 2],
    "ours": [60.0, 62.0, 64.0],
    "control": [20.0, 20.0, 20.0],
    "control_arm": "the empty bowl",
    "control_tuning": "both were heated by three runs on pilot seeds",
    "paper": {"value": 61.5, "control": 20.5, "where": "Table 2", "read": "full text"},
    "verdict": "holds",
    "setting": "at toy scale",
    "unit": "seed",
    "seconds": 41,
    "full_scale": "recipes run soup --preset pot",
    "full_scale_control": "recipes run soup --preset bowl",
}


def write_notebook(path: Path, *records: dict) -> None:
    outputs = [
        {"output_type": "display_data", "data": {"text/plain": "claim"}, "metadata": {"recipes_claim": record}}
        for record in records
    ]
    title = {"id": "title", "cell_type": "markdown", "metadata": {}, "source": "# Soup"}
    code = {
        "id": "code",
        "cell_type": "code",
        "metadata": {},
        "source": 'notebook.start("soup")',
        "execution_count": 1,
        "outputs": outputs,
    }
    metadata = {
        "recipes": {"seconds": 977},
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
    }
    notebook = {"cells": [title, code], "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    path.write_text(json.dumps(notebook))


@pytest.fixture
def build(tmp_path, monkeypatch):
    """Builds a book of one page and one chapter; returns the page and the warnings."""

    def _build(page: str, *records: dict, claims: tuple[str, ...] = ("soup.warm",)) -> tuple[BeautifulSoup, str]:
        (tmp_path / "notebooks").mkdir()
        write_notebook(tmp_path / "notebooks" / "soup.ipynb", *records)
        (tmp_path / "index.md").write_text(f"# Book\n\n{page}\n\n```{{toctree}}\nnotebooks/soup\n```\n")
        (tmp_path / "conf.py").write_text("extensions = ['myst_nb', 'claims_ledger']\nnb_execution_mode = 'off'\n")
        monkeypatch.setattr(claims_ledger, "declared_ids", lambda chapter: list(claims))
        monkeypatch.setattr(claims_ledger, "header_seconds", lambda notebook: 41)
        app = SphinxTestApp(srcdir=tmp_path, builddir=tmp_path / "_build")
        app.build()
        text, warnings = (tmp_path / "_build" / "html" / "index.html").read_text(), app.warning.getvalue()
        app.cleanup()
        return BeautifulSoup(text, "html.parser"), warnings

    return _build


def test_the_ledger_shows_what_the_record_says(build):
    page, warnings = build("```{ledger}\n```", RECORD)
    assert warnings == ""
    rows = page.select("table.claims tbody tr")
    text = rows[0].get_text(" ", strip=True)
    for part in (
        "soup.warm",
        "warmer than the bowl",
        "counts when higher, by at least 5",
        "61.5, control 20.5; Table 2 (full text)",
        "62 ± 2 (3 seeds)",
        "20 ± 0 (3 seeds)",
        "41 s",
    ):
        assert part in text
    ours, control = "recipes run soup --preset pot", "recipes run soup --preset bowl"
    tuning = "Tuning : both were heated by three runs on pilot seeds"
    assert rows[1].get_text(" ", strip=True) == f"{tuning} At full scale (not run) : {ours} Its control : {control}"
    assert rows[0].select_one("a")["href"] == "notebooks/soup.html"
    assert [cell.get_text(strip=True) for cell in page.select("table.claims thead th")] == list(claims_ledger.HEADINGS)


def test_an_untested_claim_says_why(build):
    record = {
        **RECORD,
        "ours": [],
        "control": [],
        "verdict": "not testable",
        "reason": "it needs a big pot",
    }
    page, _ = build("```{ledger}\n```", record)
    assert "it needs a big pot" in page.select_one("table.claims").get_text()
    assert "nan" not in page.select_one("table.claims").get_text()


def test_a_ledger_of_one_verdict_leaves_the_others_out(build):
    fails = {**RECORD, "id": "soup.salty", "verdict": "does not hold"}
    page, warnings = build(
        "```{ledger}\n:verdict: does not hold\n```", RECORD, fails, claims=("soup.warm", "soup.salty")
    )
    assert warnings == ""
    assert "soup.salty" in page.select_one("table.claims").get_text()
    assert "soup.warm" not in page.select_one("table.claims").get_text()


def test_a_claim_stands_alone_where_it_is_asked_for(build):
    page, warnings = build("```{claim} soup.warm\n```", RECORD)
    assert warnings == ""
    assert len(page.select("table.claims tbody tr")) == 2


def test_the_papers_figures_stand_beside_ours_where_the_paper_has_one(build):
    silent = {**RECORD, "id": "soup.salty", "paper": {"value": None, "where": "no figure of this kind"}}
    page, warnings = build("```{papers}\n```", RECORD, silent, claims=("soup.warm", "soup.salty"))
    assert warnings == ""
    text = page.select_one("table.claims").get_text(" ", strip=True)
    for part in ("61.5 control: 20.5", "Table 2 full text", "62 ± 2 (3 seeds) control: 20 ± 0 (3 seeds)"):
        assert part in text
    assert "soup.salty" not in text


def test_the_chapter_role_counts_time_and_verdicts(build):
    page, _ = build("Soup: {chapter}`soup`.", RECORD)
    assert "Soup: about 41 s on one core; 1 of 1 claims hold in our tests." in page.get_text()


@pytest.mark.parametrize(
    ("records", "claims", "warning"),
    [
        ([RECORD], ("soup.warm", "soup.thick"), "claim soup.thick has no record"),
        ([RECORD], (), "record soup.warm belongs to no claim"),
        ([RECORD, RECORD], ("soup.warm",), "claim soup.warm is recorded twice"),
    ],
)
def test_orphans_are_warnings(build, records, claims, warning):
    _, warnings = build("```{ledger}\n```", *records, claims=claims)
    assert warning in warnings


def test_a_claim_that_nobody_recorded_is_a_warning(build):
    _, warnings = build("```{claim} soup.cold\n```", RECORD)
    assert "no record of claim soup.cold; there are: soup.warm" in warnings


def test_the_claims_of_a_chapter_come_from_its_claims_file():
    assert "msn.collapse" in claims_ledger.declared_ids("msn")
    assert claims_ledger.declared_ids("no_such_chapter") == []


def test_a_record_that_lacks_a_key_is_named(tmp_path):
    write_notebook(tmp_path / "soup.ipynb", {"id": "soup.warm", "metric": "temperature"})
    with pytest.raises(ValueError, match=r"soup\.ipynb: claim record 'soup\.warm' lacks statement"):
        claims_ledger.read_records(tmp_path / "soup.ipynb")


@pytest.mark.parametrize("notebook", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_the_books_claims_are_recorded_and_named_in_the_text_before_they_are_decided(notebook):
    records = claims_ledger.read_records(notebook)
    ids = [record.id for record in records]
    assert claims_ledger.faults_of(notebook.stem, ids, claims_ledger.declared_ids(notebook.stem)) == []
    cells = json.loads(notebook.read_text())["cells"]
    first = next(
        i
        for i, cell in enumerate(cells)
        if any("recipes_claim" in o["metadata"] for o in cell.get("outputs", []) if "metadata" in o)
    )
    told = "".join("".join(cell["source"]) for cell in cells[:first] if cell["cell_type"] == "markdown")
    told += json.dumps([cell["outputs"] for cell in cells[:first] if cell["cell_type"] == "code"])
    assert [claim for claim in ids if claim not in told] == []


@pytest.mark.parametrize("notebook", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_record_agrees_with_the_line_beside_it_and_with_its_claim(notebook):
    claims = {
        claim.id: claim for claim in importlib.import_module(f"recipes_lib.recipes.{notebook.stem}.claims").CLAIMS
    }
    outputs = [output for cell in json.loads(notebook.read_text())["cells"] for output in cell.get("outputs", [])]
    for output in outputs:
        record = output.get("metadata", {}).get("recipes_claim")
        if record:
            line = "".join(output["data"]["text/plain"])
            assert line.startswith(f"claim {record['id']}: {record['verdict']}")
            assert (record["statement"], record["margin"]) == (
                claims[record["id"]].statement,
                claims[record["id"]].margin,
            )
