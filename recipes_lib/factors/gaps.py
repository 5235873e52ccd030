# SPDX-License-Identifier: Apache-2.0
"""Gaps: how far a model's accuracy falls when one factor, or two, leave their canonical value.

Each instance (one particular object) is shown in its canonical view and with factors varied, all else equal. So answers
are compared in pairs, and images of one instance, which depend on each other, stay together: an instance counts once, a
class counts once, and intervals come from resampling instances within their class.

Symbols: M models, I instances, C classes, K sets of varied factors, R resamples. w: weight of an instance, 1 / (C times
the number of instances of its class).

Source: Ibrahim et al., "The Robustness Limits of SoTA Vision Models to Natural Variation", TMLR 2023, arXiv 2210.13604,
for the question. The paper's exact statistics could not be read; those of this file are ours.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from recipes_lib.factors.inference import benjamini_hochberg, holm

Varied = tuple[str, ...]
"""Names of the factors that are varied together; empty for the canonical view."""
CANONICAL: Varied = ()
NEAR_CHANCE = 0.1
"""How far above chance canonical accuracy has to be for a gap to say something."""


def title(varied: Varied) -> str:
    """The name of a set of factors in tables: ``pose``, ``pose+size``, or ``canonical``."""
    return "+".join(varied) or "canonical"


@dataclass(frozen=True)
class Answers:
    """Which answers of one model are right, for the same I instances in every view.

    Raises: ``ValueError`` if an instance is missing somewhere, or has no class.
    """

    classes: np.ndarray
    """integers [I] >= 0: the class of each instance."""
    canonical: np.ndarray
    """float64 [I]: share of right answers for each instance's canonical images, usually 0 or 1."""
    varied: Mapping[Varied, np.ndarray]
    """Factors that vary -> float64 [I]: share of right answers over the values that were drawn."""
    worst: Mapping[Varied, np.ndarray]
    """Factors that vary -> float64 [I]: 1 if the answer is right for every value, else 0."""

    def __post_init__(self) -> None:
        count = len(self.classes)
        for name, part in {"canonical": self.canonical, **self.varied, **self.worst}.items():
            shown = name if isinstance(name, str) else title(name)
            if np.shape(part) != (count,):
                raise ValueError(f"{shown} has shape {np.shape(part)} for {count} instances: score all in every view.")
            if not np.isfinite(part).all():
                raise ValueError(f"{shown} has no answer for instance {int(np.flatnonzero(~np.isfinite(part))[0])}.")
        if not count or min(self.classes) < 0:
            raise ValueError(f"{count} instances, classes from {min(self.classes, default=None)}: each needs a class.")

    @property
    def weights(self) -> np.ndarray:
        """The weight of each instance, so that classes count equally: float64 [I], with the sum 1."""
        number = np.bincount(self.classes)
        return 1 / (number[self.classes] * (number > 0).sum())


def answers(
    classes: np.ndarray, instances: np.ndarray, right: Mapping[Varied, np.ndarray], of: Mapping[Varied, np.ndarray]
) -> Answers:
    """Collects the answers for images to those for instances.

    Shapes: ``classes`` and ``instances`` integers [I], the class and the id of each instance; for each set of factors
    ``right`` bool [N] and ``of`` integers [N], the id of the instance that each image shows.

    Raises: ``ValueError`` naming the first instance that some view has and the canonical one has not, or vice versa.
    """
    place = {int(name): row for row, name in enumerate(instances)}
    mean: dict[Varied, np.ndarray] = {}
    worst: dict[Varied, np.ndarray] = {}
    for varied, ids in of.items():
        if len(ids) != len(right[varied]):
            raise ValueError(f"{title(varied)} has {len(right[varied])} answers for {len(ids)} images.")
        shown = set(map(int, ids))
        if odd := sorted(shown ^ place.keys()):
            here, lacks = (title(varied), "the instances") if odd[0] in shown else ("the instances", title(varied))
            raise ValueError(f"pairing is broken: instance {odd[0]} is in {here} and not in {lacks}.")
        rows = np.array([place[int(name)] for name in ids])
        number = np.bincount(rows, minlength=len(place))
        hits = np.bincount(rows, weights=right[varied], minlength=len(place))
        mean[varied], worst[varied] = hits / number, (hits == number).astype(np.float64)
    canonical = mean.pop(CANONICAL)
    worst.pop(CANONICAL)
    return Answers(np.asarray(classes), canonical, mean, worst)


@dataclass(frozen=True)
class Gap:
    """The metrics of one model for one set of varied factors; accuracies and gaps in [-1, 1]."""

    accuracy: float
    """Accuracy with the factors varied."""
    gap: float
    """Canonical accuracy less ``accuracy``: positive is fragile."""
    low: float
    """Lower bound of the gap's interval."""
    high: float
    """Upper bound of the gap's interval."""
    relative: float
    """Gap over canonical accuracy; NaN if that is 0."""
    survival: float
    """P(right with the factors varied | right in the canonical view); NaN if no canonical image is right."""
    agreement: float
    """Share of (instance, value) for which both answers are right or both wrong."""
    worst_case: float
    """Share of instances that are right for every value that was drawn."""
    p: float
    """p-value of "varying these factors makes no difference": both answers of an instance could be swapped."""


@dataclass(frozen=True)
class Interaction:
    """What varying two factors together costs beyond the sum of their gaps; positive is worse than additive."""

    accuracy: float
    """The gap of the pair less both single gaps, in accuracy. It is bounded, since accuracy cannot fall below 0."""
    low: float
    """Lower bound of its interval."""
    high: float
    """Upper bound of its interval."""
    logit: float
    """The same difference of log odds, to which the bound does not apply."""


@dataclass(frozen=True)
class Profile:
    """All gaps of one model."""

    instances: int
    classes: int
    canonical: float
    """Canonical accuracy."""
    canonical_low: float
    """Lower bound of its interval."""
    canonical_high: float
    """Upper bound of its interval."""
    gaps: Mapping[Varied, Gap]
    interactions: Mapping[Varied, Interaction]
    """Pairs of factors whose single gaps were measured too."""

    @property
    def chance(self) -> float:
        """Accuracy of a guess, 1 / C: no gap can be much larger than canonical accuracy less this."""
        return 1 / self.classes

    @property
    def uninformative(self) -> bool:
        """Whether canonical accuracy is so close to chance that gaps say little."""
        return self.canonical < self.chance + NEAR_CHANCE


def profile(given: Answers, *, generator: np.random.Generator, resamples: int = 1000, level: float = 0.95) -> Profile:
    """The gaps and interactions of one model, with percentile bootstrap intervals over instances within their class."""
    names, weights = list(given.varied), given.weights
    columns = np.stack([given.canonical, *(given.varied[name] for name in names)], axis=1)  # [I, 1 + K]
    means = weights @ columns  # [1 + K]
    draws = _resampled(given, columns, generator, resamples)  # [R, 1 + K]
    bounds = [(1 - level) / 2, (1 + level) / 2]
    canonical, own = means[0], given.canonical
    found = {}
    for place, name in enumerate(names, start=1):
        varied, survived = given.varied[name], weights @ (own * given.varied[name])
        low, high = np.quantile(draws[:, 0] - draws[:, place], bounds)
        found[name] = Gap(
            accuracy=float(means[place]),
            gap=float(canonical - means[place]),
            low=float(low),
            high=float(high),
            relative=_over(canonical - means[place], canonical),
            survival=_over(survived, canonical),
            agreement=float(weights @ (own * varied + (1 - own) * (1 - varied))),
            worst_case=float(weights @ given.worst[name]),
            p=_swapped(weights * (own - varied)),
        )
    spans = np.quantile(draws[:, 0], bounds)
    pairs = _interactions(names, means, draws, bounds, len(own))
    count = len(np.unique(given.classes))
    return Profile(len(own), count, float(canonical), float(spans[0]), float(spans[1]), found, pairs)


def adjusted(profiles: Sequence[Profile]) -> tuple[list[dict[Varied, float]], list[dict[Varied, float]]]:
    """p-values of all models and factors together, adjusted by Holm, and by Benjamini and Hochberg: one dict a model."""
    cells = [(model, name) for model, one in enumerate(profiles) for name in one.gaps]
    p = np.array([profiles[model].gaps[name].p for model, name in cells])
    both: list[list[dict[Varied, float]]] = []
    for rule in (holm, benjamini_hochberg):
        found: list[dict[Varied, float]] = [{} for _ in profiles]
        for (model, name), value in zip(cells, rule(p).tolist(), strict=True):
            found[model][name] = value
        both.append(found)
    return both[0], both[1]


def _resampled(given: Answers, columns: np.ndarray, generator: np.random.Generator, resamples: int) -> np.ndarray:
    """The class-averaged means of resamples, float64 [R, 1 + K]: each class keeps its number of instances."""
    total = np.zeros((resamples, columns.shape[1]))
    labels = np.unique(given.classes)
    for label in labels:
        rows = columns[given.classes == label]
        counts = generator.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=resamples)  # [R, rows]
        total += counts @ rows / len(rows)
    return total / len(labels)


def _interactions(
    names: Sequence[Varied], means: np.ndarray, draws: np.ndarray, bounds: Sequence[float], instances: int
) -> dict[Varied, Interaction]:
    place = {name: position for position, name in enumerate(names, start=1)}
    found = {}
    for name in names:
        singles = [(factor,) for factor in name]
        if len(name) != 2 or any(single not in place for single in singles):
            continue
        columns = [place[name], *(place[single] for single in singles)]

        def excess(values: np.ndarray, columns: list[int] = columns) -> np.ndarray:
            """gap of both less each single gap = first + second - both - canonical, of values [..., 1 + K]"""
            both, first, second = (values[..., column] for column in columns)
            return first + second - both - values[..., 0]

        low, high = np.quantile(excess(draws), bounds)
        # half an answer away from 0 and 1, whose log odds are infinite
        odds = special.logit(np.clip(means, 0.5 / instances, 1 - 0.5 / instances))
        found[name] = Interaction(float(excess(means)), float(low), float(high), float(excess(odds)))
    return found


def _swapped(differences: np.ndarray) -> float:
    """Two-sided p-value of weighted differences [I] whose signs are random, by the normal approximation."""
    deviation = np.sqrt((differences**2).sum())
    if deviation == 0:
        return 1.0
    return float(2 * special.ndtr(-abs(differences.sum()) / deviation))


def _over(part: float, whole: float) -> float:
    return float(part / whole) if whole > 0 else float("nan")
