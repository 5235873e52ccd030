# SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
import pytest
import torch

from recipes_lib.evaluation.knn import weighted_knn


def angles(*degrees: float) -> torch.Tensor:
    """Unit vectors at these angles from the first axis: their cosine similarities are known."""
    radians = torch.tensor(degrees).deg2rad()
    return torch.stack([radians.cos(), radians.sin()], dim=1)


@pytest.mark.parametrize(("temperature", "winner"), [(0.07, 0), (1.0, 1)])
def test_one_near_neighbour_outvotes_two_far_ones_at_a_low_temperature_only(temperature, winner):
    # by hand: exp(1/.07) = 1.6e6 against 2 exp(.5/.07) = 2.5e3; but e = 2.718 against 2 exp(.5) = 3.297
    train, labels = angles(0, 60, -60), torch.tensor([0, 1, 1])
    accuracy = weighted_knn(train, labels, angles(0), torch.tensor([winner]), k=3, temperature=temperature)
    assert accuracy == 1.0


def test_only_the_k_nearest_vote():
    train, labels = angles(5, 10, 12, 14), torch.tensor([0, 1, 1, 1])
    assert weighted_knn(train, labels, angles(0), torch.tensor([0]), k=1, temperature=1.0) == 1.0
    assert weighted_knn(train, labels, angles(0), torch.tensor([0]), k=3, temperature=1.0) == 0.0


@pytest.mark.parametrize("seed", range(3))
def test_it_equals_the_sum_over_neighbours_written_out_in_numpy(seed):
    rng = np.random.default_rng(seed)
    train, test = rng.normal(size=(60, 5)), rng.normal(size=(40, 5))
    labels, test_labels = rng.integers(0, 4, 60), rng.integers(0, 4, 40)
    right = 0
    for row, label in zip(test, test_labels, strict=True):
        cosine = train @ row / np.linalg.norm(train, axis=1) / np.linalg.norm(row)
        votes = [0.0] * 4
        for neighbour in np.argsort(-cosine)[:7]:
            votes[labels[neighbour]] += math.exp(cosine[neighbour] / 0.2)
        right += int(np.argmax(votes) == label)
    tensors = [torch.from_numpy(array) for array in (train, labels, test, test_labels)]
    assert weighted_knn(*tensors, k=7, temperature=0.2, chunk=16) == right / 40


def test_scaling_a_feature_changes_nothing_and_a_tiny_temperature_does_not_overflow():
    generator = torch.Generator().manual_seed(0)
    train, test = torch.randn(50, 8, generator=generator), torch.randn(30, 8, generator=generator)
    labels, test_labels = torch.arange(50) % 3, torch.arange(30) % 3
    plain = weighted_knn(train, labels, test, test_labels, k=5)
    assert weighted_knn(train * torch.rand(50, 1) * 100, labels, test * 7, test_labels, k=5) == plain
    nearest = weighted_knn(train, labels, test, test_labels, k=1)
    assert weighted_knn(train, labels, test, test_labels, k=5, temperature=1e-3) == nearest


@pytest.mark.parametrize("k", [0, 4])
def test_more_neighbours_than_images_are_refused(k):
    with pytest.raises(ValueError, match=f"k = {k}; it must be in 1 to 3"):
        weighted_knn(angles(0, 1, 2), torch.zeros(3, dtype=torch.long), angles(0), torch.tensor([0]), k=k)
