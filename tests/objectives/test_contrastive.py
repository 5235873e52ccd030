# SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from recipes_lib.distributed import collectives
from recipes_lib.distributed.local import run_ranks
from recipes_lib.objectives.contrastive import nt_xent


def draw(seed: int, batch: int = 4, dim: int = 3) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(batch, dim, generator=g, dtype=torch.float64).requires_grad_() for _ in range(2))


def by_loops(first: np.ndarray, second: np.ndarray, temperature: float) -> float:
    """Eq. 1 word by word: for each of the 2N views, its positive against the 2N - 1 others."""
    views = [row / np.sqrt((row**2).sum()) for row in np.concatenate([first, second])]
    half, total = len(first), 0.0
    for i, view in enumerate(views):
        positive = math.exp(float(view @ views[(i + half) % (2 * half)]) / temperature)
        others = sum(math.exp(float(view @ other) / temperature) for k, other in enumerate(views) if k != i)
        total -= math.log(positive / others)
    return total / (2 * half)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
def test_loss_is_equation_1_written_as_loops(temperature):
    first, second = draw(0)
    parts = nt_xent(first, second, temperature=temperature)
    wanted = by_loops(first.detach().numpy(), second.detach().numpy(), temperature)
    assert parts["loss"].item() == pytest.approx(wanted, abs=1e-12)
    cosines = torch.cosine_similarity(first, second)
    assert parts["positive"].item() == pytest.approx(cosines.mean().item(), abs=1e-12)


def test_views_that_are_all_alike_cost_log_of_their_candidates():
    same = torch.ones(5, 3, dtype=torch.float64)
    assert nt_xent(same, same)["loss"].item() == pytest.approx(math.log(9), abs=1e-12)


def test_two_images_apart_with_equal_views_have_the_value_of_the_formula():
    z = torch.eye(2, dtype=torch.float64)
    wanted = -math.log(math.e / (math.e + 2))  # the positive at cosine 1, two others at cosine 0
    assert nt_xent(z, z, temperature=1.0)["loss"].item() == pytest.approx(wanted, abs=1e-12)


def test_gradients_are_those_of_finite_differences():
    assert torch.autograd.gradcheck(lambda a, b: nt_xent(a, b, temperature=0.5)["loss"], draw(1))


@given(seed=st.integers(0, 10_000), temperature=st.floats(0.05, 2.0))
@settings(max_examples=20, deadline=None)
def test_order_of_images_length_of_rows_and_order_of_views_do_not_matter(seed, temperature):
    first, second = draw(seed)
    want = nt_xent(first, second, temperature=temperature)["loss"]
    order = torch.randperm(4, generator=torch.Generator().manual_seed(seed))
    for pair in [(first[order], second[order]), (3 * first, 0.2 * second), (second, first)]:
        torch.testing.assert_close(nt_xent(*pair, temperature=temperature)["loss"], want, rtol=0, atol=1e-10)


def test_only_the_loss_carries_a_graph_and_half_precision_is_raised():
    parts = nt_xent(*draw(2))
    assert {name for name, value in parts.items() if value.requires_grad} == {"loss"}
    assert nt_xent(*(view.bfloat16() for view in draw(2)))["loss"].dtype == torch.float32


@pytest.mark.parametrize(
    ("first", "second", "temperature", "message"),
    [
        ((4, 3), (4, 3), 0.0, "temperature = 0.0; it must be above 0"),
        ((4, 3), (3, 3), 0.1, r"got \[4, 3\], \[3, 3\]"),
        ((1, 3), (1, 3), 0.1, "1 image has no negatives"),
    ],
)
def test_bad_input_is_named(first, second, temperature, message):
    with pytest.raises(ValueError, match=message):
        nt_xent(torch.ones(first), torch.ones(second), temperature=temperature)


def step_of_a_share() -> dict[str, Tensor]:
    """Loss and gradient of this rank's half of the images, gradients averaged as DDP does."""
    g = torch.Generator().manual_seed(0)
    encoder = nn.Parameter(torch.randn(6, 4, generator=g, dtype=torch.float64))
    images = torch.randn(2, 8, 6, generator=g, dtype=torch.float64)
    ranks, rank = collectives.world_size(), collectives.rank()
    parts = nt_xent(*(images[:, rank * 8 // ranks : (rank + 1) * 8 // ranks] @ encoder), temperature=0.5)
    parts["loss"].backward()
    results = {**{name: value.detach() for name, value in parts.items()}, "gradient": encoder.grad}
    return {name: collectives.all_reduce_mean(value) for name, value in results.items()}


@pytest.mark.distributed
def test_two_ranks_give_the_loss_and_the_gradient_of_one_rank_on_the_whole_batch():
    alone = step_of_a_share()
    for rank in run_ranks(step_of_a_share, 2):
        for name, value in alone.items():
            torch.testing.assert_close(rank[name], value, rtol=1e-10, atol=1e-12)
