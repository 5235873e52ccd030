# SPDX-License-Identifier: Apache-2.0
"""What the ImageNet-X chapter measures on real annotations."""

import csv
import gzip

import numpy as np
import pytest

from recipes_lib.errors import DataError
from recipes_lib.recipes.imagenet_x import real_study


def test_models_with_one_order_agree_beyond_chance_and_shuffled_ones_do_not():
    rising = np.arange(16.0)
    noise = np.random.default_rng(0).normal(size=(4, 16))
    same, none = real_study.agreement(rising + noise, 0), real_study.agreement(noise, 0)
    assert same["mean_rank_correlation"] > 0.8 > none["mean_rank_correlation"]
    assert 0 < same["null_95"] < 0.5
    assert none["mean_rank_correlation"] < none["null_95"]


def test_rarity_is_a_rank_correlation_with_its_chance():
    prevalence = np.linspace(0.3, 0.01, 16)
    found = real_study.rarity(prevalence, np.stack([np.arange(16.0)] * 2), 0)
    assert found["rank_correlation"] == pytest.approx(-1)
    assert found["null_5"] == pytest.approx(-0.43, abs=0.05)  # Spearman's 5 % quantile of 16 pairs


@pytest.fixture
def table(tmp_path):
    """A crop sweep of three runs at each of two strengths, all factors at .5 but for ``smaller``."""
    columns = ["which", "suite", "model", *real_study.FACTORS, "average"]
    with gzip.open(tmp_path / "model_factor_accuracies.csv.gz", "wt", newline="") as file:
        rows = csv.DictWriter(file, columns)
        rows.writeheader()
        for which in ("top", "multi"):
            for strength, smaller in ((8.0, 0.4), (99.0, 0.6)):
                for run in range(3):
                    row = dict.fromkeys(real_study.FACTORS, 0.5) | {"smaller": smaller, "average": 0.7}
                    rows.writerow({"which": which, "suite": "crop", "model": f"r_crop{strength}_wd0.1_id{run}", **row})
    return tmp_path


def test_a_sweeps_ends_are_told_apart_and_its_parts_are_disjoint(table):
    found = real_study.sweep(table, "crop", 0)
    assert (found["low"]["runs"], found["high"]["runs"]) == (1, 1)
    assert found["low"]["ratio"]["smaller"] == pytest.approx(0.6 / 0.3)
    assert found["high"]["ratio"]["smaller"] == pytest.approx(0.4 / 0.3)
    assert found["high"]["accuracy"]["pose"] == 0.5


def test_without_the_data_the_folder_is_asked_for(monkeypatch):
    monkeypatch.delenv("RECIPES_DATA", raising=False)
    with pytest.raises(DataError, match="RECIPES_DATA"):
        real_study.measure(0)


def test_the_real_figures_are_the_published_ones(recipes_data):
    found = real_study.measure(0)
    assert found["whole"]["ViT"]["texture"]["error_ratio"] == pytest.approx(2.044646, abs=1e-6)
    assert found["whole"]["SimCLR"]["pose"]["n"] == 15064
