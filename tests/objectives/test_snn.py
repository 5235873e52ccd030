# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from recipes_lib.distributed import collectives
from recipes_lib.distributed.local import run_ranks
from recipes_lib.models.heads import ProjectionHead
from recipes_lib.objectives import snn
from recipes_lib.objectives.prototypes import cross_entropy, entropy, sharpen
from recipes_lib.objectives.snn import paws_loss, soft_nearest_neighbours, support_labels

# The card's inputs: 2 images, large views [view 1, view 2] and one small view; 2 supports of each of 2 classes.
SUPPORTS = torch.tensor([[1, 0], [0, 1], [1, 0.5], [-0.5, 1]], dtype=torch.float64)
LABELS = torch.tensor([[0.95, 0.05], [0.05, 0.95]] * 2, dtype=torch.float64)
LARGE = torch.tensor([[1, 0.2], [0.1, 1], [0.9, -0.1], [-0.2, 1]], dtype=torch.float64)
SMALL = torch.tensor([[0.7, 0.4], [0.3, 0.9]], dtype=torch.float64)
VIEWS = torch.cat([LARGE, SMALL])


def close(got: Tensor, want: object, atol: float = 5e-9) -> None:
    torch.testing.assert_close(got, torch.as_tensor(want, dtype=got.dtype), rtol=0, atol=atol)


def draw(seed: int, images: int = 3, small: int = 2, classes: int = 3, each: int = 2, dim: int = 4) -> list[Tensor]:
    """Anchors, targets, anchor supports, target supports, labels; the target branch of another dimension."""
    g = torch.Generator().manual_seed(seed)
    sizes = [((2 + small) * images, dim), (2 * images, dim + 1), (classes * each, dim), (classes * each, dim + 1)]
    rows = [torch.randn(size, generator=g, dtype=torch.float64).requires_grad_() for size in sizes]
    return [*rows, smoothed(torch.arange(classes).repeat(each), classes)]


def smoothed(classes: Tensor, count: int) -> Tensor:
    """What support_labels gives, in float64."""
    return torch.eye(count, dtype=torch.float64)[classes] * 0.9 + 0.1 / count


# golden values


def test_p1_predictions_are_label_averages_weighted_by_similarity():
    rows = [
        [0.94980787, 0.05019213],
        [0.05734783, 0.94265217],
        [0.94998798, 0.05001202],
        [0.05037540, 0.94962460],
        [0.94530953, 0.05469047],
        [0.11945305, 0.88054695],
    ]
    close(soft_nearest_neighbours(VIEWS, SUPPORTS, LABELS, 0.1), rows)


def test_p2_targets_are_swapped_and_small_views_get_their_mean():
    sharpened = sharpen(soft_nearest_neighbours(LARGE, SUPPORTS, LABELS, 0.1), 0.25)
    targets = snn.view_targets(sharpened, 1)
    rows = [[0.99999232, 0.00000768], [0.00000792, 0.99999208], [0.99999220, 0.00000780], [0.00001370, 0.99998630]]
    close(targets[:4], rows)
    kept = targets.where(targets >= snn.NEGLIGIBLE, 0)
    close(kept[4:], [[0.99999226, 0], [0, 0.99998919]])
    assert (kept == 0).sum() == 6  # the small entry of every row


def test_p3_loss_and_its_parts():
    parts = paws_loss(VIEWS, LARGE, SUPPORTS, SUPPORTS, LABELS)
    close(parts["cross_entropy"], 0.06616651)
    close(parts["mean_entropy"], 0.69314717)
    close(parts["loss"], -0.62698066)
    p = soft_nearest_neighbours(VIEWS, SUPPORTS, LABELS, 0.1)
    close(sharpen(p, 0.25).mean(dim=0), [0.50005558, 0.49994442])
    close(p.mean(dim=0), [0.51204694, 0.48795306])
    close(entropy(p.mean(dim=0)), 0.69285689)  # MSN's: what PAWS must not return


def test_p6_label_matrix():
    rows = [[0.95, 0.05], [0.05, 0.95]] * 2
    close(support_labels(torch.tensor([0, 1, 0, 1]), 2, 0.1), rows, atol=1e-7)
    assert support_labels(torch.tensor([1, 0]), 2, 0.0).tolist() == [[0, 1], [1, 0]]


def test_label_rows_sum_to_one_however_many_columns_there_are():
    rows = support_labels(torch.arange(7).repeat(3), 11, 0.3)
    close(rows.sum(dim=1), torch.ones(21), atol=1e-6)
    close(rows[2, 2], 0.7 + 0.3 / 11, atol=1e-6)


def test_me_max_weight_multiplies_the_entropy_of_the_mean_prediction():
    parts = paws_loss(VIEWS, LARGE, SUPPORTS, SUPPORTS, LABELS, me_max_weight=0.0)
    close(parts["loss"], 0.06616651)
    close(parts["mean_entropy"], 0.69314717)


# gradients


def test_gradients_are_those_of_finite_differences():
    anchors, targets, supports, target_supports, labels = draw(0, images=2, small=1)
    with torch.no_grad():
        predicted = sharpen(soft_nearest_neighbours(targets, target_supports, labels, 0.5), 0.25)
        t = snn.view_targets(predicted, 1)
        t[t < 1e-4] = 0

    def total(z: Tensor, z_s: Tensor) -> Tensor:
        p = soft_nearest_neighbours(z, z_s, labels, 0.5)
        return cross_entropy(t, p.log()) - 0.7 * entropy(sharpen(p, 0.25).mean(dim=0))

    assert torch.autograd.gradcheck(total, (anchors, supports))
    parts = paws_loss(anchors, targets, supports, target_supports, labels, temperature=0.5, me_max_weight=0.7)
    got = torch.autograd.grad(parts["loss"], (anchors, supports))
    for mine, theirs in zip(got, torch.autograd.grad(total(anchors, supports), (anchors, supports)), strict=True):
        close(mine, theirs, atol=1e-12)


def test_gradient_reaches_anchors_and_their_supports_and_never_the_target_branch():
    anchors, targets, supports, target_supports, labels = draw(1)
    paws_loss(anchors, targets, supports, target_supports, labels)["loss"].backward()
    assert targets.grad is None
    assert target_supports.grad is None
    assert anchors.grad.abs().sum() > 0
    assert supports.grad.abs().sum() > 0


def test_only_the_loss_carries_a_graph():
    parts = paws_loss(*draw(2))
    assert {name for name, value in parts.items() if value.requires_grad} == {"loss"}
    assert set(parts) == {"loss", "cross_entropy", "mean_entropy", "me_max", "entropy", "target_entropy"}


def test_a_row_without_direction_is_equally_near_to_every_support():
    queries = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    p = soft_nearest_neighbours(queries, SUPPORTS, LABELS, 0.1)
    close(p.detach(), [[0.5, 0.5]], atol=1e-15)
    p[0, 0].backward()
    assert queries.grad.isfinite().all()


# collapse


def test_collapsed_embeddings_are_stationary_and_a_nudge_moves_them_apart():
    """One direction for all: p and t are uniform. Sharpening turns any difference into a gradient that grows it."""
    anchors, targets, supports, target_supports, labels = draw(3)

    def gradient(nudge: float) -> Tensor:
        z, h, z_s, h_s = (
            (torch.ones_like(x) + nudge * x.detach()).requires_grad_()
            for x in (anchors, targets, supports, target_supports)
        )
        parts = paws_loss(z, h, z_s, h_s, labels)
        if not nudge:
            close(parts["mean_entropy"], math.log(3), atol=1e-12)
            close(parts["cross_entropy"], math.log(3), atol=1e-12)
        return torch.autograd.grad(parts["loss"], z)[0]

    close(gradient(0.0), torch.zeros_like(anchors), atol=1e-15)
    assert gradient(0.01).abs().max() > 1e-6


def test_more_supports_of_one_class_pull_a_collapsed_prediction_to_it():
    labels = support_labels(torch.tensor([0, 0, 0, 1]), 2, 0.0).double()
    close(soft_nearest_neighbours(torch.ones(1, 2).double(), torch.ones(4, 2).double(), labels, 0.1), [[0.75, 0.25]])


def test_a_class_that_is_never_near_costs_a_finite_loss_without_smoothing():
    """exp(-2 / 0.001) underflows: p is 0 in float32 and float64."""
    z, supports = torch.tensor([[1.0, 0.0]] * 2).requires_grad_(), torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    loss = paws_loss(z, -z.detach(), supports, supports, torch.eye(2), temperature=1e-3)["loss"]
    loss.backward()
    assert 80 < loss < 90  # -log of the smallest float32
    assert z.grad.isfinite().all()


# invariants


@given(seed=st.integers(0, 10_000), temperature=st.floats(0.05, 2.0))
@settings(max_examples=25, deadline=None)
def test_loss_ignores_order_copies_and_length_of_supports_and_order_of_classes(seed, temperature):
    z, h, z_s, h_s, y = (x.detach() for x in draw(seed))
    want = paws_loss(z, h, z_s, h_s, y, temperature=temperature)["loss"]
    g = torch.Generator().manual_seed(seed)
    order, columns = torch.randperm(len(y), generator=g), torch.randperm(3, generator=g)
    length = torch.rand(len(y), 1, generator=g, dtype=torch.float64) + 0.1
    for supports in (
        (z_s[order], h_s[order], y[order]),
        (z_s.repeat(2, 1), h_s.repeat(2, 1), y.repeat(2, 1)),
        (z_s * length, h_s / length, y),
        (z_s, h_s, y[:, columns]),
    ):
        close(paws_loss(z, h, *supports, temperature=temperature)["loss"], want, atol=1e-9)


@given(seed=st.integers(0, 10_000), temperature=st.floats(0.01, 10.0))
@settings(max_examples=25, deadline=None)
def test_predictions_are_distributions_and_the_mean_entropy_lies_in_0_to_log_c(seed, temperature):
    z, h, z_s, h_s, y = (x.detach() for x in draw(seed))
    p = soft_nearest_neighbours(z, z_s, y, temperature)
    close(p.sum(dim=1), torch.ones(len(z)), atol=1e-12)
    assert (p >= 0.1 / 3 - 1e-12).all()  # what the smoothing leaves to every class
    parts = paws_loss(z, h, z_s, h_s, y, temperature=temperature)
    assert 0 <= parts["mean_entropy"] <= math.log(3) + 1e-12


def test_swapping_the_large_views_swaps_their_targets_and_keeps_those_of_the_small_ones():
    predictions = torch.rand(6, 4, dtype=torch.float64)
    first, second = predictions.chunk(2)
    targets = snn.view_targets(predictions, 2)
    swapped = snn.view_targets(torch.cat([second, first]), 2)
    assert torch.equal(targets[:6], torch.cat([second, first]))
    assert torch.equal(swapped[:6], predictions)
    assert torch.equal(targets[6:], swapped[6:])
    assert snn.view_targets(predictions, 0).shape == (6, 4)


def test_anchors_are_view_major():
    z, *others = (x.detach() for x in draw(4))
    want = paws_loss(z, *others)["loss"]
    image_major = z.view(4, 3, -1).transpose(0, 1).flatten(0, 1)
    assert (paws_loss(image_major, *others)["loss"] - want).abs() > 1e-3
    moved = torch.cat([z.view(4, 3, -1)[:, [2, 0, 1]].flatten(0, 1)])
    h = others[0].view(2, 3, -1)[:, [2, 0, 1]].flatten(0, 1)
    close(paws_loss(moved, h, *others[1:])["loss"], want, atol=1e-12)


# ranks


def steps_of_a_share() -> list[dict[str, Tensor]]:
    return [step_of_a_share(support_views) for support_views in (1, 2)]


def step_of_a_share(support_views: int) -> dict[str, Tensor]:
    """Loss and gradients of this rank's share of images and supports, gradients averaged as DDP does."""
    torch.manual_seed(0)
    encoder, predictor = ProjectionHead(6, 8, 4).double(), nn.Linear(4, 4).double()
    images = torch.randn(4, 8, 6, dtype=torch.float64)  # 2 large and 2 small views of 8 images
    classes = torch.tensor([0, 1, 2, 1, 2, 0])  # no order that a position could stand for
    support = torch.randn(6, support_views, 6, dtype=torch.float64)
    ranks, rank = collectives.world_size(), collectives.rank()
    share, part = (slice(rank * n // ranks, (rank + 1) * n // ranks) for n in (8, 6))
    mine, labels = support[part], smoothed(classes[part], 3)
    views = images[:, share].flatten(0, 1)
    rows = mine.transpose(0, 1).flatten(0, 1)  # view-major, as a batch holds them
    h = encoder(torch.cat([views, rows]))
    z = predictor(h)
    n, large = len(views), len(views) // 2
    parts = paws_loss(z[:n], h[:large], z[n:], h[n:], labels.repeat(support_views, 1), temperature=0.5)
    parts["loss"].backward()
    results = {name: value.detach() for name, value in parts.items()}
    modules = nn.ModuleDict({"encoder": encoder, "predictor": predictor})
    results |= {f"gradient of {name}": p.grad for name, p in modules.named_parameters()}
    return {name: collectives.all_reduce_mean(value) for name, value in results.items()}


@pytest.mark.distributed
def test_two_ranks_give_the_loss_and_the_gradients_of_one_rank_on_the_whole_batch_and_support():
    alone = steps_of_a_share()
    for rank in run_ranks(steps_of_a_share, 2):
        for got, want in zip(rank, alone, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)
