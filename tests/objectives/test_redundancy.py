# SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from recipes_lib.distributed import collectives
from recipes_lib.distributed.local import run_ranks
from recipes_lib.objectives.redundancy import (
    barlow_twins_loss,
    cross_correlation,
    squared_covariances,
    variance_hinge,
    vicreg_loss,
)

# the card's inputs
Z1 = torch.tensor([[1, 0, 2], [0, 1, -1], [2, 1, 0], [-1, 1, 1]], dtype=torch.float64)
Z2 = torch.tensor([[1, 0.5, 1.5], [0, 1, -2], [1, 1, 0], [-1, 0, 1]], dtype=torch.float64)


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


@pytest.mark.parametrize(("scale", "wanted"), [(1.0, 12.156504269259788), (0.3, 18.072201089277986)])
def test_golden_values_of_vicreg(scale, wanted):
    assert vicreg_loss(scale * Z1, scale * Z2)["loss"].item() == pytest.approx(wanted, abs=1e-9)


def test_golden_value_of_vicreg_at_collapse():
    assert vicreg_loss(torch.ones(4, 3), torch.ones(4, 3))["loss"].item() == pytest.approx(24.75, abs=1e-5)


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


@pytest.mark.parametrize(("weight", "wanted"), [(0.0051, 0.6948993994412277), (0.005, 0.6947441630406805)])
def test_golden_values_of_barlow_twins(weight, wanted):
    assert barlow_twins_loss(Z1, Z2, redundancy_weight=weight)["loss"].item() == pytest.approx(wanted, abs=1e-9)


def test_golden_cross_correlation():
    wanted = [
        [0.9438691675, 0.6741775535, 0.0417026],
        [-0.5222152443, 0.1740679503, -0.5922026525],
        [0.1348384525, -0.6741775535, 0.9591597991],
    ]
    torch.testing.assert_close(cross_correlation(Z1, Z2), torch.tensor(wanted).double(), rtol=0, atol=1e-7)


@pytest.mark.parametrize("seed", range(3))
def test_cross_correlation_is_numpys_up_to_the_number_added_to_the_variance(seed):
    first, second = (1e4 * view.detach() for view in draw(seed))  # so large that 1e-5 does not count
    wanted = np.corrcoef(first.numpy(), second.numpy(), rowvar=False)[:3, 3:]
    c = cross_correlation(first, second)
    torch.testing.assert_close(c, torch.from_numpy(wanted), rtol=0, atol=1e-10)
    parts = barlow_twins_loss(first, second, redundancy_weight=0.1)
    invariance = ((np.diag(wanted) - 1) ** 2).sum()
    redundancy = (wanted**2).sum() - (np.diag(wanted) ** 2).sum()
    for name, value in [("invariance", invariance), ("redundancy", redundancy), ("loss", invariance + redundancy / 10)]:
        assert parts[name].item() == pytest.approx(value, abs=1e-9), name


def test_barlow_twins_of_a_collapsed_batch_is_the_number_of_dimensions_with_a_finite_gradient():
    same = torch.ones(4, 3, requires_grad=True)
    loss = barlow_twins_loss(same, same)["loss"]
    assert loss.item() == pytest.approx(3, abs=1e-6)
    loss.backward()
    assert same.grad.isfinite().all()


def test_gradients_of_barlow_twins_are_those_of_finite_differences():
    assert torch.autograd.gradcheck(lambda a, b: barlow_twins_loss(a, b, redundancy_weight=0.3)["loss"], draw(4))


def test_barlow_twins_ignores_order_shift_and_scale():
    first, second = draw(5)
    want = barlow_twins_loss(first, second)["loss"]
    order = torch.tensor([3, 1, 4, 0, 2])
    for pair in [(first[order], second[order]), (first + 7, second - 7), (second, first)]:
        torch.testing.assert_close(barlow_twins_loss(*pair)["loss"], want, rtol=0, atol=1e-10)
    torch.testing.assert_close(barlow_twins_loss(first * 1e4, second * 3e4)["loss"], want, rtol=1e-3, atol=0)


def test_barlow_twins_detaches_its_parts_raises_half_precision_and_names_bad_input():
    parts = barlow_twins_loss(*draw(6))
    assert {name for name, value in parts.items() if value.requires_grad} == {"loss"}
    assert barlow_twins_loss(*(view.bfloat16() for view in draw(6)))["loss"].dtype == torch.float32
    with pytest.raises(ValueError, match=r"got \[4, 3\], \[4, 2\]"):
        barlow_twins_loss(torch.ones(4, 3), torch.ones(4, 2))
    with pytest.raises(ValueError, match="1 image has no variance"):
        barlow_twins_loss(torch.ones(1, 3), torch.ones(1, 3))


LOSSES = {"vicreg": vicreg_loss, "barlow_twins": barlow_twins_loss}


def step_of_a_share(name: str) -> dict[str, Tensor]:
    """Loss and gradient of this rank's half of the images, gradients averaged as DDP does."""
    g = torch.Generator().manual_seed(0)
    encoder = nn.Parameter(torch.randn(6, 4, generator=g, dtype=torch.float64) / 4)
    images = torch.randn(2, 8, 6, generator=g, dtype=torch.float64)
    ranks, rank = collectives.world_size(), collectives.rank()
    parts = LOSSES[name](*(images[:, rank * 8 // ranks : (rank + 1) * 8 // ranks] @ encoder))
    parts["loss"].backward()
    results = {**{name: value.detach() for name, value in parts.items()}, "gradient": encoder.grad}
    return {name: collectives.all_reduce_mean(value) for name, value in results.items()}


@pytest.mark.distributed
@pytest.mark.parametrize("name", LOSSES)
def test_two_ranks_give_the_loss_and_the_gradient_of_one_rank_on_the_whole_batch(name):
    alone = step_of_a_share(name)
    assert name != "vicreg" or alone["variance"] > 0
    for rank in run_ranks(step_of_a_share, 2, name):
        for part, value in alone.items():
            torch.testing.assert_close(rank[part], value, rtol=1e-10, atol=1e-12)
