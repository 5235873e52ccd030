# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from recipes_lib.models.lie_operator import LieOperator, MLPOperator
from recipes_lib.recipes.lie_operator import learned
from recipes_lib.recipes.lie_operator.learned import Learning

J = torch.tensor([[0.0, -1.0], [1.0, 0.0]])


def turning(generator, number):
    """Pairs in the plane that turn by up to half a radian."""
    start = torch.randn(number, 2, generator=generator)
    angle = torch.rand(number, 1, 1, generator=generator) - 0.5
    return start, (torch.linalg.matrix_exp(angle * J) @ start[..., None])[..., 0]


SHORT = Learning(generators=1, hidden=32, steps=200, lr=5e-3)


def test_rotations_of_a_plane_are_learned():
    found = learned.learn(turning, 2, SHORT, seed=0)
    assert found.relative_error < 0.1
    start, end = turning(torch.Generator().manual_seed(1), 50)
    error = (found.move(start, found.infer(start, end)) - end).square().sum() / (end - start).square().sum()
    assert error < 0.1


def test_same_seed_learns_the_same_and_leaves_the_global_state():
    torch.manual_seed(0)
    first, drawn = learned.learn(turning, 2, Learning(generators=1, hidden=8, steps=3), seed=4), torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.rand(1))
    second = learned.learn(turning, 2, Learning(generators=1, hidden=8, steps=3), seed=4)
    assert torch.equal(first.move.weight, second.move.weight)
    assert torch.equal(first.infer.layers[0].weight, second.infer.layers[0].weight)


def test_random_generators_stay_and_learned_ones_move():
    start = learned.learn(turning, 2, Learning(kind="random", generators=1, hidden=8, steps=1), seed=0).move
    end = learned.learn(turning, 2, Learning(kind="random", generators=1, hidden=8, steps=5), seed=0).move
    assert isinstance(end, LieOperator)
    assert torch.equal(start.weight, end.weight)
    moved = learned.learn(turning, 2, Learning(generators=1, skew=False, hidden=8, steps=5), seed=0).move
    assert not torch.equal(moved.weight, end.weight)


@pytest.mark.parametrize(("dim", "generators"), [(8, 1), (32, 4), (128, 8)])
def test_mlp_operator_has_no_more_parameters_and_the_next_wider_one_has(dim, generators):
    width = learned.equal_width(dim, generators)
    sizes = [sum(p.numel() for p in MLPOperator(dim, generators, hidden=w).parameters()) for w in (width, width + 1)]
    assert sizes[0] <= generators * dim**2 < sizes[1]


def test_pairs_are_two_poses_of_one_instance():
    seen = torch.arange(12.0).view(3, 4, 1)
    start, end = learned.pairs_of(seen)(torch.Generator().manual_seed(0), 200)
    assert torch.equal(start // 4, end // 4)
    assert (start != end).all()
    assert len({(a.item(), b.item()) for a, b in zip(start, end, strict=True)}) == 3 * 4 * 3


def test_positives_ignore_what_differs_within_a_pair():
    """Of four dimensions, the last two are drawn anew for each image of a pair."""

    def draw(generator, number):
        shared = torch.randn(number, 2, generator=generator)
        own = torch.randn(2, number, 2, generator=generator)
        return torch.cat([shared, own[0]], dim=1), torch.cat([shared, own[1]], dim=1)

    chosen = learned.positives(draw, 4, 2, Learning(steps=300, lr=1e-2), seed=0)
    weight = chosen.weight.abs()
    assert weight[:, :2].norm() > 5 * weight[:, 2:].norm()


def test_principal_components_have_mean_variance_1_and_keep_the_order():
    rows = torch.randn(200, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 5, 2, 0.1, 3]) + 7
    found = learned.principal(rows, 3)(rows)
    torch.testing.assert_close(found.mean(dim=0), torch.zeros(3), atol=1e-4, rtol=0)
    assert found.square().mean().item() == pytest.approx(1, abs=1e-4)
    spread = found.std(dim=0)
    assert spread[0] > spread[1] > spread[2]
