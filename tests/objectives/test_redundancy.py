# SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from recipes_lib.distributed import collectives
from recipes_lib.distributed.local import run_ranks
from recipes_lib.objectives.redundancy import squared_covariances, variance_hinge, vicreg_loss


def draw(seed: int, batch: int = 5, dim: int = 3) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return tuple((0.7 * torch.randn(batch, dim, generator=g, dtype=torch.float64)).requires_grad_() for _ in range(2))


def by_numpy(first: np.ndarray, second: np.ndarray) -> dict[str, float]:
    """The three terms from numpy's own moments."""
    dim = first.shape[1]
    variance = covariance = 0.0
    for z in (first, second):
        c = np.cov(z, rowvar=False)
        variance += sum(max(0.0, 1 - math.sqrt(c[j, j] + 1e-4)) for j in range(dim)) / dim / 2
        covariance += sum(c[i, j] ** 2 for i in range(dim) for j in range(dim) if i != j) / dim
    invariance = float(((first - second) ** 2).mean())
    parts = {"invariance": invariance, "variance": variance, "covariance": covariance}
    return {**parts, "loss": 25 * invariance + 25 * variance + covariance}


@pytest.mark.parametrize("seed", range(3))
def test_loss_and_its_parts_are_those_of_numpys_moments(seed):
    first, second = draw(seed)
    got = vicreg_loss(first, second)
    wanted = by_numpy(first.detach().numpy(), second.detach().numpy())
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        assert got[name].item() == pytest.approx(value, abs=1e-12), name


def test_each_weight_multiplies_its_own_part():
    first, second = draw(3)
    parts = vicreg_loss(first, second, invariance_weight=2.0, variance_weight=3.0, covariance_weight=5.0)
    wanted = 2 * parts["invariance"] + 3 * parts["variance"] + 5 * parts["covariance"]
    torch.testing.assert_close(parts["loss"], wanted, rtol=0, atol=1e-12)


def test_a_collapsed_batch_pays_the_whole_hinge_and_one_spread_enough_pays_nothing():
    assert variance_hinge(torch.zeros(4, 3, dtype=torch.float64)).item() == pytest.approx(1 - 0.01, abs=1e-12)
    spread = torch.tensor([[2.0, 0.0], [-2.0, 0.0], [0.0, 2.0], [0.0, -2.0]], dtype=torch.float64)
    assert variance_hinge(spread) == 0
    assert squared_covariances(spread) == 0
    twice = spread[:, :1].expand(-1, 2)  # both dimensions say the same: variance 8/3, squared, two pairs over d = 2
    assert squared_covariances(twice).item() == pytest.approx((8 / 3) ** 2, abs=1e-12)


def test_gradients_are_those_of_finite_differences_and_finite_at_collapse():
    assert torch.autograd.gradcheck(lambda a, b: vicreg_loss(a, b)["loss"], draw(4))
    same = torch.ones(4, 3, requires_grad=True)
    vicreg_loss(same, same)["loss"].backward()
    assert same.grad.isfinite().all()


def test_order_of_images_and_a_common_shift_do_not_matter():
    first, second = draw(5)
    want = vicreg_loss(first, second)["loss"]
    order = torch.tensor([3, 1, 4, 0, 2])
    for pair in [(first[order], second[order]), (first + 7, second + 7), (second, first)]:
        torch.testing.assert_close(vicreg_loss(*pair)["loss"], want, rtol=0, atol=1e-10)


def test_only_the_loss_carries_a_graph_and_half_precision_is_raised():
    parts = vicreg_loss(*draw(6))
    assert {name for name, value in parts.items() if value.requires_grad} == {"loss"}
    assert vicreg_loss(*(view.bfloat16() for view in draw(6)))["loss"].dtype == torch.float32


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"got \[4, 3\], \[4, 2\]"):
        vicreg_loss(torch.ones(4, 3), torch.ones(4, 2))
    with pytest.raises(ValueError, match="1 image has no variance"):
        vicreg_loss(torch.ones(1, 3), torch.ones(1, 3))


def step_of_a_share() -> dict[str, Tensor]:
    """Loss and gradient of this rank's half of the images, gradients averaged as DDP does."""
    g = torch.Generator().manual_seed(0)
    encoder = nn.Parameter(torch.randn(6, 4, generator=g, dtype=torch.float64) / 4)
    images = torch.randn(2, 8, 6, generator=g, dtype=torch.float64)
    ranks, rank = collectives.world_size(), collectives.rank()
    parts = vicreg_loss(*(images[:, rank * 8 // ranks : (rank + 1) * 8 // ranks] @ encoder))
    parts["loss"].backward()
    results = {**{name: value.detach() for name, value in parts.items()}, "gradient": encoder.grad}
    return {name: collectives.all_reduce_mean(value) for name, value in results.items()}


@pytest.mark.distributed
def test_two_ranks_give_the_loss_and_the_gradient_of_one_rank_on_the_whole_batch():
    alone = step_of_a_share()
    assert alone["variance"] > 0
    for rank in run_ranks(step_of_a_share, 2):
        for name, value in alone.items():
            torch.testing.assert_close(rank[name], value, rtol=1e-10, atol=1e-12)
