# SPDX-License-Identifier: Apache-2.0
"""Parity with the official toolkit ``imagenet-x``: counts are whole numbers, so every figure is equal to the bit.

The annotations are those inside the installed package; predictions are four real models' with
``RECIPES_DATA``, and drawn without.
"""

import os
import warnings
from pathlib import Path

import numpy as np
import pytest

from recipes_lib.analysis import annotations, factors, imagenet_x_files, predictions
from recipes_lib.analysis.predictions import Predictions

peer = pytest.importorskip("imagenet_x", reason="imagenet-x is not installed: pip install '.[dev]'")


@pytest.fixture(scope="module")
def known():
    return imagenet_x_files.read(Path(peer.__file__).parent)


@pytest.fixture(scope="module")
def answers(known) -> Predictions:
    """Real models' where they are, else one that is right on 0.7 of the images and on many neighbouring classes."""
    if place := os.environ.get("RECIPES_DATA"):
        return predictions.read([Path(place, "imagenet_x", "imagenet_x_val.npz")], known.val)
    labels, draw = known.val.labels, np.random.default_rng(0)
    near = np.clip(labels + draw.integers(-3, 4, size=labels.shape), 0, 999)
    drawn = np.where(draw.random(labels.shape) < 0.7, labels, near).astype(np.int16)
    return Predictions(("drawn",), drawn[None])


@pytest.fixture(scope="module")
def files(known, answers, tmp_path_factory) -> Path:
    """The predictions as the toolkit takes them: a CSV file a model, in the order of its own list."""
    folder = tmp_path_factory.mktemp("predictions")
    for model, classes in zip(answers.models, answers.classes, strict=True):
        order = np.argsort(known.val.labels, kind="stable")
        ones = np.ones(len(order), np.float32)
        predictions.write(folder / f"{model}.csv", known.val.names[order].tolist(), classes[order], ones)
    return folder


@pytest.mark.parametrize("which", ["top", "multi"])
def test_accuracies_averages_and_error_ratios_are_the_toolkits_to_the_bit(known, answers, files, which):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        models, _ = peer.load_model_predictions(str(files))
        rows = peer.augment_model_predictions(peer.load_annotations(which_factor=which), models)
        columns = {"class": "is_correct", "real_class": "is_correct_real", "metaclass": "is_metaclass_correct"}
        theirs = {kind: peer.compute_factor_accuracies(rows, peer.FACTORS, column) for kind, column in columns.items()}
    assert tuple(peer.FACTORS) == known.val.factors
    for kind, table in theirs.items():
        ours = factors.count(answers, known.val, kind)[which]
        table = table.loc[list(answers.models)]
        np.testing.assert_array_equal(ours.accuracy, table[peer.FACTORS].to_numpy())
        np.testing.assert_array_equal(ours.average, table["average"].to_numpy())
        np.testing.assert_array_equal(ours.error_ratio, peer.error_ratio(table).to_numpy())


def test_its_training_images_are_read(known):
    assert known.train.kept.sum() == annotations.VERSION.train
    assert (known.train.marks["top"].sum(axis=1) <= 1).all()
    assert not (known.train.marks["top"] & ~known.train.marks["multi"]).any()


def test_the_compact_file_says_the_same(known, recipes_data):
    compact = imagenet_x_files.read(recipes_data / "imagenet_x")
    for ours, theirs in zip(known, compact, strict=True):
        for kind in ("top", "multi"):
            np.testing.assert_array_equal(ours.marks[kind], theirs.marks[kind])
        np.testing.assert_array_equal(ours.names, theirs.names)
        np.testing.assert_array_equal(ours.labels, theirs.labels)
    np.testing.assert_array_equal(known.val.kept, compact.val.kept)
    np.testing.assert_array_equal(known.val.real.labels, compact.val.real.labels)
    np.testing.assert_array_equal(known.val.metaclasses.of_class, compact.val.metaclasses.of_class)
