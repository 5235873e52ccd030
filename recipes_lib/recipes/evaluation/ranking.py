# SPDX-License-Identifier: Apache-2.0
"""Whether a number ranks networks as another does: rank correlation over the networks, and an interval for it.

A table of networks is a dict: name -> metric -> value. All metrics are turned so that more is better before they are
compared, so that 1 is the right order, 0 no relation, and -1 the reverse.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

Table = Mapping[str, Mapping[str, float]]
"""Name of a network -> name of a metric -> its value."""

LABEL_FREE = ("rankme", "alpha_req", "lidar", "uniformity", "alignment", "std", "rotation")
"""The metrics that need no labels."""
ACCURACIES = ("linear", "lowshot", "mlp")
"""The accuracies beside that of k-NN."""
TRUTH = "knn"
"""The accuracy that the others are compared with."""
LESS_IS_BETTER = ("uniformity", "alignment", "loss")
BEST_ALPHA = 1.0
"""The exponent that alpha-ReQ takes for the best."""


def goodness(metric: str, value: float) -> float:
    """The value, turned so that more is better; alpha-ReQ's exponent is the better the nearer it is to 1."""
    if metric == "alpha_req":
        return -abs(value - BEST_ALPHA)
    return -value if metric in LESS_IS_BETTER else value


def correlation(table: Table, metric: str, truth: str = TRUTH) -> float:
    """Spearman's rank correlation of two metrics over the networks that have both; 0 if all are equal in one of them.

    Raises: ``ValueError`` for fewer than three networks.
    """
    pairs = [(goodness(metric, row[metric]), row[truth]) for row in table.values() if metric in row and truth in row]
    if len(pairs) < 3:
        raise ValueError(f"{len(pairs)} networks have {metric} and {truth}: a comparison of rankings needs 3.")
    return float(_spearman(np.array(pairs)))


def correlations(table: Table, metrics: Sequence[str]) -> dict[str, float]:
    """:func:`correlation` with k-NN for each of the metrics, by name."""
    return {name: correlation(table, name) for name in metrics}


def interval(
    tables: Sequence[Table], metric: str, *, truth: str = TRUTH, level: float = 0.95, draws: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """The mean of :func:`correlation` over tables (one per seed), and a bootstrap interval of it: mean, low, high.

    The runs of each table are drawn with replacement, and a correlation computed; the interval's ends are quantiles of
    the mean over tables. With nine runs an interval is wide, and somewhat too narrow.
    """
    draw, means = np.random.default_rng(seed), np.zeros(draws)
    for table in tables:
        pairs = np.array([(goodness(metric, row[metric]), row[truth]) for row in table.values()])
        means += _spearman(pairs[draw.integers(len(pairs), size=(draws, len(pairs)))])
    low, high = np.quantile(means / len(tables), [(1 - level) / 2, (1 + level) / 2])
    return math.fsum(correlation(table, metric, truth) for table in tables) / len(tables), float(low), float(high)


def beaten(table: Table, metric: str, name: str) -> float:
    """The share, in [0, 1], of the other networks that come behind network ``name`` by a metric; equal ones count half."""
    mine = goodness(metric, table[name][metric])
    others = [goodness(metric, row[metric]) for other, row in table.items() if other != name]
    return sum((mine > other) + 0.5 * (mine == other) for other in others) / len(others)


def _spearman(pairs: np.ndarray) -> np.ndarray:
    """Spearman's correlation of the two columns; 0 if a column is constant.  float64 [..., networks, 2] -> [...]"""
    ranks = stats.rankdata(pairs, axis=-2)
    ranks -= ranks.mean(axis=-2, keepdims=True)
    length = np.sqrt((ranks**2).sum(axis=-2, keepdims=True))
    unit = np.divide(ranks, length, out=np.zeros_like(ranks), where=length > 0)
    return unit.prod(axis=-1).sum(axis=-1)
