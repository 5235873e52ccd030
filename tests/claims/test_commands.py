# SPDX-License-Identifier: Apache-2.0
"""The commands at full scale that the ledger prints: each is one that the command line takes, and that can start."""

import shlex

import pytest

from recipes_lib import claims, recipes
from recipes_lib.cli import flags

CHAPTERS = ("clip", "sieve")


def commands(name: str) -> list[str]:
    """The commands of ours and of the controls, one by one."""
    found = [
        command for claim in claims.module(name).CLAIMS for command in (claim.full_scale, claim.full_scale_control)
    ]
    return list(dict.fromkeys(part for command in found if command for part in command.split(" && ")))


@pytest.mark.parametrize(("chapter", "command"), [(name, command) for name in CHAPTERS for command in commands(name)])
def test_a_full_scale_command_is_read_and_its_config_is_allowed(chapter, command):
    words = shlex.split(command)
    name, *given = words[words.index("run") + 1 :]
    own, rest = flags.split(given)
    preset = recipes.module(name).PRESETS[own["preset"]]
    flags.parse(preset, rest, prog="recipes run", about="").validate()


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_every_claim_says_how_its_control_was_tuned_and_runs_it(chapter):
    for claim in claims.module(chapter).CLAIMS:
        assert claim.control_tuning, claim.id
        assert claim.full_scale_control != claim.full_scale, claim.id
