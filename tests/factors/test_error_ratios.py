# SPDX-License-Identifier: Apache-2.0
"""Factor accuracies and error ratios: figures by hand, and the published tables in full, and what must not change them."""

import csv
from dataclasses import replace

import numpy as np
import pytest

from recipes_lib.factors import error_ratios, imagenet_x_files, predictions
from recipes_lib.factors.annotations import Annotations, Metaclasses, Reassessed
from recipes_lib.factors.predictions import Predictions

RIGHT = np.array([1, 0, 1, 1, 0, 1, 1, 0])
NET = Predictions(("net",), (1 - RIGHT)[None].astype(np.int16))


def random_set(images: int = 300, classes: int = 12, models: int = 70) -> tuple[Annotations, Predictions]:
    """Marks, ReaL labels and metaclasses, and more models than a chunk has."""
    draw = np.random.default_rng(0)
    labels = draw.integers(classes, size=images).astype(np.int16)
    offsets = np.concatenate([[0], np.cumsum(draw.integers(4, size=images))])
    known = Annotations(
        np.arange(images).astype(str),
        labels,
        classes,
        tuple("abcde"),
        {"top": np.eye(5, dtype=bool)[draw.integers(5, size=images)], "multi": draw.random((images, 5)) < 0.4},
        {"prototype": draw.random(images) < 0.1},
        Reassessed(draw.integers(classes, size=offsets[-1]), offsets),
        Metaclasses(("x", "y", "other"), draw.integers(3, size=classes)),
    )
    guesses = np.where(draw.random((models, images)) < 0.6, labels, draw.integers(classes, size=(models, images)))
    return known, Predictions(tuple(map(str, range(models))), guesses.astype(np.int16))


def test_the_hand_case_of_the_card(eight):
    found = error_ratios.count(NET, eight)["multi"]
    assert found.average.tolist() == [0.625]
    assert found.accuracy.tolist() == [[0.75, 0.5]]
    np.testing.assert_allclose(found.error_ratio, [[2 / 3, 4 / 3]], rtol=1e-15)
    assert found.prevalence.tolist() == [0.5, 0.25]
    np.testing.assert_allclose(found.shift, [[0.5 / (2 / 3) - 1, 0.5 / (1 / 3) - 1]], rtol=1e-15)


@pytest.mark.parametrize("correctness", ["class", "real_class", "metaclass"])
def test_a_loop_over_models_images_and_factors_counts_the_same(correctness):
    known, guesses = random_set()
    found = error_ratios.count(guesses, known, correctness)

    def is_right(row: int, answer: int) -> bool:
        match correctness:
            case "real_class":
                return answer in known.real.labels[known.real.offsets[row] : known.real.offsets[row + 1]]
            case "metaclass":
                return known.metaclasses.of_class[answer] == known.metaclasses.of_class[known.labels[row]]
        return answer == known.labels[row]

    rows = np.flatnonzero(known.kept)
    for model in (0, 31, 32, 69):  # on both sides of a chunk's end
        right = np.array([is_right(row, guesses.classes[model, row]) for row in rows])
        for kind in ("top", "multi"):
            marks = known.marks[kind][rows]
            assert found[kind].images == len(rows)
            assert found[kind].right[model] == right.sum()
            assert found[kind].with_factor.tolist() == marks.sum(axis=0).tolist()
            assert found[kind].right_with_factor[model].tolist() == marks[right].sum(axis=0).tolist()
    np.testing.assert_array_equal(
        error_ratios.right(guesses.classes[:1], known, correctness)[0, rows].sum(), found["top"].right[0]
    )


def test_the_order_of_rows_and_what_is_left_out_make_no_difference():
    known, guesses = random_set()
    order = np.random.default_rng(1).permutation(len(known.names))
    other = replace(
        known,
        names=known.names[order],
        labels=known.labels[order],
        marks={kind: marks[order] for kind, marks in known.marks.items()},
        left_out={"prototype": known.left_out["prototype"][order]},
        real=None,
    )
    answers = guesses.classes[:, order].copy()
    answers[:, ~other.kept] = 0
    before, after = (
        error_ratios.count(*pair)["multi"] for pair in ((guesses, known), (replace(guesses, classes=answers), other))
    )
    np.testing.assert_array_equal(before.error_ratio, after.error_ratio)


def test_a_factor_that_all_images_have_has_ratio_1_and_one_factor_rows_average_to_1():
    known, guesses = random_set()
    everywhere = replace(known, marks={"top": known.marks["top"], "all": np.ones_like(known.marks["top"])})
    found = error_ratios.count(guesses, everywhere)
    np.testing.assert_array_equal(found["all"].error_ratio, 1)
    top = found["top"]
    weighted = (top.with_factor * top.error_ratio).sum(axis=1) / top.with_factor.sum()
    np.testing.assert_allclose(weighted, 1, rtol=1e-12)
    np.testing.assert_allclose(top.shift, top.error_ratio - 1, rtol=1e-9, atol=1e-12)


def test_what_is_not_defined_is_nan_and_a_model_that_is_always_wrong_is_not_lost(eight):
    rare = replace(eight, marks={"multi": eight.marks["multi"] & [True, False]})
    answers = Predictions(("right", "wrong"), np.array([[0] * 8, [1] * 8], np.int16))
    found = error_ratios.count(answers, rare)["multi"]
    np.testing.assert_array_equal(found.accuracy, [[1, np.nan], [0, np.nan]])
    np.testing.assert_array_equal(found.error_ratio, [[np.nan, np.nan], [1, np.nan]])


def test_decided_images_alone_count_where_that_is_asked_for():
    known, _ = random_set()
    has_labels = np.diff(known.real.offsets) > 0
    named = known.metaclasses.of_class[known.labels] != 2
    for kind, expected in (
        ("class", known.kept),
        ("real_class", known.kept & has_labels),
        ("metaclass", known.kept & named),
    ):
        np.testing.assert_array_equal(error_ratios.counting(known, kind, "decided"), expected)
        np.testing.assert_array_equal(error_ratios.counting(known, kind), known.kept)


@pytest.mark.parametrize("correctness", ["class", "real_class", "metaclass"])
def test_a_split_counts_each_metaclass_and_each_class_as_if_it_were_alone(correctness):
    known, guesses = random_set()
    for kept in (error_ratios.counting(known, correctness, "decided"), known.kept):
        found = error_ratios.split(guesses, known, correctness, rows=kept)
        right = error_ratios.right(guesses.classes, known, correctness)
        assert list(found.metaclasses) == ["x", "y", "other"]
        for place, parts in enumerate(found.metaclasses.values()):
            rows = kept & (known.metaclasses.of_class[known.labels] == place)
            same(parts, error_ratios.count(guesses, known, correctness, rows=rows))
        same(found.whole, error_ratios.count(guesses, known, correctness, rows=kept))
        for label in range(known.classes):
            rows = kept & (known.labels == label)
            assert found.classes.images[label] == rows.sum()
            np.testing.assert_array_equal(found.classes.right[:, label], right[:, rows].sum(axis=1))


def same(one: dict[str, error_ratios.Counts], other: dict[str, error_ratios.Counts]) -> None:
    assert one.keys() == other.keys()
    for kind, counts in one.items():
        for name in ("images", "with_factor", "right", "right_with_factor"):
            np.testing.assert_array_equal(getattr(counts, name), getattr(other[kind], name))


def test_without_metaclasses_or_images_a_split_has_none_of_them(eight):
    found = error_ratios.split(NET, eight)
    assert found.metaclasses == {}
    same(found.whole, error_ratios.count(NET, eight))
    nothing = error_ratios.split(NET, eight, rows=np.zeros(8, bool))
    assert np.isnan(nothing.whole["multi"].average).all()
    assert nothing.classes.images.sum() == nothing.classes.right.sum() == nothing.classes.worst(3).size == 0
    assert np.isnan(nothing.classes.accuracy_over(nothing.classes.worst(3))).all()


def test_the_worst_classes_are_of_those_that_have_images_and_large_ones_weigh_more():
    classes = error_ratios.ClassCounts(np.array([10, 0, 4, 20, 2]), np.array([[5, 0, 1, 10, 2], [0, 0, 4, 20, 0]]))
    np.testing.assert_array_equal(classes.worst(3), [[2, 0, 3], [0, 4, 2]])
    assert classes.accuracy_over(classes.worst(2)).tolist() == [6 / 14, 0]
    assert classes.worst(100).shape == (2, 4)
    np.testing.assert_array_equal(classes.accuracy_over(classes.worst(100)), [18 / 36, 24 / 36])


def test_what_does_not_fit_together_is_refused(eight):
    with pytest.raises(ValueError, match="7 images for 8 annotated"):
        error_ratios.count(Predictions(("net",), np.zeros((1, 7), np.int16)), eight)
    with pytest.raises(ValueError, match="'metaclass'; these annotations allow: class"):
        error_ratios.count(NET, eight, "metaclass")
    with pytest.raises(ValueError, match="7 images for 8 annotated"):
        error_ratios.split(Predictions(("net",), np.zeros((1, 7), np.int16)), eight)


# real data


@pytest.fixture(scope="module")
def real(recipes_data):
    path = recipes_data / "imagenet_x" / "imagenet_x_val.npz"
    known = imagenet_x_files.read(path).val
    return known, predictions.read([path], known)


def test_all_384_golden_figures_agree_to_the_last_printed_digit(real, recipes_data):
    known, guesses = real
    counts = {kind: error_ratios.count(guesses, known, kind) for kind in error_ratios.allowed(known)}
    with (recipes_data / "imagenet_x" / "golden_error_ratios.csv").open(newline="") as file:
        golden = list(csv.DictReader(file))
    assert len(golden) == 384
    for row in golden:
        found = counts[row["correctness"]][row["which"]]
        model, factor = guesses.models.index(row["model"]), known.factors.index(row["factor"])
        assert int(row["n"]) == found.with_factor[factor]
        figures = found.accuracy[model, factor], found.error_ratio[model, factor], found.average[model]
        assert [f"{x:.12g}" for x in figures] == [row["accuracy"], row["error_ratio"], row["average_accuracy"]]


def test_without_undecided_images_the_averages_are_the_cards(real):
    known, guesses = real
    for kind, expected in (("real_class", {"ViT": 0.830843, "ResNet50": 0.819082}), ("metaclass", {"ViT": 0.893225})):
        found = error_ratios.count(guesses, known, kind, rows=error_ratios.counting(known, kind, "decided"))["top"]
        for model, value in expected.items():
            assert found.average[guesses.models.index(model)] == pytest.approx(value, abs=5e-7)
