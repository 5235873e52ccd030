# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from torch import Tensor, nn

from recipes_lib.distributed import collectives
from recipes_lib.distributed.local import run_ranks
from recipes_lib.objectives.contrastive import info_nce
from recipes_lib.objectives.unified import dimension_contrastive, phi_psi_loss, sample_contrastive

Z1 = torch.tensor([[1, 0, 2], [0, 1, -1], [2, 1, 0], [-1, 1, 1]], dtype=torch.float64)
Z2 = torch.tensor([[1, 0.5, 1.5], [0, 1, -2], [1, 1, 0], [-1, 0, 1]], dtype=torch.float64)
GOLDEN = {
    # temperature, eps, negatives: value, computed with numpy from the equation
    (0.5, 1, "same"): 0.23721378946977778,
    (0.5, 1, "cross"): 0.24624927160651983,
    (0.5, 0, "same"): -0.25284743238795354,
    (0.5, 0, "cross"): -0.22877386591006826,
    (0.2, 1, "same"): 0.016100785925591037,
    (0.2, 1, "cross"): 0.022830639767110555,
    (0.2, 0, "same"): -0.5025756588360384,
    (0.2, 0, "cross"): -0.4326388084426864,
}


def draw(*size: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize(("temperature", "eps", "negatives"), GOLDEN)
def test_the_unified_loss_has_the_values_of_its_equation(temperature, eps, negatives):
    parts = phi_psi_loss(Z1, Z2, temperature=temperature, eps=eps, negatives=negatives)
    assert parts["loss"].item() == pytest.approx(GOLDEN[temperature, eps, negatives], abs=1e-9)
    assert parts["positive"].item() == pytest.approx(0.917511516124067, abs=1e-9)


def test_with_eps_1_it_is_the_temperature_times_info_nce_of_the_batch():
    first, second = draw(2, 6, 4)
    got = phi_psi_loss(first, second, temperature=0.3, eps=1.0)["loss"]
    torch.testing.assert_close(got, 0.3 * info_nce(first, second, temperature=0.3)["loss"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("eps", [0.0, 1.0])
@pytest.mark.parametrize("negatives", ["same", "cross"])
def test_gradients_of_the_unified_loss_are_those_of_finite_differences(eps, negatives):
    views = draw(2, 4, 3)
    assert torch.autograd.gradcheck(
        lambda x: phi_psi_loss(*x, eps=eps, temperature=0.5, negatives=negatives)["loss"], views
    )


def test_the_criteria_of_the_card_are_22_and_4_and_both_make_85_with_their_norms():
    sample, dimension = sample_contrastive(Z1), dimension_contrastive(Z1)
    assert (sample["loss"].item(), sample["norms"].item()) == (22.0, 63.0)
    assert (dimension["loss"].item(), dimension["norms"].item()) == (4.0, 81.0)


@pytest.mark.parametrize("size", [(3, 7), (7, 3), (5, 5)])
def test_sample_and_dimension_criteria_differ_by_their_norms_alone(size):
    z = draw(*size)
    sample, dimension = (sum(criterion(z).values()) for criterion in (sample_contrastive, dimension_contrastive))
    torch.testing.assert_close(sample, dimension, rtol=1e-12, atol=0)
    torch.testing.assert_close(sample, torch.linalg.svdvals(z).pow(4).sum(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("criterion", [sample_contrastive, dimension_contrastive])
def test_gradients_of_the_criteria_are_those_of_finite_differences(criterion):
    assert torch.autograd.gradcheck(lambda z: criterion(z)["loss"], draw(4, 3))


def test_only_the_loss_carries_a_graph_and_half_precision_is_raised():
    view = draw(4, 3)
    for parts in (phi_psi_loss(view, view), sample_contrastive(view), dimension_contrastive(view)):
        assert {name for name, value in parts.items() if value.requires_grad} == {"loss"}
    low = view.bfloat16()
    for parts in (phi_psi_loss(low, low), sample_contrastive(low), dimension_contrastive(low)):
        assert parts["loss"].dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eps": -1.0}, "eps = -1.0; it must be at least 0"),
        ({"negatives": "both"}, "negatives = 'both'; use 'cross' or 'same'"),
        ({"temperature": 0.0}, "temperature = 0.0; it must be above 0"),
        ({"second": torch.ones(3, 3)}, r"got \[4, 3\], \[3, 3\]"),
        ({"first": torch.ones(1, 3), "second": torch.ones(1, 3)}, "1 image has no negatives"),
    ],
)
def test_bad_input_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        phi_psi_loss(**{"first": torch.ones(4, 3), "second": torch.ones(4, 3), **change})


def test_the_criteria_want_a_matrix():
    for criterion in (sample_contrastive, dimension_contrastive):
        with pytest.raises(ValueError, match=r"embeddings \[B, D\] are wanted; got \[4\]"):
            criterion(torch.ones(4))


def step_of_a_share() -> dict[str, Tensor]:
    """Losses and gradients of this rank's half of the images, gradients averaged as DDP does."""
    g = torch.Generator().manual_seed(0)
    weights = torch.randn(6, 4, generator=g, dtype=torch.float64)
    images = torch.randn(2, 8, 6, generator=g, dtype=torch.float64)
    ranks, rank = collectives.world_size(), collectives.rank()
    mine = images[:, rank * 8 // ranks : (rank + 1) * 8 // ranks]
    results = {}
    for name, loss in {
        "same": lambda z: phi_psi_loss(*z, negatives="same", temperature=0.5),
        "cross": lambda z: phi_psi_loss(*z, eps=0.0, temperature=0.5),
        "sample": lambda z: sample_contrastive(z[0]),
        "dimension": lambda z: dimension_contrastive(z[0]),
    }.items():
        encoder = nn.Parameter(weights.clone())
        parts = loss(mine @ encoder)
        parts["loss"].backward()
        results |= {f"{name} {key}": value.detach() for key, value in parts.items()}
        results[f"{name} gradient"] = encoder.grad
    return {name: collectives.all_reduce_mean(value) for name, value in results.items()}


@pytest.mark.distributed
def test_two_ranks_give_the_loss_and_the_gradient_of_one_rank_on_the_whole_batch():
    alone = step_of_a_share()
    for rank in run_ranks(step_of_a_share, 2):
        for name, value in alone.items():
            torch.testing.assert_close(rank[name], value, rtol=1e-10, atol=1e-12)
