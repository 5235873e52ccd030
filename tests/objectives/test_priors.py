# SPDX-License-Identifier: Apache-2.0
"""Priors over prototypes: golden values N1 to N6 of the PMSN card, and what makes MSN the special case."""

import math

import pytest
import torch
from hypothesis import given as examples
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor, nn

from recipes_lib.distributed import collectives
from recipes_lib.distributed.local import run_ranks
from recipes_lib.objectives import priors, prototypes
from recipes_lib.objectives.priors import given, power_law, prior_divergence, uniform

# The MSN card's inputs G1, and the PMSN card's mean assignment.
Z = torch.tensor([[1, 2], [2, -1], [0.5, 1.5], [3, 1]], dtype=torch.float64)
Z_TARGET = torch.tensor([[1, 1], [1, -2]], dtype=torch.float64)
Q = torch.tensor([[1, 0], [0, 1], [-1, -1]], dtype=torch.float64)
MEAN = torch.tensor([[0.4, 0.3, 0.2, 0.1]], dtype=torch.float64)


def close(got: Tensor, want: object, atol: float = 5e-9) -> None:
    torch.testing.assert_close(got, torch.as_tensor(want, dtype=got.dtype), rtol=0, atol=atol)


def draw(seed: int, rows: int = 6, count: int = 5) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(rows, count, generator=g, dtype=torch.float64)).requires_grad_()


# golden values


def test_n1_power_laws_of_four_and_of_1024_prototypes():
    close(power_law(4, 0.25), [0.30231218, 0.25421323, 0.22970759, 0.21376700])
    close(power_law(4, 1.0), [0.48, 0.24, 0.16, 0.12])
    close(power_law(4, 0.0), [0.25] * 4, atol=0)
    close(power_law(1024, 0.25)[[0, 1, 1023]], [0.00415568, 0.00349450, 0.00073463])
    assert torch.equal(uniform(7), power_law(7, 0.0))


def test_n2_n3_divergences_in_both_directions():
    close(prior_divergence(MEAN, power_law(4, 0.25)), 0.05801486)
    close(prior_divergence(MEAN, power_law(4, 0.25), "reverse"), 0.06746571)
    close(prior_divergence(MEAN, uniform(4)), 0.10644014)
    close(prior_divergence(MEAN, uniform(4)), math.log(4) - prototypes.entropy(MEAN[0]), atol=1e-15)
    close(prior_divergence(MEAN, uniform(4), "reverse"), 0.12177727)


@pytest.mark.parametrize(
    ("direction", "gradient"),
    [
        ("forward", [1.28000434, 1.16560906, 0.86151023, 0.24028357]),
        ("reverse", [-0.75578046, -0.84737744, -1.14853793, -2.13766996]),
    ],
)
def test_n4_gradients_in_both_directions(direction, gradient):
    mean = MEAN.clone().requires_grad_()
    prior_divergence(mean, power_law(4, 0.25), direction).backward()
    close(mean.grad, [gradient])


def test_n5_sinkhorn_matched_to_a_prior():
    rows = [[0.7, 0.1, 0.1, 0.1], [0.1, 0.6, 0.2, 0.1], [0.4, 0.2, 0.2, 0.2], [0.25, 0.25, 0.25, 0.25]]
    targets, prior = torch.tensor(rows, dtype=torch.float64), power_law(4, 0.25)
    matched = prototypes.sinkhorn(targets, 3, prior)
    wanted = [
        [0.62078119, 0.09735908, 0.13572425, 0.14613548],
        [0.08132913, 0.53571438, 0.24893907, 0.13401743],
        [0.31866848, 0.17492225, 0.24385186, 0.26255741],
        [0.18953340, 0.20807586, 0.29006993, 0.31232081],
    ]
    close(matched, wanted)
    close(matched.mean(dim=0), [0.30257805, 0.25401789, 0.22964628, 0.21375778])
    close(prototypes.sinkhorn(targets, 200, prior).mean(dim=0), prior, atol=1e-8)
    close(prototypes.sinkhorn(targets, 3, uniform(4)), prototypes.sinkhorn(targets, 3), atol=1e-15)


def test_n6_exponent_zero_gives_the_loss_of_msn():
    settings = {"temperature": 1.0, "sinkhorn_iterations": 0}
    close(prototypes.msn_loss(Z, Z_TARGET, Q, prior=power_law(3, 0.0), **settings)["loss"], 1.06867471)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_the_loss_is_that_of_msn_with_the_divergence_in_place_of_me_max(direction):
    prior = power_law(3, 1.0)
    settings = {"temperature": 1.0, "sinkhorn_iterations": 2, "me_max_weight": 0.7, "entropy_weight": 0.3}
    plain = prototypes.msn_loss(Z, Z_TARGET, Q, **settings)
    parts = prototypes.msn_loss(Z, Z_TARGET, Q, prior=prior, direction=direction, **settings)
    wanted = prior_divergence(prototypes.assign(Z, Q, 1.0), prior, direction)
    close(parts["prior_divergence"], wanted)
    close(parts["me_max"], plain["me_max"], atol=0)  # of the uniform prior, whichever is asked for
    close(parts["loss"] - plain["loss"], 0.7 * (wanted - plain["me_max"]), atol=1e-14)
    assert parts.keys() - plain.keys() == {"prior_divergence"}


def test_the_prior_of_sinkhorn_shapes_the_targets_alone():
    settings = {"temperature": 1.0, "sinkhorn_iterations": 3}
    plain = prototypes.msn_loss(Z, Z_TARGET, Q, **settings)
    parts = prototypes.msn_loss(Z, Z_TARGET, Q, sinkhorn_prior=power_law(3, 1.0), **settings)
    sharp = prototypes.sharpen(prototypes.assign(Z_TARGET, Q, 1.0), 0.25)
    targets = prototypes.sinkhorn(sharp, 3, power_law(3, 1.0))
    close(parts["cross_entropy"], prototypes.cross_entropy(targets, prototypes.assign(Z, Q, 1.0).log()), atol=1e-12)
    close(parts["me_max"], plain["me_max"], atol=0)


# gradients


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_gradients_are_those_of_finite_differences_and_each_rows_logits_sum_to_zero(direction):
    logits = draw(0)

    def divergence(x: Tensor) -> Tensor:
        return prior_divergence(x.softmax(dim=1), power_law(5, 0.8), direction)

    assert torch.autograd.gradcheck(divergence, logits)
    divergence(logits).backward()
    close(logits.grad.sum(dim=1), torch.zeros(6), atol=1e-15)
    assert logits.grad.abs().max() > 1e-3


def test_the_prior_gets_no_gradient_and_an_empty_prototype_leaves_it_finite():
    logits = torch.tensor([[0.0, 0.0, -1e4]], requires_grad=True)  # exp(-1e4) underflows to 0
    for direction in ("forward", "reverse"):
        divergence = prior_divergence(logits.softmax(dim=1), power_law(3, 1.0), direction)
        assert divergence.isfinite()
        assert torch.autograd.grad(divergence, logits)[0].isfinite().all()


# invariants


@examples(seed=st.integers(0, 10_000), exponent=st.floats(0, 3), direction=st.sampled_from(["forward", "reverse"]))
@settings(max_examples=25, deadline=None)
def test_the_divergence_is_zero_at_the_prior_positive_elsewhere_and_moves_with_the_prototypes(
    seed, exponent, direction
):
    p, prior = draw(seed).detach().softmax(dim=1), power_law(5, exponent)
    value = prior_divergence(p, prior, direction)
    assert value > 0
    close(prior_divergence(prior[None], prior, direction), 0.0, atol=1e-15)
    order = torch.randperm(5, generator=torch.Generator().manual_seed(seed))
    close(prior_divergence(p[:, order], prior[order], direction), value, atol=1e-12)


def test_prototypes_in_another_order_have_another_divergence_unlike_msns():
    order = [3, 2, 1, 0]
    assert prior_divergence(MEAN[:, order], power_law(4, 1.0)) > prior_divergence(MEAN, power_law(4, 1.0)) + 0.1
    close(prior_divergence(MEAN[:, order], uniform(4)), prior_divergence(MEAN, uniform(4)), atol=1e-15)


@examples(count=st.integers(1, 300), exponent=st.floats(0.01, 4))
@settings(max_examples=25, deadline=None)
def test_a_power_law_falls_and_sums_to_one(count, exponent):
    prior = power_law(count, exponent)
    close(prior.sum(), 1.0, atol=1e-12)
    assert (prior[1:] < prior[:-1]).all()
    close(prior[-1] / prior[0], count**-exponent, atol=1e-12)


def test_a_prior_of_ones_own_is_kept_and_counts_are_normalised():
    close(given(torch.tensor([0.5, 0.3, 0.2])), [0.5, 0.3, 0.2], atol=1e-7)
    close(given(torch.tensor([30, 10, 60]), normalise=True), [0.3, 0.1, 0.6], atol=1e-15)
    assert given(torch.rand(10_000) + 0.1, normalise=True).dtype == torch.float64
    given(power_law(8142, 0.25).float())  # float32 entries sum to 1 closely enough


def test_a_prior_of_another_dtype_is_converted():
    p = MEAN.float()
    assert prior_divergence(p, power_law(4, 1.0)).dtype == torch.float32
    assert prototypes.sinkhorn(p, 1, power_law(4, 1.0)).dtype == torch.float32


# bad input


@pytest.mark.parametrize("exponent", [-0.5, math.nan, math.inf])
def test_an_exponent_out_of_range_is_named(exponent):
    with pytest.raises(ValueError, match=rf"exponent = {exponent}; use a finite value >= 0; 0 is uniform"):
        power_law(4, exponent)


@pytest.mark.parametrize("value", [0.0, -0.1, math.nan, math.inf])
def test_the_first_unusable_frequency_is_named(value):
    with pytest.raises(ValueError, match=rf"prior\[1\] = {value:g}; every entry must be above 0 .*\(2 of 4 are not\)"):
        given(torch.tensor([0.5, value, value, 0.5]))


def test_frequencies_that_do_not_sum_to_one_are_refused_unless_counts_are_meant():
    with pytest.raises(ValueError, match="the prior sums to 3, not to 1; pass normalise=True"):
        given(torch.tensor([1.0, 2.0]))
    with pytest.raises(ValueError, match=r"\[K\]; this has the shape \[2, 1\]"):
        given(torch.ones(2, 1))
    with pytest.raises(ValueError, match="count = 0"):
        power_law(0, 1.0)


def test_a_prior_of_another_length_is_refused_with_both_numbers():
    for call in (
        lambda: prior_divergence(MEAN, power_law(3, 1.0)),
        lambda: prototypes.sinkhorn(MEAN, 3, power_law(3, 1.0)),
        lambda: prototypes.msn_loss(Z, Z_TARGET, Q, prior=power_law(4, 1.0)),
    ):
        with pytest.raises(ValueError, match=r"the prior has the shape \[\d\], but there are \d prototypes"):
            call()
    with pytest.raises(ValueError, match=r"direction = 'sideways'; it must be 'forward' or 'reverse'"):
        prior_divergence(MEAN, uniform(4), "sideways")


# ranks


def step_of_a_share(direction: priors.Direction) -> dict[str, Tensor]:
    """Loss and gradients of this rank's half of the images, gradients averaged as DDP does."""
    g = torch.Generator().manual_seed(0)
    encoder = nn.Parameter(torch.randn(6, 4, generator=g, dtype=torch.float64))
    q = nn.Parameter(torch.randn(5, 4, generator=g, dtype=torch.float64))
    images = torch.randn(2, 8, 6, generator=g, dtype=torch.float64)  # 2 views of 8 images
    ranks, rank = collectives.world_size(), collectives.rank()
    mine = images[:, rank * 8 // ranks : (rank + 1) * 8 // ranks]
    prior = power_law(5, 1.0)
    parts = prototypes.msn_loss(
        (mine @ encoder).flatten(0, 1),
        (mine[0] @ encoder).detach(),
        q,
        temperature=0.5,
        prior=prior,
        direction=direction,
        sinkhorn_prior=prior,
    )
    parts["loss"].backward()
    results = {name: value.detach() for name, value in parts.items()}
    results |= {"gradient of the encoder": encoder.grad, "gradient of the prototypes": q.grad}
    return {name: collectives.all_reduce_mean(value) for name, value in results.items()}


def steps_of_a_share() -> dict[str, Tensor]:
    both = {direction: step_of_a_share(direction) for direction in ("forward", "reverse")}
    return {f"{direction}, {name}": value for direction, parts in both.items() for name, value in parts.items()}


@pytest.mark.distributed
def test_two_ranks_give_the_loss_and_the_gradients_of_one_rank_on_the_whole_batch():
    alone = steps_of_a_share()
    for rank in run_ranks(steps_of_a_share, 2):
        for name, value in alone.items():
            torch.testing.assert_close(
                rank[name], value, rtol=1e-10, atol=1e-12, msg=lambda m, name=name: f"{name}: {m}"
            )
