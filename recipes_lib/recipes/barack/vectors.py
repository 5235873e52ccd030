# SPDX-License-Identifier: Apache-2.0
"""Every arm on points that are vectors: the Gaussian toy, tables such as Adult, and features of a frozen network.

The assignments and losses are those of the recipe; only the loop is shorter, since a run takes a second.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recipes_lib import randomness
from recipes_lib.data import groups
from recipes_lib.data.groups import UNLABELLED
from recipes_lib.evaluation import group_scores
from recipes_lib.evaluation.group_scores import GroupAccuracy, GroupQuality
from recipes_lib.recipes.barack import arms, losses
from recipes_lib.recipes.barack.arms import Assignment, Points
from recipes_lib.recipes.barack.settings import IDENTIFYING, PREDICTING, ROBUST, FindConfig, RobustConfig

LossOf = Callable[[Tensor], Tensor]
"""The loss of the points with these numbers, int64 [batch] -> []."""


@dataclass(frozen=True)
class VectorSet:
    """Points that are vectors, with their classes and true attributes."""

    inputs: Tensor
    """float32 [N, dim]."""
    labels: Tensor
    """int64 [N]."""
    attributes: Tensor
    """int64 [N], -1 where none is known."""
    classes: int = 2
    values: int = 2

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def groups(self) -> Tensor:
        """The true groups, int64 [N]."""
        return groups.group_index(self.labels, self.attributes, self.values)

    @property
    def count(self) -> int:
        """The number of groups."""
        return self.classes * self.values

    def select(self, indices: Tensor) -> "VectorSet":
        """The points at ``indices``, int64 [n]."""
        parts = (self.inputs[indices], self.labels[indices], self.attributes[indices])
        return VectorSet(*parts, self.classes, self.values)


@dataclass(frozen=True, kw_only=True)
class Options:
    """An arm and the training of its networks; all arms of a comparison share all but ``find``."""

    find: FindConfig = field(default_factory=FindConfig)
    robust: RobustConfig = field(default_factory=RobustConfig)
    width: int = 32
    """Number of hidden units."""
    lr: float = 0.03
    momentum: float = 0.9
    weight_decay: float = 0.02
    steps: int = 500
    """Number of steps of the second step."""
    batch_size: int = 128
    seed: int = 0
    """Seed of the initial weights and of the batches."""


@dataclass(frozen=True)
class Trained:
    """What both steps of an arm have made."""

    network: nn.Module
    """The classifier: vectors [batch, dim] -> logits [batch, classes]."""
    assignment: Assignment
    predictor: nn.Module | None
    """vectors [batch, dim] -> [batch, heads * attributes], ``None`` if the arm predicts no groups."""
    quality: GroupQuality | None
    """Predicted against true groups, of the training points without a group label."""


def train(points: VectorSet, options: Options) -> Trained:
    """Both steps of ``options.find.arm``.

    Raises: ``DataError`` if a group has no labelled point, for arms that need labels.
    """
    find = options.find
    kept = groups.keep_few(points.groups, find.share, find.seed, by_group=find.by_group)
    seen = Points(points.labels, points.attributes, kept, points.classes, points.values)
    names = tuple(f"class {label}, attribute {a}" for label in range(points.classes) for a in range(points.values))
    if find.arm in PREDICTING or find.arm == "subset":
        groups.require_labels(points.groups, kept, names)
    predictor = None
    if find.arm in PREDICTING:
        predictor = _predictor(points, kept, options)
        found = arms.from_predictions(predict(predictor, points, options), seen, find, options.robust)
    elif find.arm in IDENTIFYING:
        found = _identified(points, seen, options)
    else:
        found = arms.without_first_step(seen, find, options.robust)
    network = _second(points, found, options)
    return Trained(network, found, predictor, _quality(found, points, kept))


@torch.no_grad()
def evaluate(network: nn.Module, points: VectorSet) -> GroupAccuracy:
    """The accuracy of each true group of test points."""
    right = network(points.inputs).argmax(dim=1) == points.labels
    return group_scores.group_accuracy(right, points.groups, points.count)


@torch.no_grad()
def predict(predictor: nn.Module, points: VectorSet, options: Options) -> Tensor:
    """The probability of each attribute, given a point and, if ``sees_class``, its class.  -> [N, attributes]"""
    logits = predictor(points.inputs).view(len(points), -1, points.values)
    return losses.of_class(logits, points.labels).softmax(dim=1)


def trunk(dim: int, width: int) -> nn.Module:
    """One hidden layer: [batch, dim] -> [batch, width]."""
    return nn.Sequential(nn.Linear(dim, width), nn.ReLU())


def _built(points: VectorSet, outputs: int, options: Options, purpose: str) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(randomness.step_key(options.seed, 0, purpose))
        return nn.Sequential(trunk(points.inputs.shape[1], options.width), nn.Linear(options.width, outputs))


def _descend(
    network: nn.Module, loss_of: LossOf, weights: Tensor | None, count: int, steps: int, options: Options, purpose: str
) -> None:
    """SGD on batches of the points 0 to ``count`` - 1, drawn in proportion to ``weights``."""
    how = {"lr": options.lr, "momentum": options.momentum, "weight_decay": options.weight_decay}
    optimizer = torch.optim.SGD(network.parameters(), **how)
    generator, size = randomness.generator(options.seed, 0, f"{purpose} batches"), (steps, options.batch_size)
    shares = torch.ones(count) if weights is None else weights
    draws = torch.multinomial(shares, size[0] * size[1], replacement=True, generator=generator).view(size)
    for rows in draws:
        optimizer.zero_grad()
        loss_of(rows).backward()
        optimizer.step()


def _predictor(points: VectorSet, kept: Tensor, options: Options) -> nn.Module:
    labelled = points.select(kept.nonzero()[:, 0])
    heads = points.classes if options.find.sees_class else 1
    network = _built(points, heads * points.values, options, "predictor")

    def loss_of(rows: Tensor) -> Tensor:
        logits = network(labelled.inputs[rows]).view(len(rows), heads, points.values)
        return losses.attribute_loss(logits, labelled.groups[rows], points.values)

    weights = groups.balanced_weights(labelled.groups, points.count)
    _descend(network, loss_of, weights, len(labelled), _first_steps(options, len(labelled)), options, "predictor")
    return network


def _identified(points: VectorSet, seen: Points, options: Options) -> Assignment:
    """The assignment of an arm whose first step is a plain classifier."""
    network = _built(points, points.classes, options, "first network")

    def loss_of(rows: Tensor) -> Tensor:
        return F.cross_entropy(network(points.inputs[rows]), points.labels[rows])

    _descend(network, loss_of, None, len(points), _first_steps(options, len(points)), options, "first network")
    with torch.no_grad():
        if options.find.arm == "jtt":
            wrong = network(points.inputs).argmax(dim=1) != points.labels
            return arms.from_errors(wrong, options.find.upweight)
        return arms.from_features(network[0](points.inputs), seen, options.seed, options.robust)


def _second(points: VectorSet, found: Assignment, options: Options) -> nn.Module:
    network = _built(points, points.classes, options, "classifier")
    sizes = found.sizes(points.count)
    q = (sizes > 0).float() / (sizes > 0).sum().clamp_min(1)
    adjustment = losses.adjustment_of(options.robust.adjustment, sizes) if options.find.arm in ROBUST else None
    biased = _built(points, points.classes, options, "biased twin") if options.find.arm == "lff" else None

    def loss_of(rows: Tensor) -> Tensor:
        nonlocal q
        logits, labels = network(points.inputs[rows]), points.labels[rows]
        if biased is not None:
            return sum(losses.failure_losses(logits, biased(points.inputs[rows]), labels, options.robust.focus))
        if options.find.arm not in ROBUST:
            return F.cross_entropy(logits, labels)
        each = F.cross_entropy(logits, labels, reduction="none")
        step = losses.robust_step(each, found.groups[rows], q, eta=options.robust.eta, adjustment=adjustment)
        q = step.q
        return step.loss

    both = network if biased is None else nn.ModuleList([network, biased])
    _descend(both, loss_of, found.weights, len(points), options.steps, options, "classifier")
    return network


def _first_steps(options: Options, count: int) -> int:
    find = options.find
    return find.steps if find.steps is not None else max(1, round(find.epochs * count / options.batch_size))


def _quality(found: Assignment, points: VectorSet, kept: Tensor) -> GroupQuality | None:
    if found.groups is None:
        return None
    hard = found.groups.argmax(dim=1) if found.groups.dim() == 2 else found.groups
    return group_scores.group_quality(torch.where(kept, UNLABELLED, hard), points.groups, points.count)


def with_arm(options: Options, arm: str, **changes: object) -> Options:
    """The same options with another arm, and with other fields of its first step."""
    return replace(options, find=replace(options.find, arm=arm, **changes))
