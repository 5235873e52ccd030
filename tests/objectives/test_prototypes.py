# SPDX-License-Identifier: Apache-2.0
import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from recipes_lib.distributed import collectives
from recipes_lib.distributed.local import run_ranks
from recipes_lib.models.heads import ProjectionHead
from recipes_lib.objectives import prototypes as objective
from recipes_lib.objectives.prototypes import msn_loss

# The card's inputs, view-major: V = 2 views of B = 2 images, d = 2, K = 3.
Z = torch.tensor([[1, 2], [2, -1], [0.5, 1.5], [3, 1]], dtype=torch.float64)
Z_TARGET = torch.tensor([[1, 1], [1, -2]], dtype=torch.float64)
Q = torch.tensor([[1, 0], [0, 1], [-1, -1]], dtype=torch.float64)


def close(got: Tensor, want: object, atol: float = 5e-9) -> None:
    torch.testing.assert_close(got, torch.as_tensor(want, dtype=got.dtype), rtol=0, atol=atol)


def draw(seed: int, views: int = 3, images: int = 5, count: int = 7, dim: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    sizes = [(views * images, dim), (images, dim), (count, dim)]
    anchors, targets, prototypes = (torch.randn(size, generator=g, dtype=torch.float64) for size in sizes)
    return anchors.requires_grad_(), targets, prototypes.requires_grad_()


def loss_of(anchors: Tensor, targets: Tensor, prototypes: Tensor, **settings: float) -> Tensor:
    return msn_loss(anchors, targets, prototypes, **settings)["loss"]


# golden values


@pytest.mark.parametrize(
    ("case", "temperature", "iterations", "match", "spread", "total"),
    [
        ("G1", 1.0, 0, 0.93990277, 0.12877194, 1.06867471),
        ("G2", 1.0, 3, 1.10938648, 0.12877194, 1.23815841),
        ("G3", 0.1, 0, 1.39359650, 0.40546189, 1.79905839),
        ("G4", 0.1, 3, 5.64412091, 0.40546189, 6.04958280),
    ],
)
def test_loss_and_its_parts_have_the_golden_values(case, temperature, iterations, match, spread, total):
    parts = msn_loss(Z, Z_TARGET, Q, temperature=temperature, sharpen_temperature=0.25, sinkhorn_iterations=iterations)
    close(parts["cross_entropy"], match)
    close(parts["me_max"], spread)
    close(parts["loss"], total)


def test_assignments_targets_and_their_mean_have_the_golden_values():
    p = objective.assign(Z, Q, 1.0)
    rows = [
        [0.35567453, 0.55625659, 0.08806888],
        [0.64126471, 0.16763710, 0.19109819],
        [0.31444278, 0.59185263, 0.09370459],
        [0.59185263, 0.31444278, 0.09370459],
    ]
    close(p, rows)
    close(p.mean(dim=0), [0.47580866, 0.40754728, 0.11664406])
    t = objective.sharpen(objective.assign(Z_TARGET, Q, 1.0), 0.25)
    close(t, [[0.49972951, 0.49972951, 0.00054099], [0.62623253, 0.00292460, 0.37084287]])
    close(objective.sinkhorn(t, 3), [[0.32375456, 0.67511544, 0.00113001], [0.34258182, 0.00333624, 0.65408193]])


def test_g5_sharpening():
    p = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64)
    close(objective.sharpen(p, 0.25), [[0.86565097, 0.11218837, 0.02216066]])


def test_g6_sinkhorn_of_four_targets():
    targets = torch.tensor([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.5, 0.25, 0.25], [0.8, 0.1, 0.1]], dtype=torch.float64)
    balanced = objective.sinkhorn(targets, 3)
    rows = [
        [0.37277202, 0.35069343, 0.27653455],
        [0.28475244, 0.46880239, 0.24644518],
        [0.19073902, 0.31402332, 0.49523766],
        [0.48527400, 0.19973281, 0.31499319],
    ]
    close(balanced, rows)
    close(balanced.sum(dim=0), [1.33353748, 1.33325195, 1.33321057])


def test_entropy_weight_adds_the_mean_entropy_of_the_anchors():
    parts = msn_loss(Z, Z_TARGET, Q, temperature=1.0, sinkhorn_iterations=0, entropy_weight=0.5)
    p = objective.assign(Z, Q, 1.0)
    by_hand = -(p * p.log()).sum(dim=1).mean()
    close(parts["entropy"], by_hand)
    close(parts["loss"], 1.06867471 + 0.5 * by_hand)


# gradients


@pytest.mark.parametrize("entropy_weight", [0.0, 0.3])
@pytest.mark.parametrize("iterations", [0, 3])
def test_gradients_are_those_of_finite_differences(iterations, entropy_weight):
    anchors, targets, prototypes = draw(0, views=2, images=3, count=4, dim=3)

    # the targets depend on the prototypes too, behind the stop-gradient: here they are held where they are
    t = objective.sharpen(objective.assign(targets, prototypes.detach(), 0.5), 0.25)
    t = objective.sinkhorn(t, iterations)

    def total(z: Tensor, q: Tensor) -> Tensor:
        log_p = objective.assignment_logits(z, q, 0.5).log_softmax(dim=1)
        p = log_p.exp()
        spread, undecided = math.log(4) - objective.mean_entropy(p), objective.average_entropy(p)
        return objective.cross_entropy(t, log_p) + 0.7 * spread + entropy_weight * undecided

    assert torch.autograd.gradcheck(total, (anchors, prototypes))
    weights = {"me_max_weight": 0.7, "entropy_weight": entropy_weight}
    whole = loss_of(anchors, targets, prototypes, temperature=0.5, sinkhorn_iterations=iterations, **weights)
    got = torch.autograd.grad(whole, (anchors, prototypes))
    want = torch.autograd.grad(total(anchors, prototypes), (anchors, prototypes))
    for mine, theirs in zip(got, want, strict=True):
        close(mine, theirs, atol=1e-12)


def test_gradient_reaches_anchors_and_prototypes_and_never_the_targets():
    anchors, targets, prototypes = draw(1)
    targets.requires_grad_()
    loss_of(anchors, targets, prototypes).backward()
    assert targets.grad is None
    assert anchors.grad.abs().sum() > 0
    assert prototypes.grad.abs().sum() > 0
    assert not objective.sinkhorn(objective.assign(anchors, prototypes, 0.1), 3).requires_grad


def test_only_the_loss_carries_a_graph():
    parts = msn_loss(*draw(2), entropy_weight=0.1)
    assert {name for name, value in parts.items() if value.requires_grad} == {"loss"}
    assert set(parts) == {"loss", "cross_entropy", "mean_entropy", "me_max", "entropy", "target_entropy"}


def test_mean_entropy_keeps_a_finite_gradient_where_a_prototype_is_never_used():
    logits = torch.tensor([[0.0, 0.0, -1e4]], requires_grad=True)  # exp(-1e4) underflows to 0
    spread = objective.mean_entropy(logits.softmax(dim=1))
    spread.backward()
    close(spread.detach(), math.log(2), atol=1e-6)
    assert logits.grad.isfinite().all()


def test_frozen_prototypes_get_no_gradient_and_anchors_keep_theirs():
    anchors, targets, prototypes = draw(3)
    free = torch.autograd.grad(loss_of(anchors, targets, prototypes), anchors)[0]
    loss_of(anchors, targets, prototypes, freeze_prototypes=True).backward()
    assert prototypes.grad is None
    torch.testing.assert_close(anchors.grad, free)


# invariants


@given(seed=st.integers(0, 10_000), temperature=st.floats(0.05, 2.0), iterations=st.integers(0, 4))
@settings(max_examples=25, deadline=None)
def test_loss_ignores_order_of_prototypes_length_of_rows_and_order_of_images(seed, temperature, iterations):
    anchors, targets, prototypes = draw(seed)
    options = {"temperature": temperature, "sinkhorn_iterations": iterations}
    want = loss_of(anchors, targets, prototypes, **options)
    g = torch.Generator().manual_seed(seed + 1)
    order = torch.randperm(len(prototypes), generator=g)
    close(loss_of(anchors, targets, prototypes[order], **options), want, atol=1e-9)
    scales = [torch.rand(len(rows), 1, generator=g, dtype=torch.float64) * 9 + 0.1 for rows in (Z, targets, prototypes)]
    scaled = loss_of(anchors * scales[0].sum(), targets * scales[1], prototypes * scales[2], **options)
    close(scaled, want, atol=1e-9)
    images = torch.randperm(len(targets), generator=g)
    moved = anchors.view(3, 5, -1)[:, images].flatten(0, 1)  # the same order within every view
    close(loss_of(moved, targets[images], prototypes, **options), want, atol=1e-9)


def test_anchors_are_view_major():
    anchors, targets, prototypes = draw(4)
    want = loss_of(anchors, targets, prototypes)
    views = anchors.view(3, 5, -1)
    one_view_moved = torch.cat([views[0].roll(1, dims=0), views[1], views[2]])
    image_major = views.transpose(0, 1).flatten(0, 1)
    for other in (one_view_moved, image_major):
        assert (loss_of(other, targets, prototypes) - want).abs() > 1e-3
    by_hand = [
        objective.cross_entropy(objective.assign(targets, prototypes, 0.1), F.log_softmax(view, dim=1))
        for view in views @ prototypes.T
    ]
    tiled = objective.cross_entropy(
        objective.assign(targets, prototypes, 0.1), F.log_softmax(anchors @ prototypes.T, dim=1)
    )
    close(tiled, torch.stack(by_hand).mean(), atol=1e-12)


@given(seed=st.integers(0, 10_000), temperature=st.floats(0.01, 10.0), iterations=st.integers(0, 3))
@settings(max_examples=25, deadline=None)
def test_me_max_lies_in_0_to_log_k_and_cross_entropy_above_the_targets_entropy(seed, temperature, iterations):
    parts = msn_loss(*draw(seed), temperature=temperature, sinkhorn_iterations=iterations)
    assert -1e-12 <= parts["me_max"] <= math.log(7) + 1e-12
    assert parts["cross_entropy"] >= parts["target_entropy"] - 1e-9


def test_mean_entropy_is_log_k_for_a_uniform_mean_and_zero_for_one_prototype():
    close(objective.mean_entropy(torch.eye(5, dtype=torch.float64)), math.log(5), atol=1e-15)
    one = torch.eye(5, dtype=torch.float64)[[2, 2, 2]]
    close(objective.mean_entropy(one), 0.0, atol=1e-15)


@given(seed=st.integers(0, 10_000), temperature=st.floats(0.05, 1.0))
@settings(max_examples=25, deadline=None)
def test_sharpening_an_assignment_is_a_softmax_at_tau_times_t(seed, temperature):
    _, targets, prototypes = draw(seed)
    sharpened = objective.sharpen(objective.assign(targets, prototypes, 0.2), temperature)
    logits = objective.assignment_logits(targets, prototypes, 1.0)
    close(sharpened, (logits / (0.2 * temperature)).softmax(dim=1).detach(), atol=1e-12)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=10, deadline=None)
def test_sinkhorn_rows_sum_to_one_and_many_rounds_balance_the_prototypes(seed):
    _, targets, prototypes = draw(seed, images=12, count=4)
    t = objective.assign(targets, prototypes, 0.5).detach()
    close(objective.sinkhorn(t, 3).sum(dim=1), torch.ones(12), atol=1e-14)
    close(objective.sinkhorn(t, 200).sum(dim=0), torch.full((4,), 12 / 4), atol=1e-6)
    assert objective.sinkhorn(t, 0) is t


def test_sinkhorn_leaves_a_prototype_without_mass_at_zero():
    t = torch.tensor([[0.6, 0.4, 0.0], [0.3, 0.7, 0.0]])
    balanced = objective.sinkhorn(t, 3)
    assert balanced.isfinite().all()
    assert (balanced[:, 2] == 0).all()


# ranks


def step_of_a_share() -> dict[str, Tensor]:
    """Loss and gradients of this rank's share of the images, gradients averaged as DDP does."""
    torch.manual_seed(0)
    encoder = ProjectionHead(6, 8, 4).double()
    prototypes = nn.Parameter(torch.randn(5, 4, dtype=torch.float64))
    images = torch.randn(2, 8, 6, dtype=torch.float64)  # 2 views of 8 images
    seen = torch.randn(8, 6, dtype=torch.float64)
    ranks, rank = collectives.world_size(), collectives.rank()
    share = slice(rank * 8 // ranks, (rank + 1) * 8 // ranks)
    with torch.no_grad():
        targets = copy.deepcopy(encoder)(seen[share])
    parts = msn_loss(encoder(images[:, share].flatten(0, 1)), targets, prototypes, temperature=0.5, entropy_weight=0.2)
    parts["loss"].backward()
    results = {name: value.detach() for name, value in parts.items()}
    results |= {f"gradient of {name}": p.grad for name, p in encoder.named_parameters()}
    results["gradient of prototypes"] = prototypes.grad
    return {name: collectives.all_reduce_mean(value) for name, value in results.items()}


@pytest.mark.distributed
def test_two_ranks_give_the_loss_and_the_gradients_of_one_rank_on_the_whole_batch():
    alone = step_of_a_share()
    for rank in run_ranks(step_of_a_share, 2):
        for name, value in alone.items():
            torch.testing.assert_close(
                rank[name], value, rtol=1e-10, atol=1e-12, msg=lambda m, name=name: f"{name}: {m}"
            )
