# SPDX-License-Identifier: Apache-2.0
"""The claims of the chapters on prototypes and supports: fair controls, and commands that can start."""

import shlex

import pytest

from recipes_lib import claims, recipes
from recipes_lib.cli import flags

CHAPTERS = ("msn", "paws", "pmsn")
EVERY = [(name, claim) for name in CHAPTERS for claim in claims.module(name).CLAIMS]
IDS = [claim.id for _, claim in EVERY]
ONE_THING = (
    {"loss.prior", "loss.exponent", "loss.sinkhorn"},  # one prior, on both sides of the loss
    {"views.jitter", "views.grayscale"},  # all that changes a view's colours
)


@pytest.mark.parametrize(("chapter", "claim"), EVERY, ids=IDS)
def test_the_control_differs_from_ours_in_one_thing(chapter, claim):
    facts = claims.module(chapter)
    if {claim.ours.arm, claim.control.arm} & set(facts.MEASUREMENTS):
        return
    ours, control = ({**facts.BASE, **facts.ARMS[figure.arm]} for figure in (claim.ours, claim.control))
    differing = {field for field in ours | control if ours.get(field) != control.get(field)}
    trained_otherwise = {field for field in differing if not field.startswith("eval.")}
    one_figure_each = claim.ours.path != claim.control.path
    assert one_figure_each or len(trained_otherwise) == 1 or trained_otherwise in ONE_THING


@pytest.mark.parametrize(("chapter", "claim"), EVERY, ids=IDS)
def test_the_claim_says_what_was_searched_and_its_commands_run_both_arms(chapter, claim):
    assert claim.control_tuning
    both_figures_at_once = "--eval.baselines all" in claim.full_scale
    assert bool(claim.full_scale_control) != both_figures_at_once
    assert claim.full_scale != claim.full_scale_control
    for command in filter(None, (claim.full_scale, claim.full_scale_control)):
        words = shlex.split(command, comments=True)
        if "verify" in words:
            assert set(words[words.index("--arm") + 1 :]) <= {*claims.module(chapter).MEASUREMENTS}
            continue
        at = words.index("--preset")
        config = flags.parse(
            recipes.named(chapter).presets[words[at + 1]], words[at + 2 :], prog="recipes run", about=""
        )
        if "run" in words:  # plan needs no data
            config.validate()
