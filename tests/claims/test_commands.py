# SPDX-License-Identifier: Apache-2.0
"""The commands at full scale that the ledger prints: each is one that the command line takes, and that can start."""

import shlex
from functools import cache
from typing import Any

import pytest

from recipes_lib import recipes
from recipes_lib.cli import flags

CHAPTERS = ("what_is_ssl", "clip", "local_sgd", "sieve", "switchback")


def commands(name: str) -> list[str]:
    """The commands of ours and of the controls, one by one."""
    found = [
        command for claim in recipes.chapter(name).claims for command in (claim.full_scale, claim.full_scale_control)
    ]
    return list(dict.fromkeys(part for command in found if command for part in command.split(" && ")))


@cache
def config_of(command: str) -> Any:
    """The checked config that ``... run NAME --preset PRESET FLAG ...`` asks for."""
    words = shlex.split(command)
    name, *given = words[words.index("run") + 1 :]
    own, rest = flags.split(given)
    found = flags.parse(recipes.named(name).presets[own["preset"]], rest, prog="recipes run", about="")
    found.validate()
    return found


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_full_scale_command_is_read_and_its_config_is_allowed(chapter):
    for command in commands(chapter):
        config_of(command)


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_every_claim_says_how_its_control_was_tuned_and_runs_it(chapter):
    for claim in recipes.chapter(chapter).claims:
        assert claim.control_tuning, claim.id
        assert claim.full_scale_control != claim.full_scale, claim.id


def differing(identity: str) -> dict[str, tuple]:
    """The fields in which the two commands of a claim differ."""
    claim = recipes.chapter(identity.split(".")[0])[identity]
    ours, control = config_of(claim.full_scale), config_of(claim.full_scale_control)
    return {
        f"{group}.{name}": (value, getattr(getattr(control, group), name))
        for group in ("data", "views", "model", "loss", "optim", "sync", "train", "eval")
        if group in vars(ours)  # not every recipe has a loss to choose
        for name, value in vars(getattr(ours, group)).items()
        if value != getattr(getattr(control, group), name)
    }


@pytest.mark.parametrize(
    ("identity", "fields"),
    [
        ("what_is_ssl.collapse", {"loss.negatives": (True, False)}),
        (
            "what_is_ssl.lower_loss",
            {
                "views.global_scale": ((0.8, 1.0), (0.08, 1.0)),
                "views.jitter": (0.0, 0.8),
                "views.grayscale": (0.0, 0.2),
            },
        ),
        ("switchback.accuracy", {"model.linear": ("switchback", "full")}),
        ("switchback.int8_worse", {"model.linear": ("switchback", "int8")}),
        ("switchback.fp8_fails", {"model.linear": ("full", "fp8")}),
        ("switchback.fp8_scaled", {"model.linear": ("fp8", "full")}),
        ("switchback.stable", {"optim.name": ("stable_adamw", "adamw")}),
        ("switchback.clipping", {"optim.name": ("stable_adamw", "adamw"), "optim.clip": (None, 1.0)}),
        (
            "switchback.low_beta2",
            {"optim.name": ("stable_adamw", "adamw"), "optim.betas": ((0.9, 0.99), (0.9, 0.9))},
        ),
        ("local_sgd.reset", {"sync.buffers": ("reset", "maintain")}),
        ("local_sgd.slowmo", {"sync.name": ("slowmo", "local_sgd"), "sync.momentum": (0.6, 0.5)}),
    ],
)
def test_the_two_commands_of_a_claim_differ_in_what_its_arms_differ_in(identity, fields):
    assert differing(identity) == fields


def test_against_synchronous_steps_only_the_agreement_differs():
    for identity in ("bytes", "long_periods_cost", "looks_free", "is_not_free"):
        found = differing(f"local_sgd.{identity}")
        assert found["sync.name"] == ("local_sgd", "ddp")
        assert {name.split(".")[0] for name in found} == {"sync"}
