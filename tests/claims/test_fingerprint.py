# SPDX-License-Identifier: Apache-2.0
import pytest

from recipes_lib.claims.fingerprint import compare, fingerprint
from recipes_lib.errors import Interrupted

STORED = {"losses": [4.0, 3.9, 3.8], "knn": 0.5}


def test_a_fingerprint_is_the_first_three_losses_and_a_probe(fake):
    assert fingerprint("fake", "toy", {"optim.lr": 0.01, "train.seed": 2}) == {
        "losses": pytest.approx([3.98, 3.88, 3.78]),
        "knn": pytest.approx(0.62),
    }


def test_a_fingerprint_takes_three_steps_of_an_arm_whatever_its_length(fake):
    assert len(fingerprint("fake", "toy", {"train.steps": 500})["losses"]) == 3


def test_another_arm_has_another_fingerprint(fake):
    marks = [fingerprint("fake", "toy", {"optim.lr": lr}) for lr in (0.01, 0.002)]
    assert compare(*marks)


def test_equal_fingerprints_and_last_bits_are_no_difference():
    assert compare(STORED, STORED) == []
    assert compare(STORED, {"losses": [4.003, 3.9, 3.8], "knn": 0.52}) == []
    assert compare({**STORED, "losses": [0.0118]}, {**STORED, "losses": [0.01187]}) == []


@pytest.mark.parametrize(
    ("fresh", "line"),
    [
        ({"losses": [4.0, 3.91, 3.8], "knn": 0.5}, "the loss of step 1 was 3.9 and is 3.91"),
        ({"losses": [4.0, 3.9, float("nan")], "knn": 0.5}, "the loss of step 2 was 3.8 and is nan"),
        ({"losses": [4.0, 3.9], "knn": 0.5}, "3 losses are stored, 2 were made"),
        ({"losses": [4.0, 3.9, 3.8], "knn": 0.54}, "the k-NN score after 3 steps was 0.5 and is 0.54"),
    ],
)
def test_what_moved_is_one_line(fresh, line):
    assert compare(STORED, fresh) == [line]


def test_a_stop_does_not_advise_to_resume_a_folder_that_is_gone(fake):
    def stopped(config, out):
        raise Interrupted("Go on: recipes resume /gone")

    fake.recipe.run = stopped
    with pytest.raises(Interrupted, match="Nothing was changed"):
        fingerprint("fake", "toy", {})
