# SPDX-License-Identifier: Apache-2.0
"""A step on two processes is compared with one: a healthy method agrees, and the two classic faults do not."""

from functools import partial
from pathlib import Path

import pytest
from torch import nn

from recipes_lib import recipes
from recipes_lib.config import override
from recipes_lib.pretraining import two_ranks
from recipes_lib.recipes.families import recipe as families
from recipes_lib.recipes.troubleshooting.pathologies import recipe_of
from recipes_lib.training import folder as run_folder

pytestmark = pytest.mark.distributed

CONFIG = override(
    families.PRESETS["simclr_toy"],
    {
        "data.name": "digits",
        "data.image_size": 16,
        "views.image_size": 16,
        "data.train_size": 64,
        "data.test_size": 16,
        "train.batch_size": 32,
        "train.steps": 2,
    },
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder without a checkpoint: the first step needs the config alone."""
    folder = tmp_path_factory.mktemp("two") / "run"
    run_folder.RunFolder.create_or_continue(folder, "families", CONFIG).unlock()
    return folder


def test_two_processes_take_the_step_of_one(run):
    finding = two_ranks.compare(partial(recipe_of, "plain_gather", broken=False), run)
    assert finding.status == "healthy", finding.line
    assert finding.number < 1e-3


@pytest.mark.parametrize("name", ["plain_gather", "local_batch_norm"])
def test_a_collective_without_gradient_and_statistics_per_device_are_found(run, name):
    finding = two_ranks.compare(partial(recipe_of, name, broken=True), run)
    assert finding.status == "found", finding.line
    assert "carries no gradient, or batch statistics are per device" in finding.text


def test_what_cannot_be_computed_is_said_and_not_raised(tmp_path):
    job = recipes.named("sieve")
    folder = run_folder.RunFolder.create_or_continue(tmp_path / "run", "sieve", job.presets["toy"])
    folder.unlock()
    finding = two_ranks.compare(partial(recipes.that_trained, folder.path), folder.path)
    assert finding.status == "unknown"
    assert "trains no backbone" in finding.text


def test_only_parts_without_weights_and_statistics_are_switched_off():
    module = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3, affine=False), nn.Dropout(0.5)).train()
    two_ranks._switch_off_draws(module)
    assert [part.training for part in module] == [True, True, False]
