# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from recipes_lib.distributed import collectives
from recipes_lib.distributed.local import run_ranks
from recipes_lib.objectives.whitening import w_mse_loss, whiten


def draw(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_numpy(views: np.ndarray, size: int | None) -> float:
    """Whitening by the inverse of numpy's Cholesky factor of numpy's covariance, then a loop over the pairs of views."""
    units = []
    for z in views:
        parts = []
        for part in np.split(z, len(z) // size) if size else [z]:
            matrix = np.linalg.inv(np.linalg.cholesky(np.cov(part, rowvar=False))) if size else np.eye(z.shape[1])
            parts.append((part - (part.mean(axis=0) if size else 0)) @ matrix.T)
        v = np.concatenate(parts)
        units.append(v / np.linalg.norm(v, axis=1, keepdims=True))
    pairs = [(i, j) for i in range(len(views)) for j in range(i + 1, len(views))]
    return float(np.mean([((units[i] - units[j]) ** 2).sum(axis=1).mean() for i, j in pairs]))


def test_whitened_embeddings_have_mean_0_and_covariance_1_and_so_does_each_sub_batch():
    v = whiten(draw(2, 3, 9, 4) @ draw(4, 4, seed=1) + 5)
    torch.testing.assert_close(v.mean(dim=2), torch.zeros(2, 3, 4, dtype=torch.float64), rtol=0, atol=1e-12)
    for each in v.flatten(0, 1):
        torch.testing.assert_close(each.T.cov(), torch.eye(4, dtype=torch.float64), rtol=0, atol=1e-10)


def test_the_whitening_matrix_is_triangular():
    z = draw(9, 3)
    matrix = torch.linalg.lstsq(z - z.mean(dim=0), whiten(z)).solution.T
    assert matrix.triu(1).abs().max() < 1e-12
    assert (matrix.diagonal() > 0).all()


@pytest.mark.parametrize("views", [2, 4])
@pytest.mark.parametrize("size", [6, 12])
def test_the_loss_is_that_of_numpys_cholesky_factor(views, size):
    z = draw(views, 12, 4)
    parts = w_mse_loss(z, whitening_size=size)
    assert parts["loss"].item() == pytest.approx(by_numpy(z.numpy(), size), abs=1e-10)
    assert parts["cosine"].item() == pytest.approx(1 - parts["loss"].item() / 2, abs=1e-12)


def test_without_whitening_equal_embeddings_are_the_minimum_and_with_it_they_are_refused():
    z = draw(2, 12, 4)
    assert w_mse_loss(z, whitening_size=6, whiten_first=False)["loss"].item() == pytest.approx(
        by_numpy(z.numpy(), None), abs=1e-12
    )
    same = torch.ones(2, 12, 4)
    assert w_mse_loss(same, whitening_size=6, whiten_first=False)["loss"] == pytest.approx(0, abs=1e-6)
    with pytest.raises(FloatingPointError, match="the covariance of 6 embeddings of 4 dimensions has no inverse"):
        w_mse_loss(same, whitening_size=6)


def test_the_loss_does_not_change_under_a_shift_a_triangular_map_or_an_order_of_the_images_of_a_sub_batch():
    z = draw(2, 12, 4)
    want = w_mse_loss(z, whitening_size=6)["loss"]
    triangular = torch.eye(4, dtype=torch.float64) + draw(4, 4, seed=2).tril(-1)
    order = torch.tensor([3, 1, 0, 5, 4, 2, 6, 7, 8, 11, 10, 9])
    for other in (z + 3, 7 * z, z @ triangular.T, z[:, order]):
        torch.testing.assert_close(w_mse_loss(other, whitening_size=6)["loss"], want, rtol=0, atol=1e-10)
    across = torch.tensor([6, 1, 2, 3, 4, 5, 0, 7, 8, 9, 10, 11])
    assert (w_mse_loss(z[:, across], whitening_size=6)["loss"] - want).abs() > 1e-3


def test_embeddings_of_a_condition_of_a_million_are_whitened_in_float32():
    z = draw(64, 8).float() * torch.logspace(0, -6, 8)
    covariance = whiten(z).T.cov()
    torch.testing.assert_close(covariance, torch.eye(8), rtol=0, atol=1e-2)


def test_gradients_are_those_of_finite_differences():
    z = draw(3, 8, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: w_mse_loss(x, whitening_size=4)["loss"], z)


def test_only_the_loss_carries_a_graph_and_half_precision_is_raised():
    parts = w_mse_loss(draw(2, 8, 3).requires_grad_(), whitening_size=8)
    assert {name for name, value in parts.items() if value.requires_grad} == {"loss"}
    assert w_mse_loss(draw(2, 8, 3).bfloat16(), whitening_size=8)["loss"].dtype == torch.float32


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"at least 2 views are wanted; got \[1, 8, 3\]"):
        w_mse_loss(draw(1, 8, 3), whitening_size=8)
    with pytest.raises(ValueError, match="whitening_size = 3; it must be above the 3 dimensions"):
        w_mse_loss(draw(2, 8, 3), whitening_size=3)
    with pytest.raises(ValueError, match="whitening_size = 5 does not divide the 8 images"):
        w_mse_loss(draw(2, 8, 3), whitening_size=5)


def step_of_a_share(size: int) -> dict[str, Tensor]:
    """Loss and gradient of this rank's half of the images, gradients averaged as DDP does."""
    encoder = nn.Parameter(draw(6, 3, seed=2))
    images = draw(3, 8, 6, seed=3)
    ranks, rank = collectives.world_size(), collectives.rank()
    parts = w_mse_loss(images[:, rank * 8 // ranks : (rank + 1) * 8 // ranks] @ encoder, whitening_size=size)
    parts["loss"].backward()
    results = {**{name: value.detach() for name, value in parts.items()}, "gradient": encoder.grad}
    return {name: collectives.all_reduce_mean(value) for name, value in results.items()}


@pytest.mark.distributed
def test_two_ranks_equal_one_whether_a_sub_batch_lies_within_a_rank_or_spans_both():
    alone = {size: step_of_a_share(size) for size in (4, 8)}
    for size in alone:
        for rank in run_ranks(step_of_a_share, 2, size):
            for name, value in alone[size].items():
                torch.testing.assert_close(rank[name], value, rtol=1e-10, atol=1e-12)
