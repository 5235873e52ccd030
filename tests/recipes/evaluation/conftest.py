# SPDX-License-Identifier: Apache-2.0
"""Networks of two steps on few images, for the tests of what is measured of them."""

import pytest

from recipes_lib.config import override
from recipes_lib.recipes.evaluation import study, zoo

IMAGES = {"data.train_size": 160, "data.test_size": 130}


@pytest.fixture
def tiny(monkeypatch):
    """Makes all networks of the chapter tiny."""
    whole = zoo.trained_config

    def short(method, seed, changes=None):
        config = whole(method, seed, changes)
        return override(config, {**IMAGES, "train.steps": min(2, config.train.steps)})

    monkeypatch.setattr(zoo, "trained_config", short)
    monkeypatch.setattr(zoo, "LINEAR_EPOCHS", 1)
    monkeypatch.setattr(zoo, "MLP_EPOCHS", 1)
    monkeypatch.setattr(study, "DENSE_STEPS", {name: min(2, steps) for name, steps in study.DENSE_STEPS.items()})
    monkeypatch.setattr(study, "DENSE_TRAIN", 60)
    monkeypatch.setattr(study, "DENSE_TEST", 40)
    monkeypatch.setattr(study, "TRAP_STEPS", 2)
    monkeypatch.setattr(study.traps, "SMALL_SETS", (20, 100))
    monkeypatch.setattr(study.traps, "DRAWS", 10)
    monkeypatch.setattr(study, "HELD_OUT", 0.65)
    monkeypatch.setattr(study.traps, "SETTINGS", ((1, 0.07), (20, 0.07)))
