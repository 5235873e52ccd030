# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
import torch.nn.functional as F

from recipes_lib.recipes.barack import losses


def test_a_robust_step_takes_hard_and_soft_groups_and_weighs_them_after_the_update():
    each, groups = torch.tensor([0.2, 1.0, 0.5, 2.0]).double(), torch.arange(4)
    q = torch.full((4,), 0.25).double()
    hard = losses.robust_step(each, groups, q, eta=0.1, adjustment=None)
    assert float(hard.loss) == pytest.approx(0.972625603, abs=1e-9)  # case 1 of the card
    soft = losses.robust_step(each, F.one_hot(groups).double(), q, eta=0.1, adjustment=None)
    torch.testing.assert_close(soft, hard)


def test_a_group_without_a_training_point_is_not_adjusted():
    assert losses.adjustment_of(0.0, torch.tensor([4, 0])) is None
    assert losses.adjustment_of(1.0, torch.tensor([4, 0, 25])).tolist() == pytest.approx([0.5, 0.0, 0.2])


def test_the_predictor_is_asked_for_the_attribute_by_its_own_head():
    logits = torch.randn(6, 3, 2, generator=torch.Generator().manual_seed(0))
    groups = torch.tensor([0, 1, 2, 3, 4, 5])
    wanted = F.cross_entropy(torch.stack([logits[i, int(g) // 2] for i, g in enumerate(groups)]), groups % 2)
    torch.testing.assert_close(losses.attribute_loss(logits, groups, 2), wanted)
    one = logits[:, :1]
    torch.testing.assert_close(losses.attribute_loss(one, groups, 2), F.cross_entropy(one[:, 0], groups % 2))


def test_lff_weighs_a_point_by_how_hard_it_is_for_the_twin():
    logits = torch.tensor([[0.0, 0.0], [0.0, 0.0]], requires_grad=True)
    biased = torch.tensor([[4.0, 0.0], [0.0, 4.0]], requires_grad=True)  # right about the first point only
    own, easy = losses.failure_losses(logits, biased, torch.tensor([0, 0]), focus=0.7)
    own.backward()
    assert logits.grad[0].abs().sum() < 0.1 * logits.grad[1].abs().sum()
    assert biased.grad is None  # the weights are constants
    easy.backward()
    p = torch.tensor([0.0, -4.0]).exp() / (1 + torch.exp(torch.tensor(-4.0)))
    assert float(easy.detach()) == pytest.approx(float(((1 - p**0.7) / 0.7).mean()), abs=1e-5)


def test_the_generalised_cross_entropy_tends_to_the_cross_entropy():
    g = torch.Generator().manual_seed(1)
    logits, labels = torch.randn(5, 3, generator=g, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1])
    _, easy = losses.failure_losses(logits, logits, labels, focus=1e-6)
    torch.testing.assert_close(easy, F.cross_entropy(logits, labels), atol=1e-5, rtol=0)
