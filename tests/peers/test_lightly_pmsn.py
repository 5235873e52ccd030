# SPDX-License-Identifier: Apache-2.0
"""Parity with ``lightly.loss.PMSNLoss`` where the formulas agree, and what to expect where they do not.

They agree for direction reverse, Sinkhorn towards uniform, one rank; atol 1e-6, for its prior is float32. Its doc-string
names KL(mean_anchor_probs, target_dist), its code computes KL(target_dist, mean_anchor_probs).
"""

import pytest
import torch
from torch import Tensor

from recipes_lib.objectives.priors import given, power_law, prior_divergence
from recipes_lib.objectives.prototypes import assign, msn_loss

lightly_loss = pytest.importorskip("lightly.loss", reason="lightly is not installed")
pytestmark = pytest.mark.filterwarnings("ignore:To copy construct from a tensor:UserWarning")  # lightly's own line

TEMPERATURE = 0.1


@pytest.fixture
def inputs() -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    anchors = torch.randn(3 * 8, 16, generator=g, dtype=torch.float64, requires_grad=True)
    targets = torch.randn(8, 16, generator=g, dtype=torch.float64)
    prototypes = torch.randn(12, 16, generator=g, dtype=torch.float64, requires_grad=True)
    return anchors, targets, prototypes


@pytest.mark.parametrize("weight", [0.0, 1.0])
@pytest.mark.parametrize("iterations", [0, 3])
@pytest.mark.parametrize("exponent", [0.25, 1.0])
def test_loss_and_gradients_equal_lightlys_in_the_reverse_direction(inputs, exponent, iterations, weight):
    anchors, targets, prototypes = inputs
    peer = lightly_loss.PMSNLoss(
        TEMPERATURE, sinkhorn_iterations=iterations, regularization_weight=weight, power_law_exponent=exponent
    )
    theirs = peer(anchors, targets, prototypes, target_sharpen_temperature=0.25)
    ours = msn_loss(
        anchors,
        targets,
        prototypes,
        sinkhorn_iterations=iterations,
        me_max_weight=weight,
        prior=power_law(12, exponent),
        direction="reverse",
    )["loss"]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    wanted = torch.autograd.grad(theirs, (anchors, prototypes))
    for mine, his in zip(torch.autograd.grad(ours, (anchors, prototypes)), wanted, strict=True):
        torch.testing.assert_close(mine, his, rtol=0, atol=1e-6)


def test_loss_equals_lightlys_with_a_prior_of_ones_own(inputs):
    anchors, targets, prototypes = inputs
    prior = given(torch.arange(1, 13), normalise=True)
    theirs = lightly_loss.PMSNCustomLoss(lambda mean: prior)(anchors, targets, prototypes)
    ours = msn_loss(anchors, targets, prototypes, prior=prior, direction="reverse")["loss"]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)


def test_our_default_direction_differs_from_lightlys_by_the_difference_of_the_two_divergences(inputs):
    prior = power_law(12, 1.0)
    theirs = lightly_loss.PMSNLoss(TEMPERATURE, power_law_exponent=1.0)(*inputs)
    ours = msn_loss(*inputs, prior=prior)["loss"]
    p = assign(inputs[0], inputs[2], TEMPERATURE)
    gap = prior_divergence(p, prior, "forward") - prior_divergence(p, prior, "reverse")
    assert gap.abs() > 0.01
    torch.testing.assert_close(ours - theirs, gap, rtol=0, atol=1e-6)


def test_exponent_zero_is_msn_in_our_direction_and_not_in_lightlys(inputs):
    anchors, targets, prototypes = inputs
    crowded = anchors + 2  # towards a few prototypes: the two divergences are equal at the prior itself
    msn = lightly_loss.MSNLoss(TEMPERATURE)(crowded, targets, prototypes)
    ours = msn_loss(crowded, targets, prototypes, prior=power_law(12, 0.0))["loss"]
    torch.testing.assert_close(ours, msn, rtol=0, atol=1e-9)
    pmsn = lightly_loss.PMSNLoss(TEMPERATURE, power_law_exponent=0.0)(crowded, targets, prototypes)
    assert (pmsn - msn).abs() > 0.01
