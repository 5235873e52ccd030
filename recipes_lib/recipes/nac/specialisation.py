# SPDX-License-Identifier: Apache-2.0
"""Whether modules specialise: the information that the use of a module carries about a true factor of the inputs.

Use and factor are compared with permutations of the factor, since with few samples any two quantities share some bits.

Symbols: N samples, U modules, K values of the factor.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Information:
    """What the use of each module says about a factor."""

    bits: Tensor
    """float64 [U]: the mutual information of each module's use and the factor."""
    chance: Tensor
    """float64 [U]: the same with permuted factors, on average."""
    p_value: float
    """Share of the permutations in which some module's bits reach the largest of ``bits``, the true order counted."""


def mutual_information(use: Tensor, factor: Tensor, *, bins: int = 4) -> Tensor:
    """The mutual information of each module's use and a factor, in bits, from counts.

    Use is cut at its quantiles into ``bins`` groups of equal size; a module whose use is always the same has 0 bits.

    Shapes: ``use`` float [N, U], ``factor`` int64 [N], values from 0 -> float64 [U].
    Raises: ``ValueError`` for fewer than two bins, or another number of samples.
    """
    return _bits(_groups(use, bins), _one_hot(use, factor))


def specialisation(
    use: Tensor, factor: Tensor, *, generator: torch.Generator, bins: int = 4, permutations: int = 200
) -> Information:
    """The mutual information of use and factor beside that of permuted factors.

    Permutations keep how often each value of the factor occurs, and which modules are used together. The p-value is of
    the largest of all modules, so testing many modules does not make it small.

    Raises: ``ValueError`` as :func:`mutual_information`.
    """
    groups, values = _groups(use, bins), _one_hot(use, factor)
    bits = _bits(groups, values)
    null = torch.stack(
        [_bits(groups, values[torch.randperm(len(values), generator=generator)]) for _ in range(permutations)]
    )  # [permutations, U]
    reached = int((null.amax(dim=1) >= bits.max() - 1e-12).sum())
    return Information(bits, null.mean(dim=0), (1 + reached) / (1 + permutations))


def _groups(use: Tensor, bins: int) -> Tensor:
    """The group of each sample by each module's use, as one-hot rows.  [N, U] -> float64 [N, U, bins]"""
    if bins < 2:
        raise ValueError(f"bins = {bins}; at least 2 groups can tell anything.")
    cuts = torch.quantile(use.double(), torch.linspace(0, 1, bins + 1, dtype=torch.float64)[1:-1], dim=0)  # [bins-1, U]
    group = (use.double()[:, :, None] > cuts.T).sum(dim=2)
    return F.one_hot(group, bins).double()


def _one_hot(use: Tensor, factor: Tensor) -> Tensor:
    if len(use) != len(factor):
        raise ValueError(f"{len(factor)} values of the factor for the use of modules in {len(use)} samples.")
    return F.one_hot(factor).double()  # [N, K]


def _bits(groups: Tensor, values: Tensor) -> Tensor:
    joint = torch.einsum("nub,nk->ubk", groups, values) / len(values)
    apart = joint.sum(dim=2, keepdim=True) * joint.sum(dim=1, keepdim=True)
    return (torch.xlogy(joint, joint) - torch.xlogy(joint, apart)).sum(dim=(1, 2)) / math.log(2)
