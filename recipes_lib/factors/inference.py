# SPDX-License-Identifier: Apache-2.0
"""Intervals of factor metrics, and tests: does a factor matter, do models agree, do groups of models differ?

Symbols: M models, F factors, N images, R resamples. Most arrays are [M, F]. NaN stands for a value that is not defined,
and stays NaN.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special, stats

from recipes_lib.factors.error_ratios import Counts


def wilson(right: np.ndarray, images: np.ndarray, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's confidence interval of an accuracy: its lower and upper bound, in [0, 1]; NaN without images.

    Shapes: integers [...], [...] -> float64 [...], [...].
    Source: Wilson, "Probable inference, the law of succession, and statistical inference", JASA 1927.
    """
    z = _quantile(level)
    right, images = np.broadcast_arrays(np.asarray(right, np.float64), np.asarray(images, np.float64))
    n = np.where(images > 0, images, np.nan)
    share = right / n
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    # without this, rounding could put an accuracy of 0 or 1 outside of its own interval
    return np.where(right == 0, 0.0, centre - half) + 0 * n, np.where(right == images, 1.0, centre + half) + 0 * n


def wilson_ratio(counts: Counts, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """The interval of each error ratio, from Wilson's interval of the factor's accuracy: float64 [M, F], [M, F].

    The average accuracy is treated as known exactly, so the interval is too wide for a factor that many images have.
    """
    low, high = wilson(counts.right_with_factor, counts.with_factor, level)
    errors = 1 - counts.average[:, None]
    errors = np.where(errors > 0, errors, np.nan)
    return (1 - high) / errors, (1 - low) / errors


def bootstrap_ratio(
    counts: Counts, model: int, *, generator: np.random.Generator, resamples: int = 1000, level: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
    """The percentile bootstrap interval of one model's error ratios: float64 [F], [F].

    A factor's error ratio depends on a resample of N images only by four numbers: images with or without the factor,
    right or wrong. These numbers have a multinomial distribution, so they are drawn from it: this is exactly equivalent
    to drawing images, with 4 numbers instead of N. Resamples in which a ratio is not defined are ignored.

    Source: Efron, "Bootstrap methods: another look at the jackknife", 1979.
    """
    right, total = counts.right[model], counts.images
    right_with, with_factor = counts.right_with_factor[model], counts.with_factor
    wrong_with = with_factor - right_with
    cells = np.stack([right_with, wrong_with, right - right_with, total - right - wrong_with], axis=-1)  # [F, 4]
    if total == 0:
        return np.full(len(cells), np.nan), np.full(len(cells), np.nan)
    draws = generator.multinomial(total, cells / total, size=(resamples, len(cells)))  # [R, F, 4]
    images, wrong = draws[..., 0] + draws[..., 1], draws[..., 1] + draws[..., 3]  # [R, F] each
    with np.errstate(invalid="ignore", divide="ignore"):
        ratios = (draws[..., 1] / images) / (wrong / total)
    ratios[~np.isfinite(ratios)] = np.nan
    found = np.full((2, len(cells)), np.nan)
    some = ~np.isnan(ratios).all(axis=0)
    found[:, some] = np.nanquantile(ratios[:, some], [(1 - level) / 2, (1 + level) / 2], axis=0)
    return found[0], found[1]


def no_effect(counts: Counts) -> np.ndarray:
    """Two-sided p-values of the null hypothesis "the factor's error ratio is 1", as float64 [M, F].

    If errors were distributed over images by chance, the number of errors with the factor would be hypergeometric. The
    test is a normal approximation with that mean and variance. For few images a very small p-value may be too small by
    half.
    """
    total, wrong = counts.images, (counts.images - counts.right)[:, None].astype(np.float64)  # [M, 1]
    n = counts.with_factor.astype(np.float64)  # [F]
    observed = n - counts.right_with_factor
    with np.errstate(invalid="ignore", divide="ignore"):
        variance = n * (total - n) / total * wrong * (total - wrong) / total / (total - 1)
        score = (observed - n * wrong / total) / np.sqrt(variance)
    return 2 * special.ndtr(-np.abs(np.where(variance > 0, score, np.nan)))


def same_share(part: np.ndarray, whole: int, other_part: np.ndarray, other_whole: int) -> np.ndarray:
    """Two-sided p-values of the null hypothesis "the factor is equally frequent in both sets", as float64 [F].

    It is the pooled test of two proportions, ``part / whole`` and ``other_part / other_whole``.
    """
    pooled = (part + other_part) / (whole + other_whole)
    with np.errstate(invalid="ignore", divide="ignore"):
        score = (part / whole - other_part / other_whole) / np.sqrt(
            pooled * (1 - pooled) * (1 / whole + 1 / other_whole)
        )
    return 2 * special.ndtr(-np.abs(score))


def holm(p: np.ndarray) -> np.ndarray:
    """p-values adjusted by Holm's step-down, which bounds the probability of any false finding; NaN is not a test.

    Source: Holm, "A simple sequentially rejective multiple test procedure", 1979.
    """
    return _adjusted(p, lambda ordered: np.maximum.accumulate(ordered * np.arange(len(ordered), 0, -1)))


def benjamini_hochberg(p: np.ndarray) -> np.ndarray:
    """p-values adjusted to bound the expected share of false findings among all findings; NaN is not a test.

    Source: Benjamini, Hochberg, "Controlling the false discovery rate", 1995.
    """

    def step_up(ordered: np.ndarray) -> np.ndarray:
        scaled = ordered * len(ordered) / np.arange(1, len(ordered) + 1)
        return np.minimum.accumulate(scaled[::-1])[::-1]

    return _adjusted(p, step_up)


def _adjusted(p: np.ndarray, rule: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    flat = np.asarray(p, np.float64).ravel()
    tests = np.flatnonzero(~np.isnan(flat))
    order = tests[np.argsort(flat[tests], kind="stable")]
    found = np.full(flat.shape, np.nan)
    found[order] = np.minimum(rule(flat[order]), 1)
    return found.reshape(np.shape(p))


@dataclass(frozen=True)
class Agreement:
    """How similarly models rank the factors."""

    mean_rank_correlation: float
    """Mean of Spearman's rank correlation over all pairs of models, in [-1, 1]."""
    p: float
    """The probability of a correlation at least as high if each model's factors were shuffled."""
    factors: int
    """Number of factors for which all models have an error ratio."""


def agreement(ratios: np.ndarray, *, generator: np.random.Generator, permutations: int = 1000) -> Agreement:
    """Tests by permutations whether models agree on their worst factors.  float64 [M, F] -> one result

    The mean correlation of M rankings follows from the variance of the factors' mean ranks (Kendall's W), so pairs need
    not be computed. Factors for which a model has no ratio are left out.

    Raises: ``ValueError`` for fewer than two models or three factors.
    """
    ratios = ratios[:, ~np.isnan(ratios).any(axis=0)]
    models, factors = ratios.shape
    if models < 2 or factors < 3:
        raise ValueError(f"{models} models and {factors} factors; a comparison of rankings needs 2 and 3")
    ranks = stats.rankdata(ratios, axis=1)
    ranks -= ranks.mean(axis=1, keepdims=True)
    length = np.sqrt((ranks**2).sum(axis=1, keepdims=True))
    ranks = np.divide(ranks, length, out=np.zeros_like(ranks), where=length > 0)  # all ratios equal: correlation 0

    def mean_correlation(rows: np.ndarray) -> float:
        return float(((rows.sum(axis=0) ** 2).sum() - (rows**2).sum()) / (models * (models - 1)))

    found = mean_correlation(ranks)
    shuffled = (mean_correlation(generator.permuted(ranks, axis=1)) for _ in range(permutations))
    at_least = sum(value >= found - 1e-12 for value in shuffled)
    return Agreement(found, (1 + at_least) / (1 + permutations), factors)


def rank_correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's rank correlation of x and y [F] over the pairs without NaN; NaN for fewer than three or a constant."""
    both = ~np.isnan(x) & ~np.isnan(y)
    ranks = [stats.rankdata(side[both]) for side in (x, y)]
    if both.sum() < 3 or any(np.ptp(side) == 0 for side in ranks):
        return float("nan")
    return float(np.corrcoef(*ranks)[0, 1])


@dataclass(frozen=True)
class GroupTest:
    """The error ratios of one factor in several groups of models, and a test of whether the groups differ."""

    ratios: dict[str, np.ndarray]
    """Group -> float64 [number of its models that have a ratio]."""
    p: float
    """p-value of "all groups have the same mean", by Alexander and Govern's test, which allows unequal variances."""

    @property
    def means(self) -> dict[str, float]:
        """Group -> mean over its models; NaN for a group without a ratio."""
        return {name: float(ratios.mean()) if len(ratios) else float("nan") for name, ratios in self.ratios.items()}


def compare_groups(ratios: np.ndarray, groups: Sequence[str]) -> list[GroupTest]:
    """Tests, for each factor, whether groups of models differ.  float64 [M, F], M group names -> F tests

    Models without a ratio are left out. p is NaN unless at least two groups have two different ratios each.

    Source: Alexander, Govern, "A new and simpler approximation for ANOVA under variance heterogeneity", 1994; the
    official toolkit uses the same test.
    """
    members = {name: np.array([own == name for own in groups], dtype=bool) for name in dict.fromkeys(groups)}
    found = []
    for column in ratios.T:
        values = {name: column[rows & ~np.isnan(column)] for name, rows in members.items()}
        tested = [group for group in values.values() if len(group) > 1 and np.ptp(group) > 0]
        p = float(stats.alexandergovern(*tested).pvalue) if len(tested) > 1 else float("nan")
        found.append(GroupTest(values, p))
    return found


def mean_over_models(values: np.ndarray) -> np.ndarray:
    """The mean over the models whose value is defined; NaN if there is none.  float64 [M, ...] -> float64 [...]"""
    known = ~np.isnan(values)
    number = known.sum(axis=0)
    total = np.where(known, values, 0).sum(axis=0)
    return np.divide(total, number, out=np.full(total.shape, np.nan), where=number > 0)


def spread(ratios: np.ndarray) -> dict[str, np.ndarray]:
    """Statistics of each factor's error ratios over the models that have one.  float64 [M, F] -> name -> float64 [F]

    ``above_1`` is the share of models with a ratio above 1, ``worst`` the share of models whose highest ratio is that
    of this factor.
    """
    found = {
        name: np.full(ratios.shape[1], np.nan)
        for name in ("mean", "std", "min", "q1", "median", "q3", "max", "above_1")
    }
    for place, column in enumerate(ratios.T):
        known = column[~np.isnan(column)]
        if len(known):
            quartiles = zip(
                ("min", "q1", "median", "q3", "max"), np.quantile(known, [0, 0.25, 0.5, 0.75, 1]), strict=True
            )
            metrics = {"mean": known.mean(), "std": known.std(), "above_1": (known > 1).mean(), **dict(quartiles)}
            for name, value in metrics.items():
                found[name][place] = value
    some = ~np.isnan(ratios).all(axis=1)
    worst = np.nanargmax(ratios[some], axis=1) if some.any() else np.array([], np.int64)
    found["worst"] = np.bincount(worst, minlength=ratios.shape[1]) / max(1, len(ratios))
    return found


def pairs_of_models(ratios: np.ndarray, models: Sequence[str]) -> dict[tuple[str, str], float]:
    """Spearman's rank correlation of the error ratios, float64 [M, F], for every pair of models."""
    places = itertools.combinations(range(len(models)), 2)
    return {(models[a], models[b]): rank_correlation(ratios[a], ratios[b]) for a, b in places}


def _quantile(level: float) -> float:
    if not 0 < level < 1:
        raise ValueError(f"level = {level}; use a value in (0, 1), such as 0.95")
    return float(special.ndtri((1 + level) / 2))
