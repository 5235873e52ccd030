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
from recipes_lib.objectives.contrastive import agreement, dcl_loss, info_nce, nearest, nnclr_loss, nt_xent

Z1 = torch.tensor([[1, 0, 2], [0, 1, -1], [2, 1, 0], [-1, 1, 1]], dtype=torch.float64)
Z2 = torch.tensor([[1, 0.5, 1.5], [0, 1, -2], [1, 1, 0], [-1, 0, 1]], dtype=torch.float64)
QUEUE = torch.tensor([[1, 1, 1], [-1, 0, 0], [0, -1, 2]], dtype=torch.float64)
NEIGHBOURS = torch.tensor([[1, 1, 1], [-1, 0.5, 1], [0, -1, 2]], dtype=torch.float64)  # no two cosines are equal
PLAIN = [nt_xent, dcl_loss, agreement, info_nce]


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


# values computed with numpy from the papers' equations


@pytest.mark.parametrize(
    ("loss", "temperature", "value"),
    [
        (nt_xent, 0.5, 0.7901723815180205),
        (nt_xent, 0.1, 0.020431085615549405),
        (dcl_loss, 0.5, 0.16865003820895885),
        (dcl_loss, 0.1, -4.263492040020615),
        (agreement, 0.5, -0.917511516124067 / 0.5),
        (info_nce, 0.2, 0.11415319883555286),
    ],
)
def test_losses_have_the_values_of_their_equations(loss, temperature, value):
    parts = loss(Z1, Z2, temperature=temperature)
    assert parts["loss"].item() == pytest.approx(value, abs=1e-9)
    assert parts["positive"].item() == pytest.approx(0.917511516124067, abs=1e-9)


@pytest.mark.parametrize(("temperature", "value"), [(0.2, 0.341235747266172), (0.07, 0.07020067295913712)])
def test_queries_against_a_queue_have_the_values_of_mocos_equation(temperature, value):
    assert info_nce(Z1, Z2, temperature=temperature, queue=QUEUE)["loss"].item() == pytest.approx(value, abs=1e-9)


def test_both_directions_times_twice_the_temperature_are_moco_v3s_loss():
    there, back = (info_nce(*pair, temperature=0.2)["loss"].item() for pair in ((Z1, Z2), (Z2, Z1)))
    assert 2 * 0.2 * (there + back) == pytest.approx(0.0897311814571685, abs=1e-9)


def test_one_direction_of_nnclr_has_the_value_of_its_equation():
    parts = nnclr_loss((Z1, Z1), (Z2, Z2), NEIGHBOURS, temperature=0.1)  # both directions are the same one
    assert parts["loss"].item() == pytest.approx(3.598826177128864, abs=1e-9)


def test_nnclr_is_the_mean_of_both_directions_and_crosses_the_views():
    g = torch.Generator().manual_seed(3)
    p1, p2 = torch.randn(2, 4, 3, generator=g, dtype=torch.float64)
    there = nnclr_loss((Z1, Z1), (p2, p2), NEIGHBOURS)["loss"]  # view 1's neighbour finds view 2's prediction
    back = nnclr_loss((Z2, Z2), (p1, p1), NEIGHBOURS)["loss"]
    torch.testing.assert_close(nnclr_loss((Z1, Z2), (p1, p2), NEIGHBOURS)["loss"], (there + back) / 2)


def test_the_nearest_rows_are_those_of_the_largest_cosine_without_gradient():
    z = Z1.clone().requires_grad_()
    found = nearest(z, 7 * NEIGHBOURS)
    torch.testing.assert_close(found, torch.nn.functional.normalize(NEIGHBOURS, dim=1)[[2, 0, 0, 1]])
    assert not found.requires_grad


def test_found_is_the_share_of_anchors_whose_own_candidate_is_nearest():
    eye = torch.eye(4)
    assert info_nce(eye, eye)["found"] == 1
    assert info_nce(eye, eye[[1, 0, 2, 3]])["found"] == 0.5
    assert info_nce(eye, eye, queue=eye[:1] * 2)["found"] == 1  # the first of equal candidates, the key, counts
    assert info_nce(eye, -eye, queue=eye)["found"] == 0


def test_dcl_is_nt_xent_less_the_partners_share_of_the_denominator():
    first, second = draw(7)
    views = torch.nn.functional.normalize(torch.cat([first, second]), dim=1)
    cosines = (views @ views.T / 0.5).exp()
    cosines.fill_diagonal_(0)
    partner = cosines[torch.arange(8), torch.arange(8).roll(4)]
    wanted = -(partner / (cosines.sum(dim=1) - partner)).log().mean()
    torch.testing.assert_close(dcl_loss(first, second, temperature=0.5)["loss"], wanted, rtol=0, atol=1e-12)


def test_agreement_has_no_use_for_other_images_and_is_smallest_at_the_collapse():
    first, second = draw(8)
    each = [agreement(first[i : i + 2], second[i : i + 2])["loss"] for i in (0, 2)]
    torch.testing.assert_close(agreement(first, second)["loss"], sum(each) / 2)
    same = torch.ones(4, 3, dtype=torch.float64)
    assert agreement(same, same, temperature=0.2)["loss"].item() == pytest.approx(-5.0, abs=1e-12)


def test_no_gradient_reaches_keys_queue_and_the_neighbours_side():
    queries, keys = draw(9)
    queue = QUEUE.clone().requires_grad_()
    for parts in (info_nce(queries, keys, queue=queue), info_nce(queries, keys)):
        parts["loss"].backward()
    assert queries.grad.abs().sum() > 0
    assert keys.grad is None
    assert queue.grad is None
    z, p = draw(10)
    nnclr_loss((z, z), (p, p), queue)["loss"].backward()
    assert p.grad.abs().sum() > 0
    assert z.grad is None
    assert queue.grad is None


@pytest.mark.parametrize("queue", [None, QUEUE])
def test_gradients_of_the_others_are_those_of_finite_differences(queue):
    first, second = draw(11)
    assert torch.autograd.gradcheck(lambda q: info_nce(q, second, temperature=0.5, queue=queue)["loss"], (first,))
    assert torch.autograd.gradcheck(lambda a, b: dcl_loss(a, b, temperature=0.5)["loss"], draw(1))
    assert torch.autograd.gradcheck(lambda p: nnclr_loss((Z1, Z2), (p, second), QUEUE)["loss"], (first,))


def test_of_the_others_too_only_the_loss_carries_a_graph_and_half_precision_is_raised():
    pair, low = draw(12), tuple(view.bfloat16() for view in draw(12))
    for parts in (*(loss(*pair) for loss in PLAIN), info_nce(*pair, queue=QUEUE), nnclr_loss(pair, pair, QUEUE)):
        assert {name for name, value in parts.items() if value.requires_grad} == {"loss"}
    for parts in (*(loss(*low) for loss in PLAIN), info_nce(*low, queue=QUEUE), nnclr_loss(low, low, QUEUE.float())):
        assert parts["loss"].dtype == torch.float32


def test_bad_input_of_the_others_is_named():
    ones = torch.ones(4, 3)
    for loss in PLAIN:
        with pytest.raises(ValueError, match="temperature = -1; it must be above 0"):
            loss(ones, ones, temperature=-1)
        with pytest.raises(ValueError, match="1 image has no negatives"):
            loss(ones[:1], ones[:1])
    info_nce(ones[:1], ones[:1], queue=ones)  # its negatives are in the queue
    with pytest.raises(ValueError, match=r"a queue of \[M, 3\] is wanted; got \[4, 2\]"):
        info_nce(ones, ones, queue=ones[:, :2])
    with pytest.raises(ValueError, match=r"a queue of \[M, 3\] is wanted; got \[0, 3\]"):
        info_nce(ones, ones, queue=ones[:0])
    with pytest.raises(ValueError, match=r"got \[4, 3\], \[4, 2\]"):
        nearest(ones, ones[:, :2])
    with pytest.raises(ValueError, match=r"of one shape are wanted; got \[\[4, 3\], \[4, 3\], \[4, 3\], \[2, 3\]\]"):
        nnclr_loss((ones, ones), (ones, ones[:2]), ones)
    with pytest.raises(ValueError, match="1 image has no negatives"):
        nnclr_loss((ones[:1], ones[:1]), (ones[:1], ones[:1]), ones)


def nnclr_of_projections(first: Tensor, second: Tensor) -> dict[str, Tensor]:
    return nnclr_loss((first, second), (first * 2, second + 1), torch.eye(4, dtype=torch.float64), temperature=0.5)


def moco(first: Tensor, second: Tensor) -> dict[str, Tensor]:
    return info_nce(first, second, temperature=0.5, queue=torch.eye(4, dtype=torch.float64))


LOSSES = {"nt_xent": nt_xent, "dcl": dcl_loss, "agreement": agreement, "info_nce": info_nce, "moco": moco}
LOSSES["nnclr"] = nnclr_of_projections


def step_of_a_share(name: str) -> dict[str, Tensor]:
    """Loss and gradient of this rank's half of the images, gradients averaged as DDP does."""
    g = torch.Generator().manual_seed(0)
    encoder = nn.Parameter(torch.randn(6, 4, generator=g, dtype=torch.float64))
    images = torch.randn(2, 8, 6, generator=g, dtype=torch.float64)
    ranks, rank = collectives.world_size(), collectives.rank()
    parts = LOSSES[name](*(images[:, rank * 8 // ranks : (rank + 1) * 8 // ranks] @ encoder))
    parts["loss"].backward()
    results = {**{name: value.detach() for name, value in parts.items()}, "gradient": encoder.grad}
    return {name: collectives.all_reduce_mean(value) for name, value in results.items()}


def step_of_each() -> dict[str, Tensor]:
    return {f"{name} {key}": value for name in LOSSES for key, value in step_of_a_share(name).items()}


@pytest.mark.distributed
def test_two_ranks_give_the_loss_and_the_gradient_of_one_rank_on_the_whole_batch():
    alone = step_of_each()
    for rank in run_ranks(step_of_each, 2):
        for name, value in alone.items():
            torch.testing.assert_close(rank[name], value, rtol=1e-10, atol=1e-12, msg=name)
