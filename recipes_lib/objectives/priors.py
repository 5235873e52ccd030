# SPDX-License-Identifier: Apache-2.0
"""PMSN's prior: how often each prototype should be chosen, and the divergence of the actual choices from it.

Symbols: pbar the mean assignment of all anchors, pi the prior, K prototypes, a the power law's exponent (tau in the
paper, which is a temperature here). MSN's mean-entropy maximisation is the case of equal frequencies:
KL(pbar || 1/K) = log K - H(pbar).

Source: Assran et al., "The Hidden Uniform Cluster Prior in Self-Supervised Learning", arXiv 2210.07277.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from recipes_lib.distributed import collectives

Direction = Literal["forward", "reverse"]
SUM_TOLERANCE = 1e-5
"""How far the sum of the frequencies may be from 1: the rounding of ten thousand float32 entries stays within it."""


def power_law(count: int, exponent: float) -> Tensor:
    """The power-law prior pi_k = k^-a / sum_j j^-a for k = 1..K: the first prototype is the most frequent.

    a = 0 gives the uniform prior.

    Shapes: -> float64 [count], positive, sums to 1.
    Raises: ``ValueError`` for an exponent below 0 or not finite, or a count below 1.
    """
    if not 0 <= exponent < math.inf:
        raise ValueError(f"exponent = {exponent}; use a finite value >= 0; 0 is uniform, 0.25 lightly's default.")
    if count < 1:
        raise ValueError(f"count = {count}; a prior needs at least 1 prototype.")
    weights = torch.arange(1, count + 1, dtype=torch.float64) ** -exponent
    return weights / weights.sum()


def uniform(count: int) -> Tensor:
    """The uniform prior pi_k = 1 / K, which MSN uses implicitly.  -> float64 [count]"""
    return power_law(count, 0.0)


def given(frequencies: Tensor, *, normalise: bool = False) -> Tensor:
    """A prior made of given frequencies, such as those of the classes where they are known.

    Shapes: [K] of any real dtype -> float64 [K], positive, sums to 1.
    ``normalise``: the entries are counts, and are divided by their sum.
    Raises: ``ValueError`` naming the first entry that is 0, negative or not finite (KL(pbar || pi) is infinite where
    pi_k = 0 and pbar_k > 0), or the sum where it is not 1.
    """
    if frequencies.dim() != 1 or not len(frequencies):
        raise ValueError(f"a prior is one row of frequencies, [K]; this has the shape {list(frequencies.shape)}.")
    prior = frequencies.detach().double()
    bad = ~((prior > 0) & (prior < math.inf))  # NaN compares False
    if bad.any():
        first = int(bad.nonzero()[0])
        raise ValueError(
            f"prior[{first}] = {float(prior[first]):g}; every entry must be above 0 and finite ({int(bad.sum())} of "
            f"{len(prior)} are not). Give a prototype that may stay empty a small frequency."
        )
    total = float(prior.sum())
    if not normalise and abs(total - 1) > SUM_TOLERANCE:
        raise ValueError(f"the prior sums to {total:g}, not to 1; pass normalise=True if its entries are counts.")
    return prior / total


def fitted(prior: Tensor, assignments: Tensor) -> Tensor:
    """Converts ``prior`` [K] to the dtype and device of ``assignments`` [n, K].

    Raises: ``ValueError`` with both lengths if they differ.
    """
    if prior.shape != assignments.shape[1:]:
        raise ValueError(
            f"the prior has the shape {list(prior.shape)}, but there are {assignments.shape[1]} prototypes."
        )
    return prior.to(assignments)


def prior_divergence(assignments: Tensor, prior: Tensor, direction: Direction = "forward") -> Tensor:
    """KL(pbar || pi) >= 0, which is zero if the anchors of all ranks together use the prototypes as often as pi says.

    ``direction`` "forward": sum_k pbar_k log(pbar_k / pi_k). Its gradient log(pbar_k / pi_k) + 1 grows like a logarithm
    as a prototype empties, so prototypes can become empty. "reverse": KL(pi || pbar). Its gradient -pi_k / pbar_k grows
    like 1 / pbar_k. pbar is not sharpened. Prototype k always has frequency pi_k: nothing is sorted. ``prior`` is
    converted to the assignments' dtype and device.

    Shapes: ``assignments`` [V * B, K], rows sum to 1, ``prior`` [K] -> [].
    Raises: ``ValueError`` where the sizes do not fit or the direction is unknown.
    Differs: lightly's ``PMSNLoss`` computes the reverse divergence, over the anchors of one rank only.
    """
    prior = fitted(prior, assignments)
    mean_assignment = collectives.all_reduce_mean(assignments.mean(dim=0))  # [K]; its gradient crosses ranks
    return divergence(mean_assignment, prior, direction)


def divergence(mean_assignment: Tensor, prior: Tensor, direction: Direction) -> Tensor:
    """KL(pbar || pi) of a given mean assignment, or KL(pi || pbar) if ``direction`` is "reverse".  [K], [K] -> []

    Raises: ``ValueError`` if the direction is unknown.
    """
    if direction not in ("forward", "reverse"):
        raise ValueError(f"direction = {direction!r}; it must be 'forward' or 'reverse'.")
    # the clamp makes 0 log 0 = 0, and keeps the derivative of a prototype that is never used finite
    log_ratio = mean_assignment.clamp_min(torch.finfo(prior.dtype).tiny).log() - prior.log()  # [K]
    return (mean_assignment * log_ratio).sum() if direction == "forward" else -(prior * log_ratio).sum()
