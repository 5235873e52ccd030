# SPDX-License-Identifier: Apache-2.0
import dataclasses

import pytest

from recipes_lib import recipes
from recipes_lib.claim import Arm, Measurement, Metric
from recipes_lib.claims.fingerprint import compare, fingerprint, takers
from recipes_lib.errors import Interrupted

STORED = {"losses": [4.0, 3.9, 3.8], "knn": 0.5}


def test_a_fingerprint_is_the_first_three_losses_and_a_probe(fake):
    assert fingerprint(Arm(recipe="fake", changes={"optim.lr": 0.01, "train.seed": 2})) == {
        "losses": pytest.approx([3.98, 3.88, 3.78]),
        "knn": pytest.approx(0.62),
    }


def test_a_fingerprint_takes_three_steps_of_an_arm_whatever_its_length(fake):
    assert len(fingerprint(Arm(recipe="fake", changes={"train.steps": 500}))["losses"]) == 3


def test_another_arm_has_another_fingerprint(fake):
    marks = [fingerprint(Arm(recipe="fake", changes={"optim.lr": lr})) for lr in (0.01, 0.002)]
    assert compare(*marks)


def test_equal_fingerprints_and_last_bits_are_no_difference():
    assert compare(STORED, STORED) == []
    assert compare(STORED, {"losses": [4.003, 3.9, 3.8], "knn": 0.52}) == []
    assert compare({**STORED, "losses": [0.0118]}, {**STORED, "losses": [0.01187]}) == []


@pytest.mark.parametrize(
    ("fresh", "line"),
    [
        ({"losses": [4.0, 3.91, 3.8], "knn": 0.5}, "losses[1] was 3.9 and is 3.91"),
        ({"losses": [4.0, 3.9, float("nan")], "knn": 0.5}, "losses[2] was 3.8 and is nan"),
        ({"losses": [4.0, 3.9], "knn": 0.5}, "3 losses are stored, 2 were made"),
        ({"losses": [4.0, 3.9, 3.8]}, "knn is stored and was not made"),
        ({**STORED, "rms": 1.0}, "rms was made and is not stored"),
        ({"losses": [4.0, 3.9, 3.8], "knn": 0.54}, "knn was 0.5 and is 0.54"),
    ],
)
def test_what_moved_is_one_line(fresh, line):
    assert compare(STORED, fresh) == [line]


def test_a_stop_does_not_advise_to_resume_a_folder_that_is_gone(fake):
    def stopped(config, out):
        raise Interrupted("Go on: recipes resume /gone")

    fake.recipe.run = stopped
    with pytest.raises(Interrupted, match="Nothing was changed"):
        fingerprint(Arm(recipe="fake"))


def test_a_measurement_is_marked_by_a_function_by_an_arm_of_any_recipe_or_not_at_all(fake, monkeypatch):
    asked = []
    monkeypatch.setattr(recipes, "named", lambda name: asked.append(name) or fake.recipe)
    fake.change(
        arms={},
        claims=(dataclasses.replace(fake.chapter.claims[0], ours=Metric("own", "x"), control=Metric("arm", "x")),),
        measurements={
            "own": Measurement("a:b", fingerprint=f"{__name__}:mark"),
            "arm": Measurement("a:b", fingerprint=Arm(recipe="other", changes={"optim.lr": 0.01, "train.seed": 2})),
            "none": Measurement("a:b"),
        },
        shown=("none",),
    )
    found = {name: take() for name, take in takers(fake.chapter).items()}
    assert found == {
        "own": {"rms": 2.0},
        "arm": {"losses": pytest.approx([3.98, 3.88, 3.78]), "knn": pytest.approx(0.62)},
    }
    assert asked == ["other"]


def mark() -> dict[str, float]:
    """A fingerprint of its own."""
    return {"rms": 2.0}


def test_the_values_of_any_series_are_compared_by_their_size_and_single_numbers_by_their_difference():
    stored = {"variances": [100.0, 1.0], "score": 100.0}
    assert compare(stored, {"variances": [100.05, 1.0], "score": 100.02}) == []
    assert compare(stored, {"variances": [100.2, 1.0], "score": 100.04}) == [
        "variances[0] was 100 and is 100.2",
        "score was 100 and is 100",
    ]
