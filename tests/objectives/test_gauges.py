# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from torch import Tensor

from recipes_lib.distributed import collectives
from recipes_lib.distributed.local import run_ranks
from recipes_lib.objectives.gauges import embedding_std


def draw(*size: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_the_standard_deviation_is_numpys_of_the_unit_vectors():
    z = draw(2, 9, 5)
    unit = z.flatten(0, 1).numpy() / np.linalg.norm(z.flatten(0, 1).numpy(), axis=1, keepdims=True)
    assert embedding_std(z).item() == pytest.approx(unit.std(axis=0).mean() * 5**0.5, abs=1e-12)


def test_it_is_0_at_a_collapse_and_about_1_for_all_directions_of_any_length():
    assert embedding_std(torch.ones(7, 4)) == pytest.approx(0, abs=1e-6)
    assert embedding_std(torch.arange(1, 8)[:, None] * torch.ones(7, 4)) == pytest.approx(0, abs=1e-6)
    for scale in (1e-3, 1e3):
        assert embedding_std(scale * draw(5000, 16)) == pytest.approx(1, abs=0.01)


def test_it_has_no_gradient_and_raises_half_precision():
    assert not embedding_std(draw(4, 3).requires_grad_()).requires_grad
    assert embedding_std(draw(4, 3).bfloat16()).dtype == torch.float32


def of_a_share() -> Tensor:
    ranks, rank = collectives.world_size(), collectives.rank()
    return embedding_std(draw(8, 5)[rank * 8 // ranks : (rank + 1) * 8 // ranks])


@pytest.mark.distributed
def test_two_ranks_have_the_value_of_all_images():
    for rank in run_ranks(of_a_share, 2):
        torch.testing.assert_close(rank, of_a_share(), rtol=0, atol=1e-14)
