# SPDX-License-Identifier: Apache-2.0
"""What ImageNet-X's claims say beside their metrics is so."""

import shlex

from recipes_lib.claim import Claim
from recipes_lib.recipes.imagenet_x import recipe as imagenet_x
from recipes_lib.recipes.imagenet_x.claims import CHAPTER


def words_of(command: str) -> list[str]:
    return [word for word in shlex.split(command) if "=" not in word]


def test_each_claim_names_its_setting_its_unit_and_a_command_that_gives_both_metrics():
    for claim in CHAPTER.claims:
        names_what_it_rests_on(claim)


def names_what_it_rests_on(claim: Claim) -> None:
    published = claim.ours.arm == "real"
    assert claim.setting == ("on the published annotations" if published else "at toy scale")
    assert claim.unit == ("third" if published else "seed")
    assert claim.control_tuning
    program, verb, recipe, *options = words_of(claim.full_scale)
    assert (program, recipe) == ("recipes", "imagenet_x")
    if verb == "verify":
        assert options == ["--arm", claim.ours.arm]
        return
    preset = imagenet_x.PRESETS[options[options.index("--preset") + 1]]
    assert verb == "run"
    assert (preset.data.name == "pantry") != published  # a report on files tests no net of the Pantry
    assert ("--predictions" in options) == published


def test_the_command_for_clips_trains_clips():
    chosen = CHAPTER["imagenet_x.pantry_captions_jitter"]
    assert chosen.full_scale == "recipes run imagenet_x --preset simmer"
    assert imagenet_x.PRESETS["simmer"].nets.clip_steps > 0


def test_the_one_number_of_the_paper_is_a_vits():
    with_numbers = [claim for claim in CHAPTER.claims if claim.paper["value"] is not None]
    assert [claim.id for claim in with_numbers] == ["imagenet_x.texture_harder"]
    assert "ViT" in with_numbers[0].paper["where"]
    assert with_numbers[0].paper["read"] == "full text"
