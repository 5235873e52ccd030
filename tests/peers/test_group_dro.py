# SPDX-License-Identifier: Apache-2.0
"""Parity of group DRO with ``LossComputer`` of the public code of group DRO, and with WILDS's, over 30 steps.

Neither is a package that can be installed (WILDS's algorithm lies in its examples), so they are no peers here. The weights
after 30 steps were made once with the public ``loss.py``, in float64 on the CPU, and the rule of both is written anew with
numpy: a group that the batch lacks has the loss 0, and the adjustment counts in the loss.
"""

import numpy as np
import pytest
import torch

from recipes_lib.objectives import group_dro
from recipes_lib.objectives.group_dro import GroupLosses

ETA, SIZES = 0.1, torch.tensor([3498.0, 184.0, 56.0, 1057.0], dtype=torch.float64)
PUBLIC = {
    # strength of the adjustment: the weights of the public code after 30 steps
    0.0: [0.2295478395865703, 0.31498705624254714, 0.3475458941234593, 0.10791921004742325],
    2.0: [0.1540739870306559, 0.29729692254755674, 0.46991621596212446, 0.07871287445966295],
}


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """16 losses and groups; the last group is in four of five batches."""
    g = torch.Generator().manual_seed(step)
    losses = 3 * torch.rand(16, generator=g, dtype=torch.float64)
    return losses.requires_grad_(), torch.randint(3 if step % 5 == 0 else 4, (16,), generator=g)


def public_step(losses: np.ndarray, groups: np.ndarray, q: np.ndarray, adjustment: np.ndarray) -> tuple:
    """The weights and the loss by the public rule."""
    members = groups[None] == np.arange(4)[:, None]
    means = (members @ losses) / np.maximum(members.sum(axis=1), 1) + adjustment
    q = q * np.exp(ETA * means)
    return q / q.sum(), means @ (q / q.sum())


@pytest.mark.parametrize("strength", PUBLIC)
def test_weights_and_losses_are_those_of_the_public_code_once_absent_groups_have_the_loss_0(strength):
    adjustment = group_dro.size_adjustment(SIZES, strength)
    ours, theirs = torch.full((4,), 0.25, dtype=torch.float64), np.full(4, 0.25)
    for step in range(30):
        losses, groups = batch(step)
        means = group_dro.group_losses(losses, groups, 4)
        as_there = GroupLosses(means.mean, torch.ones(4))  # absent groups count, with the loss 0
        ours = group_dro.update_weights(ours, as_there, ETA, adjustment)
        theirs, told = public_step(losses.detach().numpy(), groups.numpy(), theirs, adjustment.numpy())
        loss = group_dro.robust_loss(means, ours)
        assert float(loss.detach()) + float(ours @ adjustment) == pytest.approx(told, abs=1e-12)
        loss.backward()
        wanted = theirs[groups.numpy()] / np.bincount(groups.numpy(), minlength=4)[groups.numpy()]
        np.testing.assert_allclose(losses.grad.numpy(), wanted, atol=1e-12)
    np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-12)
    np.testing.assert_allclose(ours.numpy(), PUBLIC[strength], atol=1e-12)


@pytest.mark.parametrize(("strength", "same"), [(0.0, True), (2.0, False)])
def test_skipping_absent_groups_differs_from_the_public_code_with_an_adjustment_alone(strength, same):
    adjustment, ours = group_dro.size_adjustment(SIZES, strength), torch.full((4,), 0.25, dtype=torch.float64)
    for step in range(30):
        ours = group_dro.update_weights(ours, group_dro.group_losses(*batch(step), 4), ETA, adjustment)
    apart = np.abs(ours.numpy() - PUBLIC[strength]).max()
    assert apart < 1e-12 if same else 1e-3 < apart < 1e-2
