# SPDX-License-Identifier: Apache-2.0
"""The losses of both steps, for images and for any other points."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from recipes_lib.objectives import group_dro


class RobustStep(NamedTuple):
    """The loss of a step of group DRO, and the weights of the groups after it."""

    loss: Tensor
    q: Tensor


def robust_step(losses: Tensor, groups: Tensor, q: Tensor, *, eta: float, adjustment: Tensor | None) -> RobustStep:
    """One step of group DRO on the batch of all ranks.

    Shapes: ``losses`` [batch]; ``groups`` int64 [batch], or probabilities [batch, groups]; ``q`` [groups].
    """
    soft = groups.dim() == 2
    means = group_dro.soft_group_losses(losses, groups) if soft else group_dro.group_losses(losses, groups, len(q))
    q = group_dro.update_weights(q, means, eta, adjustment)
    return RobustStep(group_dro.robust_loss(means, q), q)


def adjustment_of(strength: float, sizes: Tensor) -> Tensor | None:
    """C / sqrt(n_g) of the groups that are used, ``None`` for C = 0; a group without a point, which is never in a batch, gets 0.

    Shapes: ``sizes`` [groups] -> float32 [groups].
    """
    if strength == 0:
        return None
    used = sizes > 0
    found = torch.zeros(len(sizes))
    found[used] = group_dro.size_adjustment(sizes[used].float(), strength)
    return found


def attribute_loss(logits: Tensor, groups: Tensor, values: int) -> Tensor:
    """The predictor's cross-entropy; its batches hold each group equally often.

    Shapes: ``logits`` [batch, heads, attributes], one head per class or one for all; ``groups`` int64 [batch] -> [].
    """
    return F.cross_entropy(of_class(logits, groups // values).float(), groups % values)


def of_class(logits: Tensor, labels: Tensor) -> Tensor:
    """The logits of each point's own head.  [batch, heads, attributes], int64 [batch] -> [batch, attributes]"""
    return logits[:, 0] if logits.shape[1] == 1 else logits[torch.arange(len(labels), device=labels.device), labels]


def failure_losses(logits: Tensor, biased: Tensor, labels: Tensor, focus: float) -> tuple[Tensor, Tensor]:
    """LfF: the mean losses of the network and of its biased twin, which learns what is easy.

    The twin's generalised cross-entropy (1 - p^focus) / focus weakens the points that it gets wrong; the network weighs
    a point by the twin's share CE_b / (CE_b + CE) of both losses.

    Shapes: two logits [batch, classes], ``labels`` int64 [batch] -> two of [].
    Source: Nam et al., "Learning from Failure", arXiv 2007.02561.
    Differs: the official code takes the weights from running means of each point's losses, divided by the class's largest.
    """
    own, easy = F.cross_entropy(logits, labels, reduction="none"), F.cross_entropy(biased, labels, reduction="none")
    weights = (easy / (easy + own).clamp_min(1e-8)).detach()  # both losses may be 0
    generalised = (1 - (-easy * focus).exp()) / focus  # p = exp(-CE)
    return (weights * own).mean(), generalised.mean()
