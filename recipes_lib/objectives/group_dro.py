# SPDX-License-Identifier: Apache-2.0
"""Group DRO: minimise the loss of the worst group, with weights of the groups that follow their losses.

Symbols: l_g the mean loss of group g in a batch, q_g its weight (the q sum to 1), eta the step size of the weights,
n_g the number of training points of group g, C the strength of the adjustment.

A step is :func:`group_losses` (or :func:`soft_group_losses`), :func:`update_weights`, :func:`robust_loss`, in this
order. All three see the batch of all ranks, so two processes take the step of one.

Source: Sagawa, Koh, Hashimoto, Liang, "Distributionally Robust Neural Networks for Group Shifts", arXiv 1911.08731.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from recipes_lib.distributed import collectives
from recipes_lib.objectives.precision import at_least_float32


class GroupLosses(NamedTuple):
    """The mean loss of each group in a batch, over all ranks."""

    mean: Tensor
    """l_g, [groups], with the graph; 0 for a group without a point."""
    weight: Tensor
    """Number of points of each group, or the sum of their probabilities, [groups]."""

    @property
    def present(self) -> Tensor:
        """Whether the batch holds a point of the group.  bool [groups]"""
        return self.weight > 0


def group_losses(losses: Tensor, groups: Tensor, count: int) -> GroupLosses:
    """The mean loss of each group over the batches of all ranks.

    Shapes: ``losses`` [batch], ``groups`` int64 [batch] in 0..count-1 -> two of [count].
    Raises: ``ValueError`` if the lengths differ or a group is outside 0..count-1.
    """
    if losses.shape != groups.shape or losses.dim() != 1:
        raise ValueError(
            f"losses has the shape {list(losses.shape)} and groups {list(groups.shape)}; give one of each per point."
        )
    outside = (groups < 0) | (groups >= count)
    if outside.any():
        raise ValueError(
            f"group {int(groups[outside][0])} is outside 0..{count - 1}. Predict the group of a point without a label "
            "first, or leave the point out."
        )
    losses = at_least_float32(losses)
    sums = losses.new_zeros(2, count)
    sums = sums.index_add(1, groups, torch.stack([losses, torch.ones_like(losses)]))
    return _means(sums)


def soft_group_losses(losses: Tensor, probabilities: Tensor) -> GroupLosses:
    """l_g = sum_i p_i(g) l_i / sum_i p_i(g) over the batches of all ranks; one-hot rows give :func:`group_losses`.

    Shapes: ``losses`` [batch], ``probabilities`` [batch, groups], not negative -> two of [groups].
    Raises: ``ValueError`` if the lengths differ.
    """
    if losses.dim() != 1 or probabilities.shape[:-1] != losses.shape:
        raise ValueError(
            f"losses has the shape {list(losses.shape)} and probabilities {list(probabilities.shape)}; give a row of "
            "group probabilities per point."
        )
    losses = at_least_float32(losses)
    return _means(torch.stack([losses, torch.ones_like(losses)]) @ probabilities.to(losses))


def _means(sums: Tensor) -> GroupLosses:
    """``sums``: the sum of losses and that of weights of this rank, [2, groups]."""
    # summed before the division: a rank may hold more points of a group than another
    total, weight = collectives.all_reduce_sum(sums)
    weight = weight.detach()
    return GroupLosses(total / torch.where(weight > 0, weight, 1), weight)


def uniform_weights(count: int) -> Tensor:
    """The weights before the first step, q_g = 1 / groups.  -> float32 [count]"""
    if count < 1:
        raise ValueError(f"count = {count}; there must be at least 1 group.")
    return torch.full((count,), 1 / count)


def size_adjustment(sizes: Tensor, strength: float) -> Tensor:
    """C / sqrt(n_g), which is added to the loss of a group where its weight is updated: small groups generalise worse.

    Where groups are predicted, ``sizes`` are those of the predicted groups.

    Shapes: ``sizes`` [groups], above 0 -> [groups].
    Raises: ``ValueError`` if the strength is negative or not finite, or naming the groups of size 0.
    """
    if not 0 <= strength < math.inf:
        raise ValueError(f"strength = {strength}; use a finite value >= 0; 0 adjusts nothing.")
    empty = (sizes <= 0).nonzero().flatten().tolist()
    if empty:
        raise ValueError(
            f"the training set holds no point of group {', '.join(map(str, empty))}, and C / sqrt(0) is infinite. Leave "
            "the group out, or use strength = 0."
        )
    return strength / sizes.to(torch.promote_types(sizes.dtype, torch.float32)).sqrt()


def update_weights(q: Tensor, losses: GroupLosses, eta: float, adjustment: Tensor | None = None) -> Tensor:
    """q_g exp(eta (l_g + C / sqrt n_g)), divided by its sum; a group that the batch lacks keeps its q_g before the division.

    Shapes: ``q`` [groups], not negative with sum 1; ``adjustment`` [groups] of :func:`size_adjustment` -> [groups].
    ``q`` is checked by :func:`check_weights` once, where it is read from a checkpoint, and not here at every step.
    Raises: ``ValueError`` if ``eta`` is negative; ``FloatingPointError`` naming a group whose loss is not finite, which
    would make every weight NaN.
    Differs: the official code gives an absent group the loss 0. That is the same without an adjustment; with one, it
    raises the weight of the group by exp(eta C / sqrt n_g) in each step that does not see it.
    """
    if not 0 <= eta < math.inf:
        raise ValueError(f"eta = {eta}; use a finite value >= 0; 0 keeps the weights, 0.01 is usual.")
    mean = losses.mean.detach()
    if not mean.isfinite().all():
        worst = int((~mean.isfinite()).nonzero()[0])
        raise FloatingPointError(f"the loss of group {worst} is {float(mean[worst])}.")
    if adjustment is not None:
        mean = mean + adjustment.to(mean)
    # log-space: exp(eta l) overflows float32 where eta l is above 88
    exponent = torch.where(losses.present, eta * mean, 0).to(q.dtype)
    return torch.softmax(q.log() + exponent, dim=0)


def check_weights(q: Tensor, count: int) -> None:
    """Raises ``ValueError`` unless ``q`` is a distribution over ``count`` groups: not negative, with sum 1."""
    if q.shape != (count,):
        raise ValueError(f"q has the shape {list(q.shape)}, and there are {count} groups: give one weight per group.")
    if not bool((q >= 0).all()) or abs(float(q.sum()) - 1) > 1e-4:  # rounding of float32; NaN compares False
        raise ValueError(
            f"q = {[round(value, 4) for value in q.tolist()]} sums to {float(q.sum()):g}; weights of groups are at least "
            "0 and sum to 1. Begin with uniform_weights, or with the weights of a checkpoint."
        )


def robust_loss(losses: GroupLosses, q: Tensor) -> Tensor:
    """sum_g q_g l_g over the groups that the batch holds; q is a constant.  -> []

    Differs: the official code adds the adjustment to l_g in place, so the loss that it returns includes
    sum_g q_g C / sqrt n_g. The gradient is the same.
    """
    return (q.detach().to(losses.mean) * losses.mean).sum()  # the mean of an absent group is 0
