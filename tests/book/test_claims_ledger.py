# SPDX-License-Identifier: Apache-2.0
"""The ledger on notebooks of the tests' own, then on the book's."""

import json
from pathlib import Path

import claims_ledger
import pytest
from bs4 import BeautifulSoup
from sphinx.testing.util import SphinxTestApp

from recipes_lib import recipes
from recipes_lib.claim import Arm, Chapter, higher

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
    "beyond": 3,
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

    def _build(
        page: str,
        *records: dict,
        claims: tuple[str, ...] = ("soup.warm",),
        ledger: bool = False,
    ) -> tuple[BeautifulSoup, str]:
        (tmp_path / "notebooks").mkdir()
        write_notebook(tmp_path / "notebooks" / "soup.ipynb", *records)
        (tmp_path / "index.md").write_text(
            f"# Book\n\n{page}\n\n```{{toctree}}\nnotebooks/soup\n{'book/ledger' * ledger}\n```\n"
        )
        if ledger:
            (tmp_path / "book").mkdir()
            (tmp_path / "book" / "ledger.md").write_text("# Ledger\n")
        conf = "extensions = ['myst_nb', 'claims_ledger']\nnb_execution_mode = 'off'\n"
        (tmp_path / "conf.py").write_text(conf + "myst_enable_extensions = ['colon_fence']\n")
        monkeypatch.setattr(claims_ledger, "declared_ids", lambda chapter: list(claims))
        monkeypatch.setattr(claims_ledger, "header_seconds", lambda notebook: 41)
        app = SphinxTestApp(srcdir=tmp_path, builddir=tmp_path / "_build")
        app.build()
        text, warnings = (tmp_path / "_build" / "html" / "index.html").read_text(), app.warning.getvalue()
        app.cleanup()
        return BeautifulSoup(text, "html.parser"), warnings

    return _build


def texts(page: BeautifulSoup, selector: str) -> list[str]:
    return [" ".join(found.get_text(" ", strip=True).split()) for found in page.select(selector)]


def test_a_card_shows_what_the_record_says(build):
    page, warnings = build("```{ledger}\n```", RECORD)
    assert warnings == ""
    (text,) = texts(page, ".claim-card")
    for part in (
        "soup.warm holds at toy scale (3 of 3 seeds beyond the margin)",
        "the soup is warmer than the bowl",
        "Compared temperature in degrees; counts when higher, by at least 5",
        "Ours 62, the mean of 3 seeds (60, 62, 64)",
        "Control 20, the mean of 3 seeds (20, 20, 20): the empty bowl",
        "The paper 61.5, control 20.5; Table 2 (full text)",
    ):
        assert part in text
    (hidden,) = texts(page, ".claim-card details")
    assert hidden == (
        "Tuning and commands of soup.warm Tuning both were heated by three runs on pilot seeds "
        "Ours at full scale recipes run soup --preset pot Its control recipes run soup --preset bowl "
        "Computing 41 s for all of the runs above"
    )
    assert page.select_one(".claim-card a")["href"] == "notebooks/soup.html"


def test_an_untested_claim_says_why(build):
    record = {
        **RECORD,
        "ours": [],
        "control": [],
        "seeds": [],
        "beyond": 0,
        "verdict": "not testable",
        "reason": "it needs a big pot",
    }
    page, _ = build("```{ledger}\n```", record)
    (text,) = texts(page, ".claim-card.claim-untested")
    assert "soup.warm not testable at toy scale (it needs a big pot)" in text
    assert "nan" not in text


def test_a_summary_counts_verdicts_by_chapter_and_links_to_the_sections(build):
    fails = {**RECORD, "id": "soup.salty", "verdict": "does not hold"}
    page, warnings = build("```{ledger}\n```", RECORD, fails, claims=("soup.warm", "soup.salty"))
    assert warnings == ""
    assert texts(page, "table.claim-summary thead th") == ["Chapter", "held", "did not hold", "not testable"]
    assert texts(page, "table.claim-summary tbody tr") == ["soup 1 1 0", "all 1 1 0"]
    section = page.select_one("section#ledger-soup")
    assert page.select_one("table.claim-summary a")["href"] == "#ledger-soup"
    assert section.select_one("h2").contents[0] == "soup"
    assert len(section.select(".claim-card")) == 2


def test_the_filter_hides_cards_by_style_alone_and_shows_all_at_first(build):
    fails = {**RECORD, "id": "soup.salty", "verdict": "does not hold"}
    page, _ = build("```{ledger}\n```", RECORD, fails, claims=("soup.warm", "soup.salty"))
    assert texts(page, ".claim-filter label") == ["all (2)", "held (1)", "did not hold (1)", "not testable (0)"]
    assert [button["id"] for button in page.select(".claim-filter input[checked]")] == ["show-all"]
    css = (ROOT / "book" / "_static" / "book.css").read_text()
    for kind in ("held", "fell", "untested"):
        assert page.select_one(f"#show-{kind}")
        assert f"body:has(#show-{kind}:checked) .claim-card:not(.claim-{kind})" in css
    assert [card["class"] for card in page.select(".claim-card")] == [
        ["claim-card", "claim-held", "docutils", "container"],
        ["claim-card", "claim-fell", "docutils", "container"],
    ]


@pytest.fixture
def soup(monkeypatch) -> Chapter:
    """The chapter's claims: two are not told at once."""

    def claim(name: str, statement: str):
        return higher(
            f"soup.{name}",
            statement,
            ours=("hot", "degrees"),
            control=("hot", "room"),
            by=5.0,
            metric="temperature",
            control_arm="the empty bowl",
            control_tuning="none",
            paper={"value": None, "where": "nowhere"},
            full_scale="recipes run soup",
        )

    claims = [claim(name, f"The soup is {name}.") for name in ("warm", "salty", "thick", "red", "late")]
    chapter = Chapter(
        name="soup",
        arms={"hot": Arm(recipe="soup")},
        claims=tuple(claims),
        headline=("soup.thick", "soup.warm", "soup.salty"),
    )
    monkeypatch.setattr(recipes, "chapter", lambda name: chapter)
    monkeypatch.setitem(recipes.MENU, "soup", recipes.MENU["msn"])
    return chapter


def test_the_box_states_each_claim_with_margin_control_and_seeds_and_the_headlines_first(build, soup):
    page, warnings = build(":::{claims} soup\n:::", RECORD, ledger=True)
    assert warnings == ""
    box = page.select_one(".admonition.important")
    assert box.select_one(".admonition-title").get_text() == claims_ledger.BOX_TITLE
    points = texts(box, "li")
    assert [point.split(" soup.")[0] for point in points] == [
        "The soup is thick.",
        "The soup is warm.",
        "The soup is salty.",
        "The soup is red.",
        "The soup is late.",
    ]
    assert points[0] == (
        "The soup is thick. soup.thick : temperature; counts for the claim when higher, by at least 5 on average. "
        "Control: the empty bowl. 3 seeds."
    )
    assert texts(box, "details summary") == ["2 more claims"]
    assert len(box.select("details li")) == 2


def test_a_box_of_no_chapter_is_a_warning(build):
    _, warnings = build(":::{claims} broth\n:::", RECORD)
    assert "no chapter broth has claims; there are: what_is_ssl, families, " in warnings


def test_the_papers_numbers_stand_beside_ours_where_the_paper_has_some(build):
    silent = {**RECORD, "id": "soup.salty", "paper": {"value": None, "where": "no figure of this kind"}}
    page, warnings = build("```{papers}\n```", RECORD, silent, claims=("soup.warm", "soup.salty"))
    assert warnings == ""
    (text,) = texts(page, "table.claims tbody")
    for part in ("The paper 61.5 control: 20.5", "Table 2 full text", "Here 62 control: 20"):
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


def test_the_claims_of_a_chapter_come_from_its_claims_file():
    assert "msn.collapse" in claims_ledger.declared_ids("msn")
    assert claims_ledger.declared_ids("no_such_chapter") == []


def test_a_record_that_lacks_a_key_is_named(tmp_path):
    write_notebook(tmp_path / "soup.ipynb", {"id": "soup.warm", "metric": "temperature"})
    with pytest.raises(ValueError, match=r"soup\.ipynb: claim record 'soup\.warm' lacks statement"):
        claims_ledger.read_records(tmp_path / "soup.ipynb")


NOTEBOOKS = pytest.mark.parametrize(
    "notebook", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem
)


def cells_of(notebook: Path) -> list[dict]:
    return json.loads(notebook.read_text())["cells"]


@NOTEBOOKS
def test_the_books_claims_are_recorded_and_stand_in_the_box_before_they_are_decided(notebook):
    ids = [record.id for record in claims_ledger.read_records(notebook)]
    assert claims_ledger.faults_of(notebook.stem, ids, claims_ledger.declared_ids(notebook.stem)) == []
    sources = ["".join(cell["source"]) for cell in cells_of(notebook)]
    box = sources.index(f":::{{claims}} {notebook.stem}\n:::")
    assert box < sources.index(f'from recipes_lib import claims\n\nclaims.verdicts("{notebook.stem}")')


@NOTEBOOKS
def test_a_record_agrees_with_the_line_beside_it_and_with_its_claim(notebook):
    chapter = recipes.chapter(notebook.stem)
    for output in (output for cell in cells_of(notebook) for output in cell.get("outputs", [])):
        record = output.get("metadata", {}).get("recipes_claim")
        if record:
            line = "".join(output["data"]["text/plain"])
            assert line.startswith(f"claim {record['id']}: {record['verdict']}")
            claim = chapter[record["id"]]
            assert (record["statement"], record["margin"]) == (claim.statement, claim.margin)
