# SPDX-License-Identifier: Apache-2.0
"""One small run of Sieve, which several files look at and go on from."""

from pathlib import Path

import pytest

from recipes_lib.config import override
from recipes_lib.recipes.sieve import recipe as sieve


@pytest.fixture(scope="session")
def tiny_sieve() -> sieve.Config:
    """The toy, with 24 pairs in three shards, two batches each, and an encoder without weights."""
    small = {
        "data.pool_size": 24,
        "data.per_shard": 8,
        "captioner.images": 32,
        "captioner.steps": 2,
        "captioner.count": 2,
        "captioner.max_length": 6,
        "clip.name": "none",
        "encoder.name": "ngrams",
        "score.batch_size": 5,
        "select.fraction": 0.5,
    }
    return override(sieve.PRESETS["toy"], small)


@pytest.fixture(scope="session")
def whole(tiny_sieve: sieve.Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of it that went through all stages at one go."""
    pytest.importorskip("pyarrow")
    return sieve.RECIPE.run(tiny_sieve, tmp_path_factory.mktemp("sieve") / "whole").folder
