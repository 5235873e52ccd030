# SPDX-License-Identifier: Apache-2.0
import dataclasses
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipes_lib import claims
from recipes_lib.claim import DOES_NOT_HOLD, HOLDS, MOST_SEEDS, NOT_TESTABLE, Claim, Figure, decide, swapped, verdict
from recipes_lib.claims import check
from recipes_lib.recipes import MENU

SEEDS = (0, 1, 2)


def claim(**changes) -> Claim:
    facts = {
        "id": "x.y",
        "statement": "One is larger.",
        "metric": "accuracy",
        "better": "higher",
        "margin": 0.1,
        "ours": Figure("full", "scores.knn.method"),
        "control": Figure("none", "scores.knn.method"),
        "control_arm": "without it",
        "paper": {"value": None, "where": "Table 1"},
        "full_scale": "recipes run x",
        "control_tuning": "nothing",
    }
    return Claim(**{**facts, **changes})


ALL = [pytest.param(stated, id=stated.id) for name in MENU for stated in claims.module(name).CLAIMS]


def beyond(stated: Claim) -> tuple[list[float], list[float]]:
    """Figures, ours and the control's, that lie three times the margin apart in the claimed direction."""
    step = 3 * stated.margin * (1 if stated.better == "higher" else -1)
    control = [1.0, 1.25, 0.75]
    return [value + step for value in control], control


@pytest.mark.parametrize("stated", ALL)
def test_every_claim_can_hold_and_fails_when_its_arms_are_swapped_or_equal(stated):
    if stated.not_testable:
        pytest.skip(stated.not_testable)
    ours, control = beyond(stated)
    assert verdict(stated, ours, control).outcome == HOLDS
    assert verdict(stated, control, ours).outcome == DOES_NOT_HOLD
    equal = HOLDS if stated.no_worse else DOES_NOT_HOLD
    assert verdict(stated, control, control).outcome == equal
    assert verdict(stated, ours, ours).outcome == equal


@pytest.mark.parametrize("name", MENU)
def test_stored_verdicts_flip_when_their_arms_are_swapped(name):
    path = check_file(name)
    figures = json.loads(path.read_text())["figures"]
    for stated in claims.module(name).CLAIMS:
        found = decide(stated, figures)
        if found.outcome == HOLDS and not stated.no_worse:
            assert decide(swapped(stated), figures).outcome == DOES_NOT_HOLD


def check_file(name):
    path = claims.embedded.path("") / "claims" / f"{name}.json"
    if not path.is_file():
        pytest.skip(f"not verified yet: recipes verify {name}")
    return path


@pytest.mark.parametrize("name", MENU)
def test_a_chapters_file_is_sound(name):
    facts = claims.module(name)
    assert facts.PRESET in MENU[name].presets
    assert 3 <= len(facts.SEEDS) <= MOST_SEEDS
    assert not set(facts.ARMS) & set(facts.MEASUREMENTS)
    ids = [stated.id for stated in facts.CLAIMS]
    assert len(set(ids)) == len(ids) >= 2
    for stated in facts.CLAIMS:
        assert stated.id.startswith(f"{name}.")
        assert {"value", "where"} <= set(stated.paper) <= {"value", "control", "where", "read"}
        for figure in filter(None, (stated.ours, stated.control)):
            assert figure.arm in {**facts.ARMS, **facts.MEASUREMENTS}
    used = {figure.arm for stated in facts.CLAIMS for figure in (stated.ours, stated.control) if figure}
    assert used | set(facts.SHOWN) == set(facts.ARMS) | set(facts.MEASUREMENTS)  # no arm is run for nothing


def test_a_claim_holds_at_exactly_its_margin():
    assert verdict(claim(margin=0.25), [0.75], [0.5]).outcome == HOLDS


def test_a_mean_below_the_margin_does_not_hold():
    found = verdict(claim(), [0.7, 0.55, 0.52], [0.5, 0.5, 0.5])
    assert (found.outcome, found.beyond) == (DOES_NOT_HOLD, 1)


def test_one_seed_that_points_the_other_way_decides_against_a_large_mean():
    assert verdict(claim(), [0.9, 0.9, 0.49], [0.5, 0.5, 0.5]).outcome == DOES_NOT_HOLD


def test_one_seed_without_a_difference_decides_against_a_large_mean():
    assert verdict(claim(), [0.9, 0.9, 0.5], [0.5, 0.5, 0.5]).outcome == DOES_NOT_HOLD


def test_a_seed_below_the_margin_is_allowed_and_counted():
    found = verdict(claim(), [0.9, 0.9, 0.55], [0.5, 0.5, 0.5])
    assert (found.outcome, found.beyond) == (HOLDS, 2)


def test_no_worse_allows_a_mean_shortfall_of_the_margin_and_no_seed_twice_that():
    stated = claim(no_worse=True, margin=0.25)
    for ours, outcome, within in (
        ([0.25, 0.25, 0.25], HOLDS, 3),
        ([0.5, 0.5, 0.125], HOLDS, 2),
        ([0.5, 0.5, 0.0], DOES_NOT_HOLD, 2),  # the mean is within, one seed is not
        ([0.25, 0.25, 0.125], DOES_NOT_HOLD, 2),
        ([1.0, 1.0, 1.0], HOLDS, 3),
    ):
        found = verdict(stated, ours, [0.5, 0.5, 0.5])
        assert (found.outcome, found.beyond) == (outcome, within)
    assert found.line == "claim x.y: holds at toy scale (3 of 3 seeds within the margin)"
    assert found.record["no_worse"]
    assert verdict(claim(no_worse=True, margin=0.25, better="lower"), [1.0], [0.5]).outcome == DOES_NOT_HOLD


def test_lower_is_better_turns_the_sign():
    assert verdict(claim(better="lower"), [0.2] * 3, [0.5] * 3).outcome == HOLDS
    assert verdict(claim(better="lower"), [0.5] * 3, [0.2] * 3).outcome == DOES_NOT_HOLD


finite = st.floats(-1e6, 1e6, allow_nan=False)


@given(st.lists(st.tuples(finite, finite), min_size=1, max_size=5), st.sampled_from(["higher", "lower"]))
def test_a_claim_and_its_swap_never_both_hold(pairs, better):
    ours, control = map(list, zip(*pairs, strict=True))
    outcomes = [verdict(claim(better=better), a, b).outcome for a, b in ((ours, control), (control, ours))]
    assert outcomes.count(HOLDS) <= 1


@given(st.lists(finite, min_size=1, max_size=5))
def test_equal_arms_never_hold(figures):
    assert verdict(claim(margin=1e-300), figures, figures).outcome == DOES_NOT_HOLD


@pytest.mark.parametrize(
    ("ours", "control", "message"),
    [
        ([0.1], [0.1, 0.2], "1 figures, 2 of the control"),
        ([], [], "0 seeds"),
        ([0.1] * 6, [0.1] * 6, "6 seeds"),
        ([math.nan], [0.1], "not finite"),
        ([0.1], [math.inf], "not finite"),
    ],
)
def test_figures_that_the_rule_cannot_judge_are_refused(ours, control, message):
    with pytest.raises(ValueError, match=message):
        verdict(claim(), ours, control)


@pytest.mark.parametrize("margin", [0.0, -1.0, math.nan])
def test_a_margin_that_equal_arms_would_reach_is_refused(margin):
    with pytest.raises(ValueError, match="margin"):
        claim(margin=margin)


def test_a_claim_is_either_checked_or_says_why_not():
    with pytest.raises(ValueError, match="reason why it is not testable"):
        claim(ours=None, control=None)
    with pytest.raises(ValueError, match="reason why it is not testable"):
        claim(not_testable="too large")


def test_a_claim_that_cannot_be_tested_says_so_in_its_line_and_record():
    found = decide(claim(ours=None, control=None, not_testable="needs 64 GPUs"), {})
    assert found.line == "claim x.y: not testable at toy scale (needs 64 GPUs)"
    assert (found.record["verdict"], found.record["reason"]) == (NOT_TESTABLE, "needs 64 GPUs")


def test_the_line_counts_seeds_and_holds_no_trained_number():
    found = verdict(claim(), [0.9, 0.9, 0.55], [0.5, 0.5, 0.5])
    assert found.line == "claim x.y: holds at toy scale (2 of 3 seeds beyond the margin)"


def test_a_claim_elsewhere_than_on_toy_data_has_words_of_its_own_and_names_its_unit(monkeypatch):
    stated = claim(setting="on the published annotations", unit="third")
    found = verdict(stated, [0.9, 0.9, 0.55], [0.5, 0.5, 0.5])
    assert found.line == "claim x.y: holds on the published annotations (2 of 3 thirds beyond the margin)"
    assert check.figures_of(found)[0] == ["", "third 0", "third 1", "third 2", "mean"]


def test_a_claim_says_how_its_control_was_tuned():
    with pytest.raises(ValueError, match="control_tuning is missing"):
        claim(control_tuning="")


def test_a_papers_figure_says_how_it_was_read():
    with pytest.raises(ValueError, match=r"read = None does not say how it was read\. Use one of full text"):
        claim(paper={"value": 67.2, "where": "Table 1"})
    claim(paper={"value": 67.2, "control": 66.4, "where": "Table 1", "read": "full text"})


def test_the_papers_figures_stand_beside_ours(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, raw, metadata: shown.append(data))
    paper = {"value": 67.2, "control": 66.4, "where": "Table 11, ViT-S/16", "read": "full text"}
    read, unread = claim(paper=paper), claim(id="x.z")
    found = {stated.id: verdict(stated, [0.75, 0.85], [0.5, 0.5]) for stated in (read, unread)}
    check.against_paper(found)
    row = "x.y ; 67.2 | 66.4 ; Table 11, ViT-S/16 ; full text ; 0.8 | 0.5 ; holds at toy scale"
    assert shown[0]["text/plain"].splitlines()[1:] == [row]
    assert "<td>67.2 | 66.4</td>" in shown[0]["text/html"]
    with pytest.raises(ValueError, match=r"no claim among x\.z has a figure of its paper"):
        check.against_paper({"x.z": found["x.z"]})


def test_the_record_is_what_the_ledger_reads_and_is_plain_json():
    found = verdict(claim(), [0.75, 1.0], [0.5, 0.5], seeds=(4, 7), seconds=41.4)
    assert found.record == {
        "id": "x.y",
        "version": 1,
        "statement": "One is larger.",
        "metric": "accuracy",
        "better": "higher",
        "margin": 0.1,
        "seeds": [4, 7],
        "ours": [0.75, 1.0],
        "control": [0.5, 0.5],
        "control_arm": "without it",
        "control_tuning": "nothing",
        "paper": {"value": None, "where": "Table 1"},
        "verdict": HOLDS,
        "setting": "at toy scale",
        "unit": "seed",
        "reason": "",
        "seconds": 41,
        "full_scale": "recipes run x",
        "full_scale_control": "",
    }
    assert json.loads(json.dumps(found.record)) == found.record


REPORTS = {
    "full": {"10": {"scores": {"knn": {"method": 0.8}}}, "9": {"scores": {"knn": {"method": 0.7}}}},
    "none": {"9": {"scores": {"knn": {"method": 0.2}}}, "10": {"scores": {"knn": {"method": 0.1}}}},
}


def test_figures_are_read_by_path_and_paired_by_seed():
    found = decide(claim(), REPORTS)
    assert (found.seeds, found.ours, found.control) == ((9, 10), (0.7, 0.8), (0.2, 0.1))


def test_a_figure_that_a_report_lacks_is_named():
    with pytest.raises(ValueError, match=r"arm full: the report has no scores\.linear\.method \('linear' is missing\)"):
        decide(claim(ours=Figure("full", "scores.linear.method")), REPORTS)


def test_an_arm_that_was_not_run_is_no_verdict():
    with pytest.raises(ValueError, match="0 seeds"):
        decide(claim(ours=Figure("other", "scores.knn.method")), REPORTS)


def test_the_output_shows_the_line_and_carries_the_record(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, raw, metadata: shown.append((data, raw, metadata)))
    found = decide(claim(), REPORTS)
    check.show(found)
    assert shown == [({"text/plain": found.line}, True, {"recipes_claim": found.record})]


def test_the_table_has_arms_as_rows_seeds_as_columns_and_a_text_twin(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, raw, metadata: shown.append(data))
    check.table(decide(dataclasses.replace(claim(), control_arm="a < b"), REPORTS))
    rows = [line.split() for line in shown[0]["text/plain"].splitlines()]
    caption = "accuracy; counts for the claim when higher, by at least 0.1 on average"
    assert shown[0]["text/plain"].splitlines()[0] == caption
    assert rows[1] == ["seed", "9", "seed", "10", "mean"]
    assert rows[2] == ["ours:", "full", "0.7", "0.8", "0.75"]
    assert rows[3][-3:] == ["0.2", "0.1", "0.15"]
    assert rows[4] == ["difference", "0.5", "0.7", "0.6"]
    assert "<th>control: a &lt; b</th><td>0.2</td>" in shown[0]["text/html"]
