# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

from recipes_lib.distributed import collectives
from recipes_lib.distributed.local import run_ranks
from recipes_lib.models.lie_operator import act, operators
from recipes_lib.objectives.equivariance import generator_cosine, refuse_equal_pairs, relative_error, transfer_loss

J = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
Z = torch.tensor([[1.0, 2.0]], dtype=torch.float64)


def turned(angle, generator=J):
    return act(operators(torch.tensor([[angle]], dtype=torch.float64), generator[None]), Z)


def test_golden_loss_is_summed_over_dimensions():
    target = turned(0.7)
    torch.testing.assert_close(
        target, torch.tensor([[-0.523593187, 2.173902062]], dtype=torch.float64), atol=1e-9, rtol=0
    )
    loss = transfer_loss(turned(0.3), target)
    assert loss.item() == pytest.approx(0.789390060, abs=1e-9)
    assert loss.item() / 2 == pytest.approx(0.394695030, abs=1e-9)


def test_golden_gradient_with_respect_to_the_coefficient():
    t = torch.tensor([[0.3]], dtype=torch.float64, requires_grad=True)
    transfer_loss(act(operators(t, J[None]), Z), turned(0.7)).backward()
    assert t.grad.item() == pytest.approx(-3.894183423, abs=1e-9)
    assert t.grad.item() == pytest.approx(-10 * math.sin(0.4), abs=1e-12)


def test_golden_gradient_with_respect_to_the_generator():
    generator = J[None].clone().requires_grad_()
    at = torch.tensor([[0.3]], dtype=torch.float64)
    transfer_loss(act(operators(at, generator), Z), turned(0.7)).backward()
    wanted = torch.tensor([[0.361712369, 1.118448630], [-0.049806397, -0.124895351]], dtype=torch.float64)
    torch.testing.assert_close(generator.grad[0], wanted, atol=1e-8, rtol=0)


def test_relative_error_is_0_for_the_exact_motion_and_1_for_none_at_any_scale():
    target = turned(0.7)
    for scale in (1.0, 1e-3):
        assert relative_error(scale * target, scale * target, scale * Z) == 0
        assert relative_error(scale * Z, scale * target, scale * Z).item() == pytest.approx(1, abs=1e-12)
        half = relative_error(scale * turned(0.3), scale * target, scale * Z)
        assert half.item() == pytest.approx((2 - 2 * math.cos(0.4)) / (2 - 2 * math.cos(0.7)), abs=1e-12)


def test_loss_of_no_motion_is_the_mean_squared_distance_of_the_pairs():
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 7, 3, generator=g, dtype=torch.float64)
    still = act(operators(torch.zeros(7, 1, dtype=torch.float64), torch.randn(1, 3, 3, generator=g).double()), a)
    assert transfer_loss(still, b).item() == pytest.approx((a - b).square().sum().item() / 7, abs=1e-12)


def test_half_precision_is_raised():
    assert transfer_loss(torch.ones(2, 3).bfloat16(), torch.zeros(2, 3).bfloat16()).dtype == torch.float32


def gradients_of_this_rank(rows, generator):
    """Loss and gradient of the generator, averaged over ranks as DDP does."""
    size = rows.shape[1] // collectives.world_size()
    source, target = rows[:, collectives.rank() * size :][:, :size]
    generator = generator.clone().requires_grad_()
    loss = transfer_loss(act(operators(source[:, :1], generator), source), target)
    loss.backward()
    return [collectives.all_reduce_mean(found.detach()) for found in (loss, generator.grad)]


def test_two_ranks_give_the_loss_and_gradient_of_one_rank_with_all_pairs():
    rows = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    generator = torch.randn(1, 3, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    wanted = gradients_of_this_rank(rows, generator)
    for found in run_ranks(gradients_of_this_rank, 2, rows, generator):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_cosine_of_generators_ignores_sign_and_scale():
    assert generator_cosine(-3 * J, J).item() == pytest.approx(1)
    assert generator_cosine(torch.eye(2, dtype=torch.float64), J).item() == 0
    skewed = torch.tensor([[0.0, -1.0], [0.0, 0.0]], dtype=torch.float64)
    assert generator_cosine(skewed, J).item() == pytest.approx(0.5**0.5)
    with pytest.raises(ValueError, match="is 0 and has no direction"):
        generator_cosine(torch.zeros(2, 2), J)
    with pytest.raises(ValueError, match=r"got \[2, 2\] and \[3, 3\]"):
        generator_cosine(J, torch.eye(3))


def test_pairs_that_show_nothing_are_refused():
    images = torch.arange(12).view(3, 4)
    other = images.clone()
    other[1] += 1
    with pytest.raises(ValueError, match="equal for 2 of 3 pairs: the operator would learn the identity"):
        refuse_equal_pairs(images, other)
    refuse_equal_pairs(images, images + 1)
    with pytest.raises(ValueError, match="equal shapes"):
        refuse_equal_pairs(images, images[:2])
    with pytest.raises(ValueError, match="equal for all 1 pairs: there is no motion"):
        relative_error(Z, Z, Z)
    with pytest.raises(ValueError, match=r"\[N, d\]; got \[1, 2\] and \[2\]"):
        transfer_loss(Z, Z[0])
