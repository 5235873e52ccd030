# SPDX-License-Identifier: Apache-2.0
"""Parity with lightly's ``NTXentLoss``, ``VICRegLoss`` and ``SwaVLoss``, losses and gradients, float64, atol 1e-9."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from recipes_lib.objectives.contrastive import nt_xent
from recipes_lib.objectives.redundancy import vicreg_loss
from recipes_lib.objectives.swapped import swav_loss

lightly_loss = pytest.importorskip("lightly.loss", reason="lightly is not installed")


def draw(*size: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()


def same(ours: Tensor, theirs: Tensor, *inputs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)
    wanted = torch.autograd.grad(theirs, inputs, retain_graph=True)
    for mine, his in zip(torch.autograd.grad(ours, inputs), wanted, strict=True):
        torch.testing.assert_close(mine, his, rtol=0, atol=1e-9)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_contrastive_loss_equals_ntxent(temperature):
    views = draw(2, 8, 16)
    theirs = lightly_loss.NTXentLoss(temperature)(*views)
    same(nt_xent(*views, temperature=temperature)["loss"], theirs, views)


def test_redundancy_reduction_equals_vicreg():
    views = draw(2, 8, 16)
    same(vicreg_loss(*views)["loss"], lightly_loss.VICRegLoss()(*views), views)
    weights = {"invariance_weight": 2.0, "variance_weight": 3.0, "covariance_weight": 4.0}
    same(vicreg_loss(*views, **weights)["loss"], lightly_loss.VICRegLoss(2.0, 3.0, 4.0)(*views), views)


@pytest.mark.parametrize("small_views", [0, 3])
def test_swapped_prediction_equals_swav_on_cosines(small_views):
    embeddings, prototypes = draw(2 + small_views, 8, 16), draw(12, 16)
    cosines = F.normalize(embeddings, dim=2) @ F.normalize(prototypes, dim=1).T
    theirs = lightly_loss.SwaVLoss()(list(cosines[:2]), list(cosines[2:])).squeeze()  # it returns [1]
    same(swav_loss(embeddings, prototypes)["loss"], theirs, embeddings, prototypes)
