# SPDX-License-Identifier: Apache-2.0
"""The claims of the chapters on prototypes and supports: fair controls, and commands that can start."""

import shlex

import pytest

from recipes_lib import recipes
from recipes_lib.claim import Chapter, Claim
from recipes_lib.cli import flags

CHAPTERS = ("msn", "paws", "pmsn")
ONE_THING = (
    {"loss.prior", "loss.exponent", "loss.sinkhorn"},  # one prior, on both sides of the loss
    {"views.jitter", "views.grayscale"},  # all that changes a view's colours
)


def differing(chapter: Chapter, claim: Claim) -> set[str]:
    """The fields in which the training of the two arms differs."""
    ours, control = (chapter.arms[metric.arm].changes for metric in (claim.ours, claim.control))
    found = {field for field in {**ours, **control} if ours.get(field) != control.get(field)}
    return {field for field in found if not field.startswith("eval.")}


@pytest.mark.parametrize("name", CHAPTERS)
def test_the_control_differs_from_ours_in_one_thing(name):
    chapter, offenders = recipes.chapter(name), []
    for claim in chapter.claims:
        measured = {claim.ours.arm, claim.control.arm} & set(chapter.measurements)
        if measured or claim.ours.path != claim.control.path:  # two metrics, such as that before training
            continue
        fields = differing(chapter, claim)
        if len(fields) != 1 and fields not in ONE_THING:
            offenders.append((claim.id, fields))
    assert offenders == []


@pytest.mark.parametrize("name", CHAPTERS)
def test_each_claim_says_what_was_searched_and_its_commands_run_both_arms(name):
    for claim in recipes.chapter(name).claims:
        runs_both_arms(name, claim)


def runs_both_arms(chapter: str, claim: Claim) -> None:
    assert claim.control_tuning
    both_metrics_at_once = "--eval.baselines all" in claim.full_scale
    assert bool(claim.full_scale_control) != both_metrics_at_once
    assert claim.full_scale != claim.full_scale_control
    for command in filter(None, (claim.full_scale, claim.full_scale_control)):
        words = shlex.split(command, comments=True)
        if "verify" in words:
            assert set(words[words.index("--arm") + 1 :]) <= {*recipes.chapter(chapter).measurements}
            continue
        at = words.index("--preset")
        config = flags.parse(
            recipes.named(chapter).presets[words[at + 1]], words[at + 2 :], prog="recipes run", about=""
        )
        if "run" in words:  # plan needs no data
            config.validate()
