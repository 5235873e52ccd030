# SPDX-License-Identifier: Apache-2.0
"""The numbers by which runs are compared, on runs and numbers that one can check by hand."""

import json

import numpy as np
import pytest

from recipes_lib.config import dotted, to_dict
from recipes_lib.evaluation.diagnosis import Finding
from recipes_lib.recipes.families.claims import GUARDS
from recipes_lib.recipes.troubleshooting import study

BRIEF = {
    "train.steps": 4,
    "train.checkpoint_every": 4,
    "eval.watch_every": 2,
}


def test_a_run_is_described_by_its_check_the_ends_of_its_curves_and_its_score(tmp_path):
    told = study.describe("few_images", tmp_path, broken=True, also=BRIEF | {"eval.probes": ["knn"]})
    assert (told["found"], told["number"], told["threshold"]) == (1.0, 64, 512.0)
    metrics = study.rows(tmp_path / "few_images-broken")
    assert told["loss"] == metrics[-1]["loss"]
    assert told["spread"] == metrics[-1]["watch_std_embedding"]
    report = json.loads((tmp_path / "few_images-broken" / "report.json").read_text())
    assert told["knn"] == report["scores"]["knn"]["method"]


def test_a_run_that_ended_at_once_is_described_by_its_check_alone(tmp_path):
    told = study.describe("nan", tmp_path, broken=True, also={"train.steps": 4})
    assert told["found"] == 1.0
    assert "knn" not in told


@pytest.mark.distributed
def test_a_method_is_described_by_what_two_processes_do_differently(tmp_path):
    told = study.describe("plain_gather", tmp_path, broken=True)
    assert told["found"] == 1.0
    assert told["loss_apart"] < 1e-4 < 0.01 < told["gradient_apart"]


def test_the_ends_of_curves_are_means_over_a_tenth_and_the_last_watched_numbers():
    metrics = [{"loss": float(step)} for step in range(20)]
    metrics[-1] |= {"watch_rankme": 3.0, "watch_knn": 0.5}
    assert study.curve_ends(metrics) == {"loss_first": 0.5, "loss": 18.5, "rank": 3.0, "watched_knn": 0.5}
    assert study.curve_ends([]) == {}


def test_a_series_has_the_steps_at_which_there_is_a_number():
    metrics = [
        {"step": 0, "watch_knn": 0.1},
        {"step": 1},
        {"step": 2, "watch_knn": None},
        {"step": 3, "watch_knn": 0.3},
    ]
    assert study.series(metrics, "watch_knn") == ([1, 4], [0.1, 0.3])


@pytest.mark.parametrize("name", GUARDS)
def test_a_pair_of_the_census_differs_in_the_guard_alone(name):
    drawn = study.settings(name, seed=5, number=3)
    intact, broken = (study.census_config(name, drawn, seed=5, broken=kind) for kind in (False, True))
    for config in (intact, broken):
        config.validate()
    ours, other = (dotted(to_dict(config)) for config in (intact, broken))
    assert {field for field in ours if ours[field] != other[field]} == set(GUARDS[name].changes)
    assert (ours["train.steps"], ours["train.batch_size"]) == (drawn["steps"], drawn["batch"])
    assert ours["optim.lr"] == drawn["lr"]


def test_settings_depend_on_seed_and_number_and_on_nothing_else():
    drawn = [study.settings("simclr", seed, number) for seed in range(4) for number in range(4)]
    assert drawn == [study.settings("simclr", seed, number) for seed in range(4) for number in range(4)]
    assert len({tuple(each.values()) for each in drawn}) > 4
    assert {each["steps"] for each in drawn} <= set(study.CENSUS_STEPS)


def run(broken, health, fell, rank_fell, alarms=()):
    return {"broken": broken, "health": health, "loss_fell": fell, "rank_fell": rank_fell, "alarms": alarms}


def test_the_census_counts_alarms_and_compares_numbers():
    told = [
        run(True, {"full_collapse": 0.1, "dimensional_collapse": 3.0}, 0.9, True, ["full_collapse"]),
        run(True, {"full_collapse": 2.0, "dimensional_collapse": 1.5}, 0.5, True),
        run(False, {"full_collapse": 4.0, "dimensional_collapse": 1.2}, 0.5, True),
        run(False, {"full_collapse": 5.0, "dimensional_collapse": 4.0}, 0.1, False),
    ]
    found = study.compare(told)
    assert found["found"] == {"doctor": 0.5, "rank_fell": 1.0}
    assert found["false_alarms"] == {"doctor": 0.0, "rank_fell": 0.5}
    assert found["balanced"]["doctor"] == 0.75
    # worst numbers: 0.1 and 1.5 of the broken runs, 1.2 and 4.0 of the intact ones: three of four pairs in order
    assert found["auc"]["doctor"] == 0.75
    assert found["auc"]["full_collapse"] == 1.0
    assert found["auc"]["loss"] == 0.875  # one tie among four pairs
    assert found["balanced"]["loss"] == 0.75


def test_the_loss_may_point_either_way():
    broken = np.array([True, True, False, False])
    for scores in (np.array([3.0, 4.0, 1.0, 2.0]), np.array([1.0, 2.0, 3.0, 4.0])):
        assert study.best_threshold(scores, broken) == 1.0
    assert study.best_threshold(np.array([1.0, 4.0, 2.0, 3.0]), broken) == 0.75
    assert study.best_threshold(np.ones(4), broken) == 0.5
    assert study.auc(np.array([3.0, 4.0, 1.0, 2.0]), broken) == 1.0
    assert study.auc(np.array([1.0, 2.0, 3.0, 4.0]), broken) == 0.0


def test_health_is_a_number_in_thresholds_of_the_checks_that_look_at_features():
    findings = [
        Finding(check="full_collapse", status="found", text="", number=0.05, threshold=0.1),
        Finding(check="lying_loss", status="unknown", text=""),
        Finding(check="slow_input", status="found", text="", number=0.9, threshold=0.3),
    ]
    assert study.health(findings) == {"full_collapse": 0.5}


def test_a_short_census_has_a_pair_for_each_method_and_draw(monkeypatch):
    monkeypatch.setattr(study, "GUARDS", {"simclr": GUARDS["simclr"]})
    monkeypatch.setattr(study, "DRAWS", 1)
    monkeypatch.setattr(study, "CENSUS_STEPS", (52,))
    monkeypatch.setattr(study, "CENSUS_BATCHES", (64,))
    found = study.census(7)
    assert [(each["method"], each["broken"]) for each in found["runs"]] == [("simclr", False), ("simclr", True)]
    assert found["found"]["doctor"] > found["false_alarms"]["doctor"]
    assert set(found["auc"]) == {"doctor", "loss", *study.OF_FEATURES}
    assert json.loads(json.dumps(found)) == found
