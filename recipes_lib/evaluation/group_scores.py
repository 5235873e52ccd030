# SPDX-License-Identifier: Apache-2.0
"""Accuracy by group, the quality of predicted groups, and what it guarantees for the error of the true groups."""

from dataclasses import dataclass

import torch
from scipy import stats
from torch import Tensor

from recipes_lib.data.images import UNLABELLED


@dataclass(frozen=True)
class GroupAccuracy:
    """The accuracy of each true group. Groups without a point have the accuracy NaN and count nowhere."""

    accuracy: Tensor
    """float64 [groups], in [0, 1]."""
    sizes: Tensor
    """Number of points, int64 [groups]."""

    @property
    def worst(self) -> float:
        """The smallest accuracy of a group."""
        return float(self.accuracy[self.sizes > 0].min())

    @property
    def average(self) -> float:
        """The share of right points."""
        return self.weighted_by(self.sizes)

    def weighted_by(self, sizes: Tensor) -> float:
        """The mean of the groups' accuracies weighted by other ``sizes`` [groups], such as those of the training set.

        Waterbirds is reported so: its test set has other proportions of groups than its training set.
        """
        weights = torch.where(self.sizes > 0, sizes, 0).double()
        return float((weights * self.accuracy.nan_to_num()).sum() / weights.sum())


def group_accuracy(right: Tensor, groups: Tensor, count: int) -> GroupAccuracy:
    """The accuracy of each group.

    Shapes: ``right`` bool [N], ``groups`` int64 [N] in 0..count-1, or -1 for a point that does not count.
    Raises: ``ValueError`` if no point has a group.
    """
    known = groups != UNLABELLED
    if not known.any():
        raise ValueError("no point has a group, so there is no worst group. Give the groups of the test points.")
    sizes = torch.bincount(groups[known], minlength=count)
    hits = torch.bincount(groups[known], weights=right[known].double(), minlength=count)
    return GroupAccuracy(hits / sizes, sizes)  # 0 / 0 is NaN


@dataclass(frozen=True)
class GroupQuality:
    """How well groups were predicted, counted on points whose true group is known."""

    counts: Tensor
    """Number of points by predicted group (row) and true group, int64 [groups, groups]."""

    @property
    def recall(self) -> Tensor:
        """The share of each true group that was predicted to be in it; NaN for a group without a point.  [groups]"""
        return self.counts.diag().double() / self.counts.sum(dim=0)

    @property
    def precision(self) -> Tensor:
        """The share of each predicted group that is truly of it; NaN for a group that was never predicted.  [groups]"""
        return self.counts.diag().double() / self.counts.sum(dim=1)

    @property
    def mixture(self) -> Tensor:
        """The share of each true group in each predicted one: rows sum to 1.  [groups, groups]"""
        return self.counts.double() / self.counts.sum(dim=1, keepdim=True).clamp_min(1)


def group_quality(predicted: Tensor, true: Tensor, count: int) -> GroupQuality:
    """Counts predicted against true groups.  int64 [N], int64 [N] -> counts [count, count]; -1 does not count."""
    known = (predicted != UNLABELLED) & (true != UNLABELLED)
    pairs = torch.bincount(predicted[known] * count + true[known], minlength=count * count)
    return GroupQuality(pairs.view(count, count))


def diluted(mixture: Tensor, losses: Tensor) -> Tensor:
    """The losses of the predicted groups, which mix those of the true ones: sum_g R[g', g] L_g.

    Shapes: ``mixture`` [groups, groups] of :attr:`GroupQuality.mixture`, ``losses`` [groups] -> [groups].
    """
    return mixture @ losses


def error_bound(wrong: Tensor, predicted: Tensor, quality: GroupQuality, *, confidence: float = 0.95) -> Tensor:
    """An upper bound on each true group's error rate, from points whose groups are predicted and few that have labels.

    With recall r of group g, precision p of its prediction and error rate e of the points predicted to be in g,
    P(wrong | g) <= r min(1, e / p) + 1 - r: the points of g that were predicted to be in g cannot be wrong more often
    than all points predicted to be in g allow, and those that were missed may all be wrong. e, r and p are replaced by
    their Clopper-Pearson limits, so that the bound holds for all groups at once with probability ``confidence``. It
    shrinks with the number of points (e) and with the number of group labels (r and p).

    It holds for a network and a predictor that were trained on other points than these.

    Shapes: ``wrong`` bool [N], ``predicted`` int64 [N] -> float64 [groups], at most 1.
    Raises: ``ValueError`` if ``confidence`` is not in (0, 1).
    Source: ours. The bounds of the paper scale with both numbers too; their constants could not be read.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence = {confidence}; use a value in (0, 1), such as 0.95.")
    count = len(quality.counts)
    risk = (1 - confidence) / (3 * count)  # three estimates of each group may fail
    sizes = torch.bincount(predicted, minlength=count)
    errors = torch.bincount(predicted, weights=wrong.double(), minlength=count)
    hits = quality.counts.diag()
    error = _upper(errors, sizes, risk)
    recall = 1 - _upper(quality.counts.sum(dim=0) - hits, quality.counts.sum(dim=0), risk)
    precision = 1 - _upper(quality.counts.sum(dim=1) - hits, quality.counts.sum(dim=1), risk)
    within = (error / precision.clamp_min(1e-12)).clamp_max(1)  # a precision of 0 bounds nothing
    return recall * within + 1 - recall


def _upper(events: Tensor, trials: Tensor, risk: float) -> Tensor:
    """The upper Clopper-Pearson limit of a rate, which is below the true rate with probability ``risk``; 1 of no trial."""
    limit = stats.beta.ppf(1 - risk, events.numpy() + 1, (trials - events).numpy())
    return torch.where(events >= trials, 1.0, torch.from_numpy(limit).double().nan_to_num(1.0))
