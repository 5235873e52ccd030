# SPDX-License-Identifier: Apache-2.0
"""What the second step of each arm learns from: the group of each point, and how often it is drawn."""

from dataclasses import dataclass

import torch
from sklearn.cluster import KMeans
from torch import Tensor

from recipes_lib import randomness
from recipes_lib.data import groups
from recipes_lib.data.images import UNLABELLED
from recipes_lib.recipes.barack.settings import ROBUST, FindConfig, RobustConfig


@dataclass(frozen=True)
class Points:
    """The training points, as the first step sees them."""

    labels: Tensor
    """int64 [N], the classes."""
    attributes: Tensor
    """int64 [N], the true attributes, -1 where none is known. Only those of ``kept`` are seen, except by ``oracle``."""
    kept: Tensor
    """bool [N]: the points with a group label."""
    classes: int
    values: int
    """Number of values of the attribute."""

    @property
    def groups(self) -> Tensor:
        """The true groups, int64 [N], -1 where the attribute is not known."""
        return groups.group_index(self.labels, self.attributes, self.values)

    @property
    def count(self) -> int:
        """The number of groups."""
        return self.classes * self.values

    def with_groups(self, attributes: Tensor) -> Tensor:
        """The groups with these attributes, but with the true ones where there is a group label.  int64 [N]"""
        return self.labels * self.values + torch.where(self.kept, self.attributes, attributes)


@dataclass(frozen=True)
class Assignment:
    """The groups that the second step uses, and the weights by which it draws its batches."""

    groups: Tensor | None = None
    """int64 [N]; -1: never drawn. Or probabilities [N, groups]. ``None``: the arm has no groups."""
    weights: Tensor | None = None
    """[N]; ``None``: an epoch has each point once."""

    def sizes(self, count: int) -> Tensor:
        """The number of points of each group, or the sum of its probabilities.  float64 [groups]"""
        if self.groups is None:
            return torch.zeros(count, dtype=torch.float64)
        if self.groups.dim() == 2:
            return self.groups.double().sum(dim=0)
        return torch.bincount(self.groups[self.groups != UNLABELLED], minlength=count).double()


def without_first_step(points: Points, find: FindConfig, robust: RobustConfig) -> Assignment:
    """The assignment of ``erm``, ``lff``, ``subset`` and ``oracle``, which train one network alone."""
    if find.arm not in ROBUST:
        return Assignment()
    found = points.groups if find.arm == "oracle" else torch.where(points.kept, points.groups, UNLABELLED)
    balanced = groups.balanced_weights(found, points.count)
    uniform = (found != UNLABELLED).double()
    return Assignment(found, balanced if robust.sampling == "balanced" else uniform)


def from_predictions(probabilities: Tensor, points: Points, find: FindConfig, robust: RobustConfig) -> Assignment:
    """The assignment of ``barack``, ``balanced`` and ``shuffled``, from the predictor's output.

    Shapes: ``probabilities`` [N, attributes], of each point given its class.
    """
    if find.soft:
        return _soft(probabilities, points, robust)
    attributes = probabilities.argmax(dim=1)
    if find.flips:
        attributes = flipped(attributes, points.values, find.flips, find.seed)
    if find.arm == "shuffled":
        attributes = shuffled(attributes, points.labels, find.seed)
    found = attributes + points.labels * points.values if find.arm == "shuffled" else points.with_groups(attributes)
    drawn_equally = find.arm == "balanced" or robust.sampling == "balanced"
    return Assignment(found, groups.balanced_weights(found, points.count) if drawn_equally else None)


def _soft(probabilities: Tensor, points: Points, robust: RobustConfig) -> Assignment:
    known = torch.nn.functional.one_hot(points.attributes.clamp_min(0), points.values).to(probabilities)
    within = torch.where(points.kept[:, None], known, probabilities)  # a true label is never overwritten
    of_class = torch.nn.functional.one_hot(points.labels, points.classes).to(within)
    table = (of_class[:, :, None] * within[:, None, :]).flatten(1)  # [N, classes * attributes]
    weights = (table / table.sum(dim=0).clamp_min(1e-12)).sum(dim=1).double()  # 1 / n_g, in expectation
    return Assignment(table, weights if robust.sampling == "balanced" else None)


def from_errors(wrong: Tensor, upweight: float) -> Assignment:
    """The assignment of ``jtt``: points on which the first network errs are drawn ``upweight`` times as often."""
    return Assignment(weights=1 + (upweight - 1) * wrong.double())


def from_features(features: Tensor, points: Points, seed: int, robust: RobustConfig) -> Assignment:
    """The assignment of ``george``: the k-means clusters of each class are its groups.

    Shapes: ``features`` [N, dim] of the first network.
    Differs: the official code reduces the features by UMAP and chooses the number of clusters by silhouette; here it is
    the number of values of the attribute.
    """
    found = torch.full_like(points.labels, UNLABELLED)
    for label in range(points.classes):
        rows = (points.labels == label).nonzero()[:, 0]
        key = randomness.step_key(seed, label, "clusters") % 2**31
        clusters = KMeans(points.values, n_init=5, random_state=key).fit_predict(features[rows].double().numpy())
        found[rows] = label * points.values + torch.from_numpy(clusters).long()
    return Assignment(found, groups.balanced_weights(found, points.count) if robust.sampling == "balanced" else None)


def flipped(attributes: Tensor, values: int, share: float, seed: int) -> Tensor:
    """Replaces a random share of the attributes by another value.  int64 [N] -> int64 [N]"""
    keys = randomness.sample_keys(seed, 0, torch.arange(len(attributes)))
    draws = randomness.uniform(keys, "flipped groups", 2)
    other = (attributes + 1 + (draws[:, 1] * (values - 1)).long()) % values
    return torch.where(draws[:, 0] < share, other, attributes)


def shuffled(attributes: Tensor, labels: Tensor, seed: int) -> Tensor:
    """The attributes of each class in random order.  int64 [N] -> int64 [N]"""
    found = attributes.clone()
    for label in labels.unique().tolist():
        rows = (labels == label).nonzero()[:, 0]
        order = torch.randperm(len(rows), generator=randomness.generator(seed, label, "shuffled groups"))
        found[rows] = attributes[rows[order]]
    return found
