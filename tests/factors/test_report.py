# SPDX-License-Identifier: Apache-2.0
"""The report of any factors: the shape that scripts read, and figures that depend on nothing but their own model."""

import json
from dataclasses import replace

import numpy as np
import pytest

from recipes_lib.factors import error_ratios
from recipes_lib.factors.annotations import Annotations, Metaclasses
from recipes_lib.factors.predictions import Predictions
from recipes_lib.factors.report import factor_report
from recipes_lib.factors.report_json import MOST_TABLES, as_json

FACTORS = ("dark", "small", "rare")
MODELS = ("a", "b", "c")


@pytest.fixture
def known() -> Annotations:
    """Errors are three times as frequent where an image is dark; no image that counts is rare."""
    draw = np.random.default_rng(0)
    marks = draw.random((4000, 3)) < (0.3, 0.1, 0)
    left_out = np.zeros(4000, bool)
    left_out[:100] = marks[:100, 2] = True
    labels = draw.integers(10, size=4000).astype(np.int16)
    return Annotations(np.arange(4000).astype(str), labels, 10, FACTORS, {"multi": marks}, {"prototype": left_out})


@pytest.fixture
def answers(known) -> Predictions:
    draw = np.random.default_rng(1)
    wrong = draw.random((3, 4000)) < np.where(known.marks["multi"][:, 0], 0.45, 0.15)
    return Predictions(MODELS, (known.labels + wrong * draw.integers(1, 10, size=(3, 4000))) % 10)


def test_the_report_has_the_shape_that_scripts_read_and_null_for_what_is_not_defined(known, answers):
    found = json.loads(json.dumps(as_json(factor_report(known, answers)), allow_nan=False))
    assert list(found["models"]) == list(MODELS)
    cell = found["models"]["a"]["multi"]["class"]
    assert list(cell) == list(FACTORS)
    assert list(cell["dark"]) == ["n", "accuracy", "error_ratio", "low", "high"]
    assert cell["rare"] == {"n": 0, "accuracy": None, "error_ratio": None, "low": None, "high": None}
    assert cell["dark"]["low"] < cell["dark"]["error_ratio"] < cell["dark"]["high"]
    assert cell["dark"]["low"] > 1.5
    assert found["ranking"]["multi"]["class"]["a"][0] == "dark"
    assert found["images"] == {"all": 4000, "left_out": {"prototype": 100}, "counted": {"class": 3900}}
    assert "100 of 4,000 images count for nothing: prototype." in found["notes"]
    assert "No image has the factor rare (multi): its metrics are null." in found["notes"]


def test_a_models_figures_do_not_depend_on_the_others(known, answers):
    alone = replace(answers, models=("b",), classes=answers.classes[1:2])
    for method in ("bootstrap", "wilson"):
        many, one = (as_json(factor_report(known, found, interval=method)) for found in (answers, alone))
        assert many["models"]["b"] == one["models"]["b"]
    assert as_json(factor_report(known, alone, seed=1))["models"]["b"] != one["models"]["b"]
    assert "consistency" not in one


def test_tests_are_adjusted_over_models_and_factors(known, answers):
    table = factor_report(known, answers).tables["multi"]["class"]
    assert (table.holm[:, 0] < 1e-20).all()
    assert (table.holm >= table.fdr).all() or np.isnan(table.holm).any()
    known_tests = ~np.isnan(table.p)
    assert known_tests.sum() == 6
    assert (table.p[known_tests] <= table.fdr[known_tests]).all()
    assert (table.fdr[known_tests] <= table.holm[known_tests]).all()


def test_training_images_give_the_shift_of_each_factor(known, answers):
    marks = np.random.default_rng(2).random((3000, 3)) < (0.3, 0.3, 0.1)
    train = Annotations(np.arange(3000).astype(str), np.zeros(3000, np.int16), 10, FACTORS, {"multi": marks})
    found = as_json(factor_report(known, answers, train=train))
    shares = found["prevalence"]["multi"]
    assert shares["small"]["train_over_val"] == pytest.approx(3, abs=0.5)
    assert shares["small"]["holm"] < 1e-6 < shares["dark"]["holm"]
    assert shares["rare"]["train_over_val"] is None
    assert set(found["train_share_correlation"]["multi"]["class"]) == set(MODELS)
    with pytest.raises(ValueError, match="factors in training"):
        factor_report(known, answers, train=replace(train, factors=("x", "y", "z")))


def test_several_models_have_spread_consistency_and_groups(known, answers):
    wide = replace(known, marks={"multi": known.marks["multi"] | (np.arange(4000) % 7 == 0)[:, None]})
    groups = {"a": {"kind": "cnn"}, "b": {"kind": "cnn"}, "c": {"kind": "vit"}}
    found = as_json(factor_report(wide, answers, groups=groups))
    assert found["spread"]["multi"]["class"]["dark"]["above_1"] == 1
    agreement = found["consistency"]["multi"]["class"]
    assert (agreement["models"], agreement["factors"], len(agreement["pairs"])) == (3, 3, 3)
    test = found["groups"]["multi"]["class"]["kind"]["dark"]
    assert test["models"] == {"cnn": 2, "vit": 1}
    assert test["p"] is None  # one vit has no variance
    with pytest.raises(ValueError, match=r"models without a group: \['c'\]"):
        factor_report(known, answers, groups={"a": {}, "b": {}})


def test_perfect_and_hopeless_models_are_noted(known, answers):
    odd = replace(answers, models=("all", "none"), classes=np.stack([known.labels, (known.labels + 5) % 10]))
    notes = factor_report(known, odd).notes
    assert "No error by all (class): error ratios are null." in notes
    assert any(note.startswith("Accuracy below 1 %: none.") for note in notes)


def test_few_images_are_noted(known, answers):
    few = replace(known, marks={"multi": known.marks["multi"] & (np.arange(4000) < 500)[:, None]})
    notes = factor_report(few, answers).notes
    assert any("fewer than 100 images (multi), to be read with care: small (" in note for note in notes)


# metaclasses and classes


@pytest.fixture
def coarse(known) -> Annotations:
    return replace(known, metaclasses=Metaclasses(("dog", "other"), np.array([0] * 4 + [1] * 6)))


def test_figures_within_a_metaclass_are_those_of_its_images_alone(coarse, answers):
    found = json.loads(json.dumps(as_json(factor_report(coarse, answers)), allow_nan=False))
    without = as_json(factor_report(replace(coarse, metaclasses=None), answers))
    assert all(found["models"][name]["multi"]["class"] == without["models"][name]["multi"]["class"] for name in MODELS)
    dogs = coarse.kept & (coarse.labels < 4)
    counts = error_ratios.count(answers, coarse, rows=dogs)["multi"]
    cell = found["metaclasses"]["b"]["multi"]["class"]["dog"]
    assert list(cell) == list(FACTORS)
    assert cell["dark"] == {
        "n": (dogs & coarse.marks["multi"][:, 0]).sum(),
        "accuracy": counts.accuracy[1, 0],
        "error_ratio": counts.error_ratio[1, 0],
    }
    assert cell["rare"] == {"n": 0, "accuracy": None, "error_ratio": None}
    assert found["metaclass_average"]["b"]["class"]["dog"] == counts.average[1]
    mean = found["metaclass_means"]["multi"]["class"]["dog"]["dark"]
    assert mean["n"] == cell["dark"]["n"]
    assert mean["error_ratio"] == pytest.approx(counts.error_ratio[:, 0].mean())


def test_annotations_without_metaclasses_have_no_figures_of_them(known, answers):
    assert not [name for name in as_json(factor_report(known, answers)) if name.startswith("metaclass")]


def test_the_worst_classes_are_named_and_no_more_than_there_are(known, answers):
    classes = np.arange(3900) % 130  # of 30 images, of which the first classes miss all, then half
    labels = np.concatenate([np.zeros(100, np.int16), classes]).astype(np.int16)
    many = replace(known, labels=labels, classes=200)
    wrong = np.concatenate([np.ones(100, bool), (classes < 40) | ((classes < 90) & (np.arange(3900) // 130 % 2 == 0))])
    given = replace(answers, models=("a",), classes=((labels + wrong) % 200)[None])
    worst = as_json(factor_report(many, given))["worst_classes"]["a"]["class"]
    assert (worst["classes"], worst["n"]) == (100, 3000)
    assert worst["accuracy"] == (50 * 15 + 10 * 30) / 3000
    assert list(worst["listed"])[:41] == [str(label) for label in range(41)]
    assert worst["listed"]["39"] == {"n": 30, "accuracy": 0}
    assert worst["listed"]["40"] == {"n": 30, "accuracy": 0.5}
    few = as_json(factor_report(known, answers))
    assert few["worst_classes"]["b"]["class"]["classes"] == 10
    assert few["worst_classes"]["b"]["class"]["accuracy"] == few["average"]["b"]["class"]
    assert {cell["models"] for cell in few["worst_classes_shared"]["class"].values()} == {3}


def test_of_many_models_means_and_what_they_share_are_told(coarse, answers):
    def report(models: int) -> dict:
        names = tuple(f"net-{number}" for number in range(models))
        many = replace(answers, models=names, classes=np.repeat(answers.classes[:1], models, axis=0))
        return as_json(factor_report(coarse, many, interval="wilson"))

    few, many = report(MOST_TABLES), report(MOST_TABLES + 1)
    assert "metaclasses" in few
    assert "metaclasses" not in many
    assert many["metaclass_means"]["multi"]["class"]["dog"]["dark"] == pytest.approx(
        few["metaclasses"]["net-0"]["multi"]["class"]["dog"]["dark"]
    )
    assert len(many["metaclass_average"]) == len(many["worst_classes"]) == MOST_TABLES + 1
    assert "listed" in few["worst_classes"]["net-0"]["class"]
    assert "listed" not in many["worst_classes"]["net-0"]["class"]
    assert {cell["models"] for cell in many["worst_classes_shared"]["class"].values()} == {MOST_TABLES + 1}
