# SPDX-License-Identifier: Apache-2.0
"""The claims of all chapters: each can hold and can fail, and what the chapter says beside them is sound."""

import json
import subprocess
import sys

import pytest

from recipes_lib import recipes
from recipes_lib.claim import DOES_NOT_HOLD, HOLDS, Claim, decide, swapped, verdict
from recipes_lib.data import embedded
from recipes_lib.errors import ConfigError
from recipes_lib.recipes import MENU


def beyond(stated: Claim) -> tuple[list[float], list[float]]:
    """Metrics, ours and the control's, that lie three times the margin apart in the claimed direction."""
    control = [1.0, 1.25, 0.75]
    return [value + 3 * stated.margin * stated.sign for value in control], control


def outcomes(stated: Claim) -> list[str]:
    """What the rule says of a clear difference, of the same with its arms swapped, and of arms that are equal."""
    ours, control = beyond(stated)
    pairs = ((ours, control), (control, ours), (control, control), (ours, ours))
    return [verdict(stated, *pair).outcome for pair in pairs]


@pytest.mark.parametrize("name", MENU)
def test_every_claim_can_hold_and_fails_when_its_arms_are_swapped_or_equal(name):
    offenders = []
    for stated in recipes.chapter(name).claims:
        equal = HOLDS if stated.no_worse else DOES_NOT_HOLD
        if not stated.not_testable and outcomes(stated) != [HOLDS, DOES_NOT_HOLD, equal, equal]:
            offenders.append((stated.id, outcomes(stated)))
    assert offenders == []


@pytest.mark.parametrize("name", MENU)
def test_stored_verdicts_flip_when_their_arms_are_swapped(name):
    path = embedded.path("") / "claims" / f"{name}.json"
    if not path.is_file():
        pytest.skip(f"not verified yet: recipes verify {name}")
    reports = json.loads(path.read_text())["figures"]
    held = [
        stated
        for stated in recipes.chapter(name).claims
        if not stated.no_worse and decide(stated, reports).outcome == HOLDS
    ]
    assert [stated.id for stated in held if decide(swapped(stated), reports).outcome != DOES_NOT_HOLD] == []


@pytest.mark.parametrize("name", MENU)
def test_a_chapter_rests_on_recipes_and_presets_that_there_are(name):
    chapter = recipes.chapter(name)
    assert chapter.name == name
    assert [arm for arm in chapter.arms.values() if arm.preset not in MENU[arm.recipe].presets] == []
    keys = {stated.id: set(stated.paper) for stated in chapter.claims}
    assert not {name: found for name, found in keys.items() if not {"value", "where"} <= found}
    assert set.union(*keys.values()) <= {"value", "control", "where", "read"}


def test_a_chapter_that_is_not_on_the_menu_is_named_with_the_nearest():
    with pytest.raises(ConfigError, match=r"There is no recipe 'msm'\. Did you mean 'msn'\?"):
        recipes.chapter("msm")


def test_what_the_chapters_put_to_the_test_is_read_without_torch():
    program = (
        "import sys; from recipes_lib import claims, recipes\n"
        "for name in recipes.MENU: recipes.chapter(name); claims.measured(name)\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
