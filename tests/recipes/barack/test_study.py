# SPDX-License-Identifier: Apache-2.0
"""The chapter's measurements, on fewer points and steps than it uses."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from recipes_lib.errors import DataError
from recipes_lib.recipes.barack import study, vectors
from recipes_lib.recipes.barack.claims import CHAPTER
from recipes_lib.recipes.barack.vectors import Options, with_arm


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few points, few steps and few draws."""
    for name, value in {
        "POINTS": 400,
        "TEST_POINTS": 400,
        "AGREE": 0.9,
        "DRAWS": 1,
        "VALIDATION": 300,
        "BOUND_POINTS": (300, 600),
        "DECAYS": (0.0, 0.02),
    }.items():
        monkeypatch.setattr(study, name, value)
    train = vectors.train
    monkeypatch.setattr(vectors, "train", lambda some, options: train(some, replace(options, steps=10)))
    monkeypatch.setattr(study, "toy", lambda seed, count=400, toy=study.toy: toy(seed, count))


@pytest.mark.parametrize("name", ["arms", "labels", "points", "bounds", "validation"])
def test_a_measurement_has_every_number_that_a_claim_reads(name, short):
    report = getattr(study, name)(0)
    read = [metric for claim in CHAPTER.claims for metric in (claim.ours, claim.control) if metric.arm == name]
    assert read
    for metric in read:
        if name == "bounds":  # of other sizes here
            metric = replace(metric, path=metric.path.replace("16000", "600").replace("1000", "300"))
        assert 0 <= metric.read(report) <= 1


def test_a_percent_is_named_without_a_dot():
    assert [study.name_of(share) for share in study.SHARES] == ["0p5", "1", "2", "5", "10", "33"]


def test_the_bound_is_above_the_error_and_falls_with_labels():
    train, _, held_out = study.toy(0, 1500)
    options = with_arm(Options(steps=200), "barack", share=0.1)
    trained = vectors.train(train, options)
    error = 1 - vectors.evaluate(trained.network, held_out).worst
    found = [study.bound(trained, held_out, count, options) for count in (1000, 8000)]
    assert error < found[1] < found[0] <= 1


def test_the_fingerprint_is_the_same_twice():
    first = study.fingerprint()
    assert first == study.fingerprint()
    assert len(first["weights"]) == len(study.ARMS)
    assert len(set(first["weights"])) > 8
    assert math.isfinite(first["accuracy"])


def test_adult_has_the_official_groups_and_no_input_that_tells_the_sex(recipes_data: Path):
    train, test = study.adult_sets()
    assert train.groups.bincount().tolist() == [9592, 15128, 1179, 6662]
    assert test.groups.bincount().tolist() == [4831, 7604, 590, 3256]
    assert train.inputs.shape[1] == test.inputs.shape[1] == 83
    assert train.inputs.isfinite().all()
    relation = torch.corrcoef(torch.cat([train.inputs.T, train.attributes[None].float()]))[-1, :-1].abs()
    assert relation.max() < 0.5  # relationship, with husband and wife, would be at 0.8


def test_without_adult_the_way_out_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("RECIPES_DATA", str(tmp_path))
    with pytest.raises(DataError, match=r"Adult is read from RECIPES_DATA/adult/adult_train\.csv\.gz"):
        study.adult(0)
