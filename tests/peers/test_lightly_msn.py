# SPDX-License-Identifier: Apache-2.0
"""Parity with ``lightly.loss.MSNLoss``, float64, atol 1e-9. It has the same view-major anchors and log K in ME-MAX."""

import pytest
import torch

from recipes_lib.objectives.prototypes import msn_loss

lightly_loss = pytest.importorskip("lightly.loss", reason="lightly is not installed")


@pytest.mark.parametrize("weight", [0.0, 1.0])
@pytest.mark.parametrize("iterations", [0, 3])
@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_loss_and_gradients_equal_lightlys(temperature, iterations, weight):
    g = torch.Generator().manual_seed(0)
    anchors = torch.randn(3 * 8, 16, generator=g, dtype=torch.float64, requires_grad=True)
    targets = torch.randn(8, 16, generator=g, dtype=torch.float64)
    prototypes = torch.randn(12, 16, generator=g, dtype=torch.float64, requires_grad=True)
    peer = lightly_loss.MSNLoss(temperature, sinkhorn_iterations=iterations, regularization_weight=weight)
    theirs = peer(anchors, targets, prototypes, target_sharpen_temperature=0.25)
    ours = msn_loss(
        anchors,
        targets,
        prototypes,
        temperature=temperature,
        sharpen_temperature=0.25,
        sinkhorn_iterations=iterations,
        me_max_weight=weight,
    )["loss"]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)
    wanted = torch.autograd.grad(theirs, (anchors, prototypes))
    for mine, his in zip(torch.autograd.grad(ours, (anchors, prototypes)), wanted, strict=True):
        torch.testing.assert_close(mine, his, rtol=0, atol=1e-9)
