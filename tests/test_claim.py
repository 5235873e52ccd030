# SPDX-License-Identifier: Apache-2.0
import json
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipes_lib.claim import (
    DOES_NOT_HOLD,
    HOLDS,
    NOT_TESTABLE,
    Arm,
    Chapter,
    Claim,
    Measurement,
    Metric,
    decide,
    higher,
    lower,
    no_worse,
    verdict,
)


def claim(**changes) -> Claim:
    facts = {
        "id": "x.y",
        "statement": "One is larger.",
        "metric": "accuracy",
        "better": "higher",
        "margin": 0.1,
        "ours": Metric("full", "scores.knn.method"),
        "control": Metric("none", "scores.knn.method"),
        "control_arm": "without it",
        "paper": {"value": None, "where": "Table 1"},
        "full_scale": "recipes run x",
        "control_tuning": "nothing",
    }
    return Claim(**{**facts, **changes})


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
def test_equal_arms_never_hold(metrics):
    assert verdict(claim(margin=1e-300), metrics, metrics).outcome == DOES_NOT_HOLD


@pytest.mark.parametrize(
    ("ours", "control", "message"),
    [
        ([0.1], [0.1, 0.2], "1 metrics, 2 of the control"),
        ([], [], "0 seeds"),
        ([0.1] * 6, [0.1] * 6, "6 seeds"),
        ([math.nan], [0.1], "not finite"),
        ([0.1], [math.inf], "not finite"),
    ],
)
def test_metrics_that_the_rule_cannot_judge_are_refused(ours, control, message):
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


def test_a_claim_elsewhere_than_on_toy_data_has_words_of_its_own_and_names_its_unit():
    stated = claim(setting="on the published annotations", unit="third")
    found = verdict(stated, [0.9, 0.9, 0.55], [0.5, 0.5, 0.5])
    assert found.line == "claim x.y: holds on the published annotations (2 of 3 thirds beyond the margin)"


def test_a_claim_says_how_its_control_was_tuned():
    with pytest.raises(ValueError, match="control_tuning is missing"):
        claim(control_tuning="")


def test_a_papers_metric_says_how_it_was_read():
    with pytest.raises(ValueError, match=r"read = None does not say how it was read\. Use one of full text"):
        claim(paper={"value": 67.2, "where": "Table 1"})
    claim(paper={"value": 67.2, "control": 66.4, "where": "Table 1", "read": "full text"})


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
        "beyond": 2,
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


def test_metrics_are_read_by_path_and_paired_by_seed():
    found = decide(claim(), REPORTS)
    assert (found.seeds, found.ours, found.control) == ((9, 10), (0.7, 0.8), (0.2, 0.1))


def test_a_metric_that_a_report_lacks_is_named():
    with pytest.raises(ValueError, match=r"arm full: the report has no scores\.linear\.method \('linear' is missing\)"):
        decide(claim(ours=Metric("full", "scores.linear.method")), REPORTS)


def test_an_arm_that_was_not_run_is_no_verdict():
    with pytest.raises(ValueError, match="0 seeds"):
        decide(claim(ours=Metric("other", "scores.knn.method")), REPORTS)


def test_the_three_kinds_of_claim_differ_in_direction_and_in_what_they_ask():
    facts = {"metric": "accuracy", "control_arm": "none", "control_tuning": "none", "full_scale": "recipes run x"}
    facts |= {
        "paper": {"value": None, "where": "nowhere"},
        "statement": "It is.",
        "ours": ("a", "x"),
        "control": ("b", "x"),
    }
    found = {
        "higher": higher("x.y", by=0.1, **facts),
        "lower": lower("x.y", by=0.1, **facts),
        "no lower": no_worse("x.y", better="higher", by=0.1, **facts),
        "no higher": no_worse("x.y", better="lower", by=0.1, **facts),
    }
    assert {name: (made.better, made.no_worse, made.margin) for name, made in found.items()} == {
        "higher": ("higher", False, 0.1),
        "lower": ("lower", False, 0.1),
        "no lower": ("higher", True, 0.1),
        "no higher": ("lower", True, 0.1),
    }
    assert (found["lower"].ours, found["lower"].control) == (Metric("a", "x"), Metric("b", "x"))


def test_the_difference_in_margins_is_above_0_where_it_speaks_for_the_claim():
    stated = claim(better="lower", margin=0.25)
    assert verdict(stated, [0.25, 1.0, 0.5], [0.5, 0.5, 0.5]).in_margins == (1.0, -2.0, 0.0)


def chapter(**changes) -> Chapter:
    facts = {
        "name": "x",
        "arms": {"full": Arm(recipe="x"), "none": Arm(recipe="z", preset="simmer")},
        "claims": tuple(claim(id=f"x.{name}") for name in "abcd"),
        "headline": ("x.c", "x.a", "x.b"),
    }
    return Chapter(**{**facts, **changes})


def test_a_chapter_names_its_headlines_in_their_order_and_then_the_others():
    found = chapter(measurements={"cost": Measurement("a:b", needs_data=True)}, shown=("cost",))
    assert [stated.id for stated in found.headlines] == ["x.c", "x.a", "x.b"]
    assert [stated.id for stated in found.others] == ["x.d"]
    assert found.every_arm == ("full", "none", "cost")
    assert found.needs_data == {"cost"}
    assert found["x.d"].name == "d"


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        (
            {"arms": {"full": Arm(recipe="x")}},
            "no arm or measurement is called 'none', which claims or shown name; there",
        ),
        ({"shown": ("other",)}, "no arm or measurement is called 'other'"),
        (
            {"measurements": {"cost": Measurement("a:b")}},
            "arm 'cost' is of no claim. Leave it out, or name it in shown.",
        ),
        ({"measurements": {"full": Measurement("a:b")}}, "'full' is an arm and a measurement. Rename one."),
        ({"name": "z"}, "claim id 'x.a' does not begin with 'z.'"),
        ({"claims": tuple(claim(id=f"x.{name}") for name in "abcc")}, "2 claims have the id 'x.c'. Rename them."),
        ({"seeds": (0, 1)}, "seeds = (0, 1). Give 3 to 5 different ones."),
        ({"seeds": (0, 0, 1)}, "seeds = (0, 0, 1). Give 3 to 5 different ones."),
        ({"seeds": tuple(range(6))}, "Give 3 to 5 different ones."),
        ({"headline": ("x.a", "x.b", "x.e")}, "headline 'x.e' is no claim; there are: x.a, x.b, x.c, x.d."),
        ({"headline": ("x.a", "x.b")}, "headline names 2 claims. Name the three to five that matter most."),
    ],
)
def test_a_chapter_that_does_not_fit_together_is_refused_in_a_line(changes, fault):
    with pytest.raises(ValueError, match=re.escape(fault)) as refused:
        chapter(**changes)
    assert all(line.startswith("chapter ") for line in str(refused.value).splitlines())
