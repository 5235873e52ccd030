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

from recipes_lib.factors import annotations, error_ratios, imagenet_x_files, predictions
from recipes_lib.factors.predictions import Predictions

pd = pytest.importorskip("pandas", reason="the toolkit's tables are pandas'")
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


COLUMNS = {"class": "is_correct", "real_class": "is_correct_real", "metaclass": "is_metaclass_correct"}


@pytest.fixture(scope="module", params=["top", "multi"])
def judged(files, request) -> tuple[str, pd.DataFrame]:
    """A kind of mark, and the toolkit's table: a row for each model and image."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        models, _ = peer.load_model_predictions(str(files))
        return request.param, peer.augment_model_predictions(peer.load_annotations(which_factor=request.param), models)


@pytest.mark.parametrize("kind", COLUMNS)
def test_accuracies_averages_and_error_ratios_are_the_toolkits_to_the_bit(known, answers, judged, kind):
    which, rows = judged
    assert tuple(peer.FACTORS) == known.val.factors
    ours = error_ratios.count(answers, known.val, kind)[which]
    table = peer.compute_factor_accuracies(rows, peer.FACTORS, COLUMNS[kind]).loc[list(answers.models)]
    np.testing.assert_array_equal(ours.accuracy, table[peer.FACTORS].to_numpy())
    np.testing.assert_array_equal(ours.average, table["average"].to_numpy())
    np.testing.assert_array_equal(ours.error_ratio, peer.error_ratio(table).to_numpy())


@pytest.mark.parametrize("kind", COLUMNS)
def test_accuracies_within_each_metaclass_are_the_toolkits_to_the_bit(known, answers, judged, kind):
    which, rows = judged
    found = error_ratios.split(answers, known.val, kind).metaclasses
    assert sorted(found) == sorted(peer.METACLASSES)
    table = peer.aggregate.compute_factor_metaclass_accuracies(rows, peer.FACTORS, COLUMNS[kind], peer.METACLASSES)
    for name, parts in found.items():
        theirs = table.xs(name, level="metaclass").loc[list(answers.models)]
        np.testing.assert_array_equal(parts[which].accuracy, theirs[peer.FACTORS].to_numpy())
        np.testing.assert_array_equal(parts[which].average, theirs["average"].to_numpy())


@pytest.mark.parametrize("kind", COLUMNS)
def test_the_mean_over_the_worst_classes_is_the_toolkits(known, answers, judged, kind):
    """Where the last of them is worse than the next class: among equal ones the toolkit's sort takes any."""
    _, rows = judged
    classes = error_ratios.split(answers, known.val, kind).classes
    ordered = np.take_along_axis(classes.accuracy, classes.worst(1000), axis=1)
    for place, model in enumerate(answers.models):
        wide = np.flatnonzero(np.diff(ordered[place]) > 0) + 1  # numbers of classes that are chosen beyond doubt
        for number in (wide[wide <= 100][-1], wide[wide >= 100][0]):
            own = rows[rows["model"] == model]
            theirs = peer.aggregate.worst_k_class_acc(own, k=int(number), error_type=COLUMNS[kind])
            ours = classes.accuracy_over(classes.worst(number))[place]
            assert ours == pytest.approx(theirs[model], abs=1e-12)


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
