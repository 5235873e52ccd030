# SPDX-License-Identifier: Apache-2.0
"""Selects the best share of a pool that fits in memory, by one score or by several fused scores.

Source: Mahmoud et al., "Sieve: Multimodal Dataset Pruning Using Image Captioning Models", CVPR 2024, arXiv 2310.02110,
and its code's apply_filter.py.
Differs: that code keeps one sample more than the share and all samples that tie with it, and cannot keep everything;
here exactly ``int(N p)`` of N samples are kept for a share p, and ties are broken by uid.
"""

import math
from collections.abc import Mapping
from fractions import Fraction

import numpy as np

from recipes_lib.data.pools.uids import as_bytes
from recipes_lib.errors import DataError

TOLERANCE = 1e-6
"""Largest allowed difference between 1 and the sum of the weights."""


def min_max(scores: np.ndarray, name: str = "scores") -> np.ndarray:
    """Scores rescaled linearly to [0, 1]; 0.5 for all if they are all equal.

    Shapes: [n] -> float64 [n].

    Raises: ``DataError`` with ``name`` if a score is not finite, or there are no scores.
    """
    scores = np.asarray(scores, dtype=np.float64)
    wrong = int((~np.isfinite(scores)).sum())
    if wrong or not len(scores):
        raise DataError(f"{name}: {wrong} of {len(scores)} scores are not finite numbers. Score these pairs again.")
    return rescaled(scores, scores.min(), scores.max())


def rescaled(scores: np.ndarray, low: float, high: float) -> np.ndarray:
    """(scores - low) / (high - low) in float64; 0.5 if low and high are equal. Shapes: [n] -> float64 [n]."""
    scores = np.asarray(scores, dtype=np.float64)
    return (scores - low) / (high - low) if high > low else np.full(scores.shape, 0.5)


def check_weights(weights: Mapping[str, float]) -> None:
    """Raises ``ValueError`` unless all weights are at least 0 and they sum to 1."""
    total = math.fsum(weights.values())
    if not all(weight >= 0 for weight in weights.values()) or not abs(total - 1) <= TOLERANCE:
        said = ", ".join(f"{name} {weight}" for name, weight in weights.items())
        raise ValueError(f"weights ({said}) sum to {total}; use weights of at least 0 that sum to 1.")


def weighted_sum(signals: Mapping[str, np.ndarray], weights: Mapping[str, float]) -> np.ndarray:
    """The weighted sum of signals. It is added in the order of the names, so that all callers get equal bits."""
    total = np.zeros(())
    for name in sorted(weights):
        total = total + weights[name] * signals[name]
    return total


def fuse(signals: Mapping[str, np.ndarray], weights: Mapping[str, float]) -> np.ndarray:
    """The fused score of each sample: the weighted sum of the signals, each rescaled to [0, 1] over the whole pool.

    Shapes: ``signals`` name -> [n]; ``weights`` name -> weight, for some or all signals; -> float64 [n] in [0, 1].

    Raises: ``ValueError`` if the weights do not sum to 1, a weight names no signal, or lengths differ; ``DataError``
    for scores that are not finite.
    """
    check_weights(weights)
    unknown = [name for name in weights if name not in signals]
    if unknown:
        raise ValueError(f"no signal {unknown[0]!r} to fuse; there are: {', '.join(signals)}.")
    lengths = {name: len(signals[name]) for name in weights}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"signals of different lengths: {lengths}")
    return weighted_sum({name: min_max(signals[name], name) for name in weights}, weights)


def number_kept(total: int, fraction: float) -> int:
    """``int(total * fraction)`` without rounding errors: 0.29 of 100 samples keeps 29, 1 / 3 of 3 samples keeps 1.

    Raises: ``ValueError`` for a fraction outside (0, 1]; ``DataError`` if it keeps no sample.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction = {fraction}; use a value in (0, 1].")
    # a float means the decimal number as it is written (0.29), or a ratio (1 / 3) within its rounding error
    count = math.floor(Fraction(str(float(fraction))) * total * (1 + Fraction(1, 10**15)))
    if not count:
        raise DataError(f"fraction {fraction} keeps no sample of {total}. Use a larger fraction or a larger pool.")
    return count


def keep(scores: np.ndarray, uids: np.ndarray, fraction: float, *, official_ties: bool = False) -> np.ndarray:
    """The rows with the highest scores: exactly ``int(N p)`` rows; of equal scores, those with the lowest uids.

    Shapes: ``scores`` [N], ``uids`` ``u8,u8`` [N] -> int64 [kept], ascending.

    ``official_ties`` follows the official code instead: it keeps all rows whose score is at least the one at position
    ``int(N p)``, counted from 0, of the descending order, so at least one row more.

    Raises: ``ValueError`` for a fraction outside (0, 1] or different lengths; ``DataError`` if no row would be kept or
    a score is not finite.
    """
    scores = np.asarray(scores, dtype=np.float64)
    if len(scores) != len(uids):
        raise ValueError(f"{len(scores)} scores for {len(uids)} uids")
    wrong = int((~np.isfinite(scores)).sum())
    if wrong:
        raise DataError(f"{wrong} of {len(scores)} scores are not finite numbers. Score these pairs again.")
    count = number_kept(len(scores), fraction)
    if official_ties:
        place = min(int(len(scores) * fraction), len(scores) - 1)  # the official code fails if all are kept
        return np.flatnonzero(scores >= -np.partition(-scores, place)[place])
    threshold = -np.partition(-scores, count - 1)[count - 1]
    above, ties = np.flatnonzero(scores > threshold), np.flatnonzero(scores == threshold)
    order = np.argsort(as_bytes(uids[ties]), kind="stable")
    return np.sort(np.concatenate([above, ties[order[: count - len(above)]]]))
