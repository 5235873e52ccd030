# SPDX-License-Identifier: Apache-2.0
"""Accuracy by group: golden values 5 and 6 of the BARACK card, the quality of predicted groups, and the error bound."""

import pytest
import torch
from scipy import stats
from sklearn.metrics import precision_score, recall_score

from recipes_lib.evaluation import group_scores
from recipes_lib.evaluation.group_scores import GroupQuality, diluted, error_bound, group_accuracy, group_quality


def bits(text: str) -> torch.Tensor:
    return torch.tensor([int(digit) for digit in text])


def test_case_5_the_worst_group_and_the_average_weighted_as_the_training_set():
    y, a, predicted = bits("00011111"), bits("00101110"), bits("00111100")
    found = group_accuracy(predicted == y, 2 * y + a, 4)
    torch.testing.assert_close(found.accuracy, torch.tensor([1, 0, 0.5, 2 / 3], dtype=torch.float64))
    assert (found.worst, found.average) == (0.0, 0.625)
    assert found.weighted_by(torch.tensor([3, 1, 1, 3])) == pytest.approx(0.6875, abs=1e-12)


def test_case_6_a_predicted_group_has_the_losses_of_its_true_members():
    mixture = torch.tensor([[0.95, 0.05], [0.2, 0.8]], dtype=torch.float64)
    found = diluted(mixture, torch.tensor([0.2, 2.0], dtype=torch.float64))
    torch.testing.assert_close(found, torch.tensor([0.29, 1.64], dtype=torch.float64))


def test_a_group_without_a_point_and_a_point_without_a_group_count_nowhere():
    found = group_accuracy(torch.tensor([True, False, False]), torch.tensor([0, 0, -1]), 3)
    assert (found.worst, found.average, found.sizes.tolist()) == (0.5, 0.5, [2, 0, 0])
    assert found.weighted_by(torch.tensor([1, 5, 5])) == 0.5
    with pytest.raises(ValueError, match="no point has a group"):
        group_accuracy(torch.tensor([True]), torch.tensor([-1]), 3)


def test_recall_and_precision_are_those_of_scikit_learn():
    g = torch.Generator().manual_seed(0)
    true, predicted = torch.randint(4, (300,), generator=g), torch.randint(4, (300,), generator=g)
    found = group_quality(predicted, true, 4)
    how = {"average": None, "labels": range(4)}
    torch.testing.assert_close(found.recall, torch.from_numpy(recall_score(true, predicted, **how)))
    torch.testing.assert_close(found.precision, torch.from_numpy(precision_score(true, predicted, **how)))
    torch.testing.assert_close(found.mixture.sum(dim=1), torch.ones(4, dtype=torch.float64))
    left_out = group_quality(torch.cat([predicted, torch.tensor([-1, 2])]), torch.cat([true, torch.tensor([1, -1])]), 4)
    assert torch.equal(left_out.counts, found.counts)


def test_the_limit_of_a_rate_is_the_exact_binomial_one():
    events, trials = torch.tensor([0, 3, 17, 20, 0]), torch.tensor([20, 20, 20, 20, 0])
    found = group_scores._upper(events, trials, 0.025)
    for k, n, limit in zip(events.tolist()[:4], trials.tolist(), found.tolist(), strict=False):
        assert limit == pytest.approx(stats.binomtest(k, n).proportion_ci(0.95, method="exact").high, abs=1e-9)
    assert found[4] == 1  # nothing was seen


def perfect(size: int) -> GroupQuality:
    return GroupQuality(size * torch.eye(2, dtype=torch.int64))


def test_the_bound_falls_with_the_number_of_points_and_with_the_number_of_group_labels():
    wrong = torch.arange(400) % 10 == 0
    groups = torch.arange(400) % 2
    found = error_bound(wrong, groups, perfect(50))
    assert (found > error_bound(wrong.repeat(9), groups.repeat(9), perfect(50))).all()
    assert (found > error_bound(wrong, groups, perfect(500))).all()
    most = error_bound(wrong.repeat(2000), groups.repeat(2000), perfect(10**7))
    torch.testing.assert_close(most, torch.tensor([0.2, 0.0], dtype=torch.float64), atol=2e-3, rtol=0)


def test_nothing_is_bounded_for_a_group_that_is_never_found():
    quality = GroupQuality(torch.tensor([[90, 10], [0, 0]]))
    found = error_bound(torch.zeros(1000).bool(), torch.zeros(1000).long(), quality)
    assert found[1] == 1
    assert found[0] < 0.1


def test_the_bound_is_broken_as_seldom_as_it_says():
    """Points of two groups, of which a predictor mixes some up; a tenth of the bounds may be broken, and fewer are."""
    broken, draws = 0, 200
    for seed in range(draws):
        g = torch.Generator().manual_seed(seed)
        true = (torch.rand(600, generator=g) < 0.2).long()
        predicted = torch.where(torch.rand(600, generator=g) < 0.1, 1 - true, true)
        wrong = torch.rand(600, generator=g) < torch.tensor([0.05, 0.4])[true]
        few = group_quality(predicted[:200], true[:200], 2)
        found = error_bound(wrong[200:], predicted[200:], few, confidence=0.9)
        broken += bool((found < torch.tensor([0.05, 0.4])).any())
        assert (found <= 1).all()
    assert broken <= 0.1 * draws


def test_a_confidence_outside_its_range_is_refused():
    with pytest.raises(ValueError, match="confidence = 1"):
        error_bound(torch.zeros(2).bool(), torch.arange(2), perfect(3), confidence=1)
