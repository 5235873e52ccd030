# SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from recipes_lib.distributed import collectives
from recipes_lib.distributed.local import run_ranks
from recipes_lib.objectives.gaussian import epps_pulley, lejepa_loss, random_directions


def draw(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slices(dim: int = 4, count: int = 7) -> Tensor:
    return random_directions(dim, count, torch.Generator().manual_seed(1)).double()


def by_numpy(x: np.ndarray, knots: int = 17) -> float:
    """The statistic with complex numbers and numpy's trapezoidal rule over the whole of [-3, 3]."""
    t = np.linspace(-3, 3, 2 * knots - 1)
    distance = np.abs(np.exp(1j * np.outer(t, x)).mean(axis=1) - np.exp(-(t**2) / 2)) ** 2
    return len(x) * np.trapezoid(distance * np.exp(-(t**2) / 2), t)


def exactly(x: np.ndarray) -> float:
    """The integral over the whole line, in closed form: it is a sum of Gaussian integrals."""
    pairs = np.exp(-((x[:, None] - x[None]) ** 2) / 2).mean()
    cross = np.exp(-(x**2) / 4).mean() * math.sqrt(2)
    return len(x) * math.sqrt(2 * math.pi) * (pairs - cross + 1 / math.sqrt(3))


@pytest.mark.parametrize("knots", [5, 17])
def test_the_statistic_is_the_trapezoidal_rule_on_the_characteristic_functions(knots):
    x = draw(2, 9, 3)
    got = epps_pulley(x, knots=knots)
    wanted = [[by_numpy(view[:, slice].numpy(), knots) for slice in range(3)] for view in x]
    torch.testing.assert_close(got, torch.tensor(wanted), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (1.0, 0.5), (0.0, 3.0)])
def test_17_knots_up_to_3_are_within_3_percent_of_the_integral_over_the_whole_line(shift, scale):
    x = shift + scale * draw(50, 1)
    assert epps_pulley(x).item() == pytest.approx(exactly(x[:, 0].numpy()), rel=0.03)


def test_golden_values_of_embeddings_that_are_all_zero():
    # phi_hat = 1: N integral (1 - exp(-t^2/2))^2 exp(-t^2/2) = N sqrt(2 pi) (1 - sqrt 2 + 1 / sqrt 3), over the line
    collapsed = epps_pulley(torch.zeros(8, 1, dtype=torch.float64)).item()
    assert collapsed == pytest.approx(by_numpy(np.zeros(8)), abs=1e-12)
    assert collapsed == pytest.approx(8 * math.sqrt(2 * math.pi) * (1 - math.sqrt(2) + 1 / math.sqrt(3)), rel=0.03)


def test_draws_of_a_standard_normal_have_a_far_lower_statistic_than_a_collapse_or_another_scale():
    x = draw(500, 1)
    normal = epps_pulley(x).item()
    assert all(epps_pulley(other).item() > 10 * normal for other in (0 * x, 3 * x, x + 1, x.sign()))


def test_the_loss_is_the_weighted_sum_of_prediction_and_the_mean_statistic_of_all_views_and_directions():
    z, directions = draw(3, 6, 4), slices()
    parts = lejepa_loss(z, directions, global_views=2, weight=0.3)
    centre = z[:2].mean(dim=0)
    prediction = np.mean([((view - centre) ** 2).mean().item() for view in z])
    statistic = np.mean([[by_numpy((view @ a).numpy()) for a in directions.T] for view in z])
    assert parts["prediction"].item() == pytest.approx(prediction, abs=1e-12)
    assert parts["sigreg"].item() == pytest.approx(statistic, abs=1e-12)
    assert parts["loss"].item() == pytest.approx(0.7 * prediction + 0.3 * statistic, abs=1e-12)


@pytest.mark.parametrize("view", range(4))
@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_every_view_enters_both_terms(view, weight):
    """Public ports regularised the local views only; with weight 1 the loss is SIGReg alone."""
    z = draw(4, 6, 4).requires_grad_()
    loss = lejepa_loss(z, slices(), global_views=2, weight=weight)["loss"]
    loss.backward()
    assert (z.grad[view].abs().sum(dim=1) > 1e-4).all()
    moved = z.detach().clone()
    moved[view] += 0.1 * draw(6, 4, seed=5)
    assert (lejepa_loss(moved, slices(), global_views=2, weight=weight)["loss"] - loss).abs() > 1e-4


def test_without_sigreg_a_collapse_is_the_minimum_and_with_it_draws_of_a_normal_are_better():
    collapsed, normal = torch.zeros(2, 64, 4, dtype=torch.float64), draw(1, 64, 4).expand(2, -1, -1)
    free, held = (
        [lejepa_loss(z, slices(), global_views=2, weight=w)["loss"] for z in (collapsed, normal)] for w in (0.0, 0.05)
    )
    assert free[0] == free[1] == 0
    assert held[0] > 5 * held[1]


def test_nothing_is_detached():
    z = draw(3, 5, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: lejepa_loss(x, slices(), global_views=2, weight=0.2)["loss"], z)


def test_directions_are_unit_vectors_that_depend_on_the_generator_alone():
    first, again, other = (random_directions(5, 9, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    torch.testing.assert_close(first.norm(dim=0), torch.ones(9))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_only_the_loss_carries_a_graph_and_half_precision_is_raised():
    parts = lejepa_loss(draw(2, 6, 4).requires_grad_(), slices(), global_views=2)
    assert {name for name, value in parts.items() if value.requires_grad} == {"loss"}
    assert lejepa_loss(draw(2, 6, 4).bfloat16(), slices().float(), global_views=2)["loss"].dtype == torch.float32


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"global_views": 3}, "global_views = 3 of 2 views"),
        ({"global_views": 0}, "global_views = 0 of 2 views"),
        ({"weight": 1.5}, r"weight = 1.5; it must be in \[0, 1\] \(0.05 is usual\)"),
        ({"weight": math.nan}, "weight = nan"),
        ({"knots": 1}, "knots = 1; an integral needs at least 2"),
    ],
)
def test_a_setting_out_of_range_is_named(settings, message):
    with pytest.raises(ValueError, match=message):
        lejepa_loss(draw(2, 6, 4), slices(), **{"global_views": 2, **settings})


def test_directions_of_another_dimension_are_named():
    with pytest.raises(ValueError, match=r"got \[2, 6, 4\], \[5, 7\]"):
        lejepa_loss(draw(2, 6, 4), slices(dim=5), global_views=2)


def step_of_a_share() -> dict[str, Tensor]:
    """Loss and gradient of this rank's half of the images, gradients averaged as DDP does."""
    encoder = nn.Parameter(draw(6, 4, seed=2) / 2)
    images = draw(3, 8, 6, seed=3)
    ranks, rank = collectives.world_size(), collectives.rank()
    own = images[:, rank * 8 // ranks : (rank + 1) * 8 // ranks]
    parts = lejepa_loss(own @ encoder, slices(), global_views=2, weight=0.5)
    parts["loss"].backward()
    results = {**{name: value.detach() for name, value in parts.items()}, "gradient": encoder.grad}
    return {name: collectives.all_reduce_mean(value) for name, value in results.items()}


@pytest.mark.distributed
def test_two_ranks_give_the_loss_and_the_gradient_of_one_rank_on_the_whole_batch():
    alone = step_of_a_share()
    for rank in run_ranks(step_of_a_share, 2):
        for name, value in alone.items():
            torch.testing.assert_close(rank[name], value, rtol=1e-10, atol=1e-12)
