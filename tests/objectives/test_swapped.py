# SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from recipes_lib.distributed import collectives
from recipes_lib.distributed.local import run_ranks
from recipes_lib.objectives.swapped import codes, swav_loss


def draw(seed: int, views: int = 4, batch: int = 6, dim: int = 3, count: int = 5) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    sizes = [(views, batch, dim), (count, dim)]
    return tuple(torch.randn(size, generator=g, dtype=torch.float64).requires_grad_() for size in sizes)


def by_numpy(
    views: np.ndarray,
    prototypes: np.ndarray,
    code_views: int,
    tau: float,
    epsilon: float,
    earlier: np.ndarray | None = None,
) -> float:
    """The pseudo-code of the paper's appendix: Q sums to 1, its rows to 1/K, its columns to 1/B; 3 rounds.

    ``earlier`` embeddings stand in front of the batch, and their codes are dropped, as in the authors' code.
    """
    unit = [z / np.linalg.norm(z, axis=-1, keepdims=True) for z in views]
    scores = [z @ (prototypes / np.linalg.norm(prototypes, axis=1, keepdims=True)).T for z in unit]
    total = 0.0
    directions = prototypes / np.linalg.norm(prototypes, axis=1, keepdims=True)
    for g in range(code_views):
        rows = scores[g]
        if earlier is not None:
            rows = np.concatenate([earlier[g] @ directions.T / np.linalg.norm(earlier[g], axis=1)[:, None], rows])
        q = np.exp(rows / epsilon).T
        q /= q.sum()
        for _ in range(3):
            q /= q.sum(axis=1, keepdims=True) * q.shape[0]
            q /= q.sum(axis=0, keepdims=True) * q.shape[1]
        q = (q * q.shape[1]).T[-len(scores[g]) :]
        for v in range(len(views)):
            if v != g:
                p = np.exp(scores[v] / tau)
                p /= p.sum(axis=1, keepdims=True)
                total -= (q * np.log(p)).sum(axis=1).mean()
    return total / code_views / (len(views) - 1)


@pytest.mark.parametrize("code_views", [1, 2, 4])
@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_loss_is_the_papers_pseudo_code(code_views, temperature):
    embeddings, prototypes = draw(0)
    settings = {"temperature": temperature, "epsilon": 0.05}
    parts = swav_loss(embeddings, prototypes, code_views=code_views, **settings)
    arrays = embeddings.detach().numpy(), prototypes.detach().numpy()
    assert parts["loss"].item() == pytest.approx(by_numpy(*arrays, code_views, temperature, 0.05), abs=1e-10)
    assert parts["loss"] >= parts["code_entropy"]


def test_golden_codes_and_loss_of_the_card():
    first = torch.tensor([[0.9, 0.1, -0.2], [0.2, 0.8, 0.1], [0.1, 0.3, 0.7], [0.6, 0.5, -0.1]], dtype=torch.float64)
    second = torch.tensor([[0.7, 0.2, 0], [0.1, 0.9, 0.2], [0.3, 0.2, 0.5], [0.4, 0.6, 0]], dtype=torch.float64)
    wanted = [
        [0.9999991342, 8.315e-7, 3.44e-8],
        [8.316e-7, 0.9999853092, 1.38592e-5],
        [4.99e-8, 2.01265e-5, 0.9999798236],
        [0.4999872381, 0.4999615619, 5.12e-5],
    ]
    torch.testing.assert_close(codes(first), torch.tensor(wanted).double(), rtol=0, atol=1e-7)
    # a fourth dimension makes unit vectors of which the cosines with the first three axes are these scores
    views = torch.stack([torch.cat([s, (1 - s.square().sum(1, keepdim=True)).sqrt()], dim=1) for s in (first, second)])
    axes = torch.eye(3, 4, dtype=torch.float64)
    assert swav_loss(views, axes)["loss"].item() == pytest.approx(0.28917662421621176, abs=1e-9)


@pytest.mark.parametrize("code_views", [1, 2])
def test_earlier_embeddings_take_part_in_the_balancing_and_in_nothing_else(code_views):
    embeddings, prototypes = draw(6)
    earlier = torch.randn(code_views, 12, 3, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    earlier.requires_grad_()
    loss = swav_loss(embeddings, prototypes, code_views=code_views, earlier=earlier)["loss"]
    arrays = [each.detach().numpy() for each in (embeddings, prototypes)]
    wanted = by_numpy(*arrays, code_views, 0.1, 0.05, earlier.detach().numpy())
    assert loss.item() == pytest.approx(wanted, abs=1e-10)
    assert (loss - swav_loss(embeddings, prototypes, code_views=code_views)["loss"]).abs() > 1e-3
    loss.backward()
    assert earlier.grad is None


def test_without_balancing_one_prototype_for_all_images_is_the_minimum():
    embeddings, prototypes = draw(8)
    cosines = (embeddings[0] / embeddings[0].norm(dim=1)[:, None]) @ (prototypes / prototypes.norm(dim=1)[:, None]).T
    torch.testing.assert_close(codes(cosines, iterations=0), (cosines / 0.05).softmax(dim=1))
    same = prototypes[:1].expand(2, 6, 3)  # every image at the first prototype
    free = swav_loss(same, prototypes, sinkhorn_iterations=0, temperature=0.01, epsilon=0.025)
    assert free["loss"] < 1e-3
    assert swav_loss(same, prototypes, temperature=0.01, epsilon=0.025)["loss"] > 1


def test_codes_sum_to_one_and_many_rounds_share_out_the_prototypes_equally():
    cosines = torch.rand(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1
    q = codes(cosines, epsilon=0.2, iterations=300)
    torch.testing.assert_close(q.sum(dim=1), torch.ones(6, dtype=torch.float64), rtol=0, atol=1e-14)
    torch.testing.assert_close(q.sum(dim=0), torch.full((5,), 6 / 5, dtype=torch.float64), rtol=0, atol=1e-6)


def test_codes_of_the_smallest_epsilon_stay_finite_in_float32():
    cosines = torch.tensor([[-1.0, -1.0, -1.0], [1.0, -1.0, -1.0]])
    q = codes(cosines, epsilon=0.025)
    assert q.isfinite().all()
    torch.testing.assert_close(q.sum(dim=1), torch.ones(2))


def test_codes_carry_no_gradient_and_predictions_do():
    embeddings, prototypes = draw(1)
    cosines = (embeddings / embeddings.norm(dim=2, keepdim=True)) @ (prototypes / prototypes.norm(dim=1)[:, None]).T
    q = torch.stack([codes(view) for view in cosines[:2]])
    assert not q.requires_grad
    log_p = (cosines / 0.1).log_softmax(dim=2)
    pairs = [(g, v) for g in range(2) for v in range(4) if v != g]
    by_hand = -sum((q[g] * log_p[v]).sum(dim=1).mean() for g, v in pairs) / len(pairs)
    wanted = torch.autograd.grad(by_hand, (embeddings, prototypes))
    got = torch.autograd.grad(swav_loss(embeddings, prototypes)["loss"], (embeddings, prototypes))
    for mine, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)
        assert mine.abs().max() > 0


def test_order_of_images_prototypes_and_small_views_do_not_matter_and_that_of_code_views_does():
    embeddings, prototypes = draw(2)
    want = swav_loss(embeddings, prototypes)["loss"]
    for pair in [
        (embeddings[:, [3, 1, 0, 5, 4, 2]], prototypes),
        (embeddings, prototypes[[4, 2, 0, 1, 3]]),
        (embeddings[[0, 1, 3, 2]], prototypes),
        (embeddings[[1, 0, 2, 3]], prototypes),
        (5 * embeddings, 0.1 * prototypes),
    ]:
        torch.testing.assert_close(swav_loss(*pair)["loss"], want, rtol=0, atol=1e-10)
    assert (swav_loss(embeddings[[2, 1, 0, 3]], prototypes)["loss"] - want).abs() > 1e-3


def test_only_the_loss_carries_a_graph_and_half_precision_is_raised():
    parts = swav_loss(*draw(3))
    assert {name for name, value in parts.items() if value.requires_grad} == {"loss"}
    assert swav_loss(*(x.bfloat16() for x in draw(3)))["loss"].dtype == torch.float32


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": math.inf}, "temperature = inf; it must be above 0 and finite"),
        ({"epsilon": 0.01}, r"epsilon = 0.01; it must be at least 0.025 \(0.05 is usual\)"),
        ({"sinkhorn_iterations": -1}, "sinkhorn_iterations = -1; it must be at least 0"),
        ({"code_views": 5}, "code_views = 5 of 4 views"),
        ({"code_views": 0}, "code_views = 0 of 4 views"),
    ],
)
def test_a_setting_out_of_range_is_named(settings, message):
    with pytest.raises(ValueError, match=message):
        swav_loss(*draw(4), **settings)


def test_inputs_that_do_not_fit_are_named():
    embeddings, prototypes = draw(5)
    with pytest.raises(ValueError, match=r"got \[4, 6, 3\], \[5, 2\]"):
        swav_loss(embeddings, prototypes[:, :2])
    with pytest.raises(ValueError, match=r"code_views = 1 of 1 views.*another view"):
        swav_loss(embeddings[:1], prototypes, code_views=1)
    with pytest.raises(ValueError, match=r"earlier \[2, Q, 3\] is wanted; got \[1, 9, 3\]"):
        swav_loss(embeddings, prototypes, earlier=torch.ones(1, 9, 3))
    with pytest.raises(ValueError, match=r"prototypes receive no gradient; pass the Parameter, not \.data"):
        swav_loss(embeddings, prototypes.data)


def step_of_a_share(queue: bool) -> dict[str, Tensor]:
    """Loss and gradients of this rank's half of the images, gradients averaged as DDP does."""
    g = torch.Generator().manual_seed(0)
    encoder = nn.Parameter(torch.randn(6, 4, generator=g, dtype=torch.float64))
    prototypes = nn.Parameter(torch.randn(5, 4, generator=g, dtype=torch.float64))
    images = torch.randn(3, 8, 6, generator=g, dtype=torch.float64)
    earlier = torch.randn(2, 10, 4, generator=g, dtype=torch.float64)
    ranks, rank = collectives.world_size(), collectives.rank()
    own = images[:, rank * 8 // ranks : (rank + 1) * 8 // ranks] @ encoder
    parts = swav_loss(own, prototypes, earlier=earlier[:, rank::ranks] if queue else None)
    parts["loss"].backward()
    results = {name: value.detach() for name, value in parts.items()}
    results |= {"gradient of the encoder": encoder.grad, "gradient of the prototypes": prototypes.grad}
    return {name: collectives.all_reduce_mean(value) for name, value in results.items()}


@pytest.mark.distributed
@pytest.mark.parametrize("queue", [False, True])
def test_two_ranks_give_the_loss_and_the_gradients_of_one_rank_on_the_whole_batch(queue):
    alone = step_of_a_share(queue)
    for rank in run_ranks(step_of_a_share, 2, queue):
        for name, value in alone.items():
            torch.testing.assert_close(rank[name], value, rtol=1e-10, atol=1e-12)
