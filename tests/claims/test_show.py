# SPDX-License-Identifier: Apache-2.0
"""What a chapter's verdict cell puts into its notebook."""

from types import SimpleNamespace

import matplotlib.pyplot as plt
import pytest
from bs4 import BeautifulSoup

from recipes_lib.claim import Claim, Metric, Verdict, verdict
from recipes_lib.claims import show

PAPER = {"value": 67.2, "control": 66.4, "where": "Table 11, ViT-S/16", "read": "full text"}


def claim(identity: str = "x.y", **changes) -> Claim:
    facts = {
        "id": identity,
        "statement": "One is larger.",
        "metric": "accuracy",
        "better": "higher",
        "margin": 0.1,
        "ours": Metric("full", "knn"),
        "control": Metric("none", "knn"),
        "control_arm": "a < b",
        "paper": {"value": None, "where": "Table 1"},
        "full_scale": "recipes run x",
        "control_tuning": "nothing",
    }
    return Claim(**{**facts, **changes})


def decided(*claims: Claim) -> list[Verdict]:
    return [verdict(stated, [0.7, 0.8], [0.2, 0.1], seeds=[9, 10]) for stated in claims]


@pytest.fixture
def shown(monkeypatch) -> SimpleNamespace:
    """Verdicts of two claims are stored; what a cell displays is listed: outputs, their metadata, and figures."""
    found = SimpleNamespace(outputs=[], metadata=[], axes=[])
    stored = {made.claim.id: made for made in decided(claim(paper=PAPER), claim("x.z"))}

    def display(data, raw, metadata):
        assert raw
        found.outputs.append(data)
        found.metadata.append(metadata)

    monkeypatch.setattr("IPython.display.display", display)
    monkeypatch.setattr(show, "stored", lambda name: stored)
    monkeypatch.setattr(plt, "show", lambda: found.axes.append(plt.gca()))
    yield SimpleNamespace(stored=stored, **vars(found))
    plt.close("all")


def test_a_cell_shows_a_figure_a_line_for_each_claim_with_its_record_and_all_tables_in_one_output(shown):
    show.verdicts("x")
    verdicts = list(shown.stored.values())
    assert len(shown.axes) == 1
    assert [output["text/plain"] for output in shown.outputs[:2]] == [made.line for made in verdicts]
    assert shown.metadata == [*({"recipes_claim": made.record} for made in verdicts), None]
    line = BeautifulSoup(shown.outputs[0]["text/html"], "html.parser")
    assert line.get_text() == verdicts[0].line
    assert len(shown.outputs) == 3


def test_the_figure_names_each_claim_with_both_means_and_its_verdict(shown):
    show.verdicts("x")
    texts = {text.get_text() for text in shown.axes[0].texts}
    assert {"y", "z", "ours 0.75, control 0.15", "holds"} <= texts


def test_the_tables_stand_behind_one_toggle_with_heads_captions_and_a_text_twin(shown):
    show.verdicts("x")
    page = BeautifulSoup(shown.outputs[-1]["text/html"], "html.parser")
    toggles = page.select("details")
    assert len(toggles) == 1
    assert toggles[0].summary.get_text() == "The numbers of all 2 claims, seed by seed"
    caption = "x.y: accuracy; counts for the claim when higher, by at least 0.1 on average"
    assert [found.get_text() for found in page.select("caption")] == [caption, caption.replace("x.y", "x.z")]
    assert [cell.get_text() for cell in page.select("table")[0].select("th[scope=col]")] == [
        "arm",
        "seed 9",
        "seed 10",
        "mean",
    ]
    rows = [
        [cell.get_text() for cell in row.select("th[scope=row], td")]
        for row in page.select("table")[0].select("tbody tr")
    ]
    assert rows == [
        ["ours: full", "0.7", "0.8", "0.75"],
        ["control: a < b", "0.2", "0.1", "0.15"],
        ["difference", "0.5", "0.7", "0.6"],
    ]
    assert not [cell for cell in page.select("th") if not cell.get_text() or not cell["scope"]]
    text = shown.outputs[-1]["text/plain"]
    assert caption in text
    assert ["control:", "a", "<", "b", "0.2", "0.1", "0.15"] in [line.split() for line in text.splitlines()]


def test_a_table_counts_by_the_claims_own_unit_and_shows_large_numbers_whole():
    head, rows = show.metrics_of(verdict(claim(unit="third", margin=1.0), [10333440.0], [10.0]))
    assert head == ["arm", "third 0", "mean"]
    assert rows[0][1] == "10,333,440"


def test_the_papers_numbers_stand_beside_ours_where_it_has_some(shown):
    show.against_paper("x")
    text = shown.outputs[0]["text/plain"].splitlines()
    assert text[2:] == ["x.y ; 67.2 | 66.4 ; Table 11, ViT-S/16 ; full text ; 0.75 | 0.15 ; holds at toy scale"]
    page = BeautifulSoup(shown.outputs[0]["text/html"], "html.parser")
    assert page.caption.get_text() == text[0]
    assert [cell.get_text() for cell in page.select("tbody th[scope=row]")] == ["x.y"]
    assert {cell["data-label"]: cell.get_text() for cell in page.select("td")}["how read"] == "full text"
    shown.stored.pop("x.y")
    with pytest.raises(ValueError, match="no claim of chapter x has a number of its paper"):
        show.against_paper("x")
