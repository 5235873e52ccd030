# SPDX-License-Identifier: Apache-2.0
"""The recipe of the families: which methods and presets there are, and that a run of each gives what the chapter reads."""

from pathlib import Path

import pytest
import torch

from recipes_lib.recipes import MENU
from recipes_lib.recipes.families import recipe
from recipes_lib.recipes.families.claims import GUARDS, HIDING, PAPER_RUNS, WITH_VIEWS

SIZES = ("toy", "simmer", "laptop")


def test_every_method_has_three_small_presets_and_a_papers_run():
    assert {f"{name}_{size}" for name in recipe.METHODS for size in SIZES} <= set(recipe.PRESETS)
    assert set(PAPER_RUNS.values()) <= set(recipe.PRESETS)
    assert set(PAPER_RUNS) == set(recipe.METHODS) == {*WITH_VIEWS, *HIDING}


def test_the_plain_sizes_are_simclrs_and_the_menu_has_the_presets_in_their_order():
    assert [recipe.PRESETS[size] for size in SIZES] == [recipe.PRESETS[f"simclr_{size}"] for size in SIZES]
    assert tuple(recipe.PRESETS) == MENU["families"].presets


@pytest.mark.parametrize("name", [name for name in recipe.PRESETS if not name.startswith("ibot")])
def test_a_presets_objective_is_in_its_name(name):
    objective = recipe.PRESETS[name].loss.objective
    assert name in SIZES or name.startswith(objective)


@pytest.mark.parametrize("method", GUARDS)
def test_a_broken_arm_is_allowed_and_differs_in_the_guard_alone(method):
    from recipes_lib.config import override

    preset = recipe.PRESETS[f"{method}_toy"]
    broken = override(preset, dict(GUARDS[method].changes))
    broken.validate()
    assert broken != preset


def test_all_methods_that_compare_views_share_network_data_views_and_batch():
    toys = [recipe.PRESETS[f"{name}_toy"] for name in WITH_VIEWS if name != "rotation"]
    first = toys[0]
    assert {toy.model.arch for toy in toys} == {"convnet"}
    assert all((toy.data, toy.views, toy.train) == (first.data, first.views, first.train) for toy in toys)


def test_a_resumed_run_of_beit_keeps_the_words_that_it_began_with(tmp_path: Path):
    from recipes_lib.config import override

    small = {"data.train_size": 64, "data.test_size": 8, "train.batch_size": 16, "train.steps": 2, "loss.codes": 4}
    config = override(recipe.PRESETS["beit_toy"], small | {"eval.probes": [], "eval.baselines": "none"})
    result = recipe.RECIPE.run(config, tmp_path / "run")
    from recipes_lib.pretraining import engine

    words = engine.reopen(recipe.RECIPE, result.folder)[1].words
    assert len(torch.unique(words, dim=0)) == 4
