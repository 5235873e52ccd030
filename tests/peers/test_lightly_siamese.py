# SPDX-License-Identifier: Apache-2.0
"""Parity with lightly's ``NTXentLoss``, ``VICRegLoss``, ``BarlowTwinsLoss``, ``SwaVLoss``, ``WMSELoss`` and ``LeJEPALoss``.

Losses and gradients, float64, atol 1e-9; W-MSE and LeJEPA 1e-5, because lightly computes them partly in float32.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from recipes_lib.objectives.contrastive import nt_xent
from recipes_lib.objectives.gaussian import lejepa_loss
from recipes_lib.objectives.redundancy import barlow_twins_loss, vicreg_loss
from recipes_lib.objectives.swapped import swav_loss
from recipes_lib.objectives.whitening import w_mse_loss

lightly_loss = pytest.importorskip("lightly.loss", reason="lightly is not installed")


def draw(*size: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()


def same(ours: Tensor, theirs: Tensor, *inputs: Tensor, atol: float = 1e-9) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)
    wanted = torch.autograd.grad(theirs, inputs, retain_graph=True)
    for mine, his in zip(torch.autograd.grad(ours, inputs), wanted, strict=True):
        torch.testing.assert_close(mine, his, rtol=0, atol=atol)


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


@pytest.mark.parametrize("weight", [0.005, 0.1])
def test_cross_correlation_equals_barlow_twins_on_one_process(weight):
    """On several, lightly takes mean and variance from one rank's images, and differs."""
    views = draw(2, 8, 16)
    same(
        barlow_twins_loss(*views, redundancy_weight=weight)["loss"], lightly_loss.BarlowTwinsLoss(weight)(*views), views
    )


@pytest.mark.parametrize("views", [2, 4])
def test_whitening_equals_w_mse_on_one_sub_batch(views):
    """lightly permutes the images before it cuts a batch into sub-batches; one sub-batch has no order."""
    embeddings = draw(views, 16, 4)
    theirs = lightly_loss.WMSELoss(embedding_dim=4, w_size=16, num_samples=views, track_running_stats=False)
    same(w_mse_loss(embeddings, whitening_size=16)["loss"], theirs(embeddings.flatten(0, 1)), embeddings, atol=1e-5)


@pytest.mark.parametrize("knots", [9, 17])
def test_prediction_and_gaussian_views_equal_lejepa_on_the_same_directions(knots, monkeypatch):
    embeddings = draw(5, 8, 6)
    theirs = lightly_loss.LeJEPALoss(lambda_param=0.2, sigreg_knots=knots, sigreg_num_vectors=32).double()
    drawn = []
    generate = theirs.sigreg._generate_unit_vectors
    monkeypatch.setattr(
        theirs.sigreg, "_generate_unit_vectors", lambda *given: drawn.append(generate(*given)) or drawn[0]
    )
    loss = theirs(global_proj=embeddings[:2], local_proj=embeddings[2:])
    same(
        lejepa_loss(embeddings, drawn[0], global_views=2, weight=0.2, knots=knots)["loss"], loss, embeddings, atol=1e-5
    )
