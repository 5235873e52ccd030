# SPDX-License-Identifier: Apache-2.0
"""The cost of a step of each method, in units of SimCLR's."""

from dataclasses import replace

import pytest

from recipes_lib.config import override
from recipes_lib.data.load import load
from recipes_lib.pretraining.scoring import DATA_SEED
from recipes_lib.recipes.families import recipe, study


@pytest.fixture
def few(monkeypatch):
    """Four methods, few images, one timed step."""
    names = ("simclr", "byol", "mae", "beit")
    data = load(replace(recipe.PRESETS["toy"].data, train_size=64, test_size=8), DATA_SEED)
    monkeypatch.setattr(recipe, "METHODS", {name: recipe.METHODS[name] for name in names})
    small = {f"{name}_toy": override(recipe.PRESETS[f"{name}_toy"], {"train.batch_size": 16}) for name in names}
    monkeypatch.setattr(recipe, "PRESETS", recipe.PRESETS | small | {"toy": small["simclr_toy"]})
    monkeypatch.setattr(study, "load", lambda *_: data)
    monkeypatch.setattr(study, "REPEATS", 1)


def test_costs_are_relative_to_simclrs(few):
    found = study.cost(0)
    assert found["cost"]["simclr"] == found["time"]["simclr"] == 1
    assert set(found["cost"]) == set(found["time"]) == {"simclr", "byol", "mae", "beit"}
    # BYOL's teacher adds a forward pass to SimCLR's forward and backward pass, which is twice as much: 4 / 3
    assert found["cost"]["byol"] == pytest.approx(4 / 3, abs=0.05)
    assert found["cost"]["mae"] < 0.5
    assert min(found["time"].values()) > 0


def test_operations_are_the_same_at_each_call(few):
    assert study.cost(0)["cost"] == study.cost(1)["cost"]
