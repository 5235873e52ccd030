# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from recipes_lib.distributed import collectives
from recipes_lib.distributed.local import run_ranks
from recipes_lib.objectives.latents import ijepa_loss

Z1 = torch.tensor([[1, 0, 2], [0, 1, -1], [2, 1, 0], [-1, 1, 1]], dtype=torch.float64)[None, None]
Z2 = torch.tensor([[1, 0.5, 1.5], [0, 1, -2], [1, 1, 0], [-1, 0, 1]], dtype=torch.float64)[None, None]


def draw(seed: int, *size: int) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return (1.5 * torch.randn(*size, generator=g, dtype=torch.float64)).requires_grad_()


def by_numpy(predicted: np.ndarray, target: np.ndarray) -> dict[str, float]:
    """The loss value by value: normalised targets, then half the square up to 1 and the line beyond."""
    total = squared = 0.0
    rows = predicted.reshape(-1, predicted.shape[-1])
    for guess, token in zip(rows, target.reshape(rows.shape), strict=True):
        normal = (token - token.mean()) / np.sqrt(token.var() + 1e-5)  # the biased variance
        for distance in np.abs(guess - normal):
            total += distance**2 / 2 if distance < 1 else distance - 0.5
            squared += distance**2
    return {"loss": total / rows.size, "squared": squared / rows.size}


def test_loss_of_the_card():
    assert ijepa_loss(Z1, Z2)["loss"].item() == pytest.approx(0.32669905520580717, abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_loss_and_its_parts_are_those_of_numpy(seed):
    predicted, target = draw(seed, 2, 4, 3, 6), draw(seed + 10, 2, 4, 3, 6)
    got = ijepa_loss(predicted, target)
    wanted = by_numpy(predicted.detach().numpy(), target.detach().numpy())
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        assert got[name].item() == pytest.approx(value, abs=1e-12), name


def test_gradients_are_those_of_finite_differences_in_both_arguments():
    assert torch.autograd.gradcheck(lambda a, b: ijepa_loss(a, b)["loss"], (draw(1, 2, 2, 3, 6), draw(2, 2, 2, 3, 6)))


def test_size_and_offset_of_a_target_do_not_matter():
    predicted, target = draw(3, 2, 2, 3, 6), draw(4, 2, 2, 3, 6)
    want = ijepa_loss(predicted, target)["loss"]
    torch.testing.assert_close(ijepa_loss(predicted, 50 * target + 7)["loss"], want, rtol=0, atol=1e-4)


def test_only_the_loss_carries_a_graph_and_half_precision_is_raised():
    parts = ijepa_loss(draw(5, 2, 2, 3, 6), draw(6, 2, 2, 3, 6))
    assert {name for name, value in parts.items() if value.requires_grad} == {"loss"}
    assert ijepa_loss(Z1.bfloat16(), Z2.bfloat16())["loss"].dtype == torch.float32


@pytest.mark.parametrize(
    ("first", "second"), [((2, 2, 3, 6), (2, 2, 2, 6)), ((2, 0, 3, 6), (2, 0, 3, 6)), ((6,), (6,))]
)
def test_bad_input_is_named(first, second):
    with pytest.raises(ValueError, match=r"at least one hidden patch are wanted, \[B, M, m, D\]; got \["):
        ijepa_loss(torch.zeros(first), torch.zeros(second))


def step_of_a_share() -> dict[str, Tensor]:
    """Loss and gradient of this rank's half of the images, gradients averaged as DDP does."""
    ranks, rank = collectives.world_size(), collectives.rank()
    own = slice(rank * 8 // ranks, (rank + 1) * 8 // ranks)
    encoder = nn.Parameter(draw(7, 6, 6).detach() / 4)
    tokens = draw(8, 8, 2, 3, 6).detach()[own]
    parts = ijepa_loss(tokens @ encoder, tokens)
    parts["loss"].backward()
    results = {**{name: value.detach() for name, value in parts.items()}, "gradient": encoder.grad}
    return {name: collectives.all_reduce_mean(value) for name, value in results.items()}


@pytest.mark.distributed
def test_two_ranks_give_the_loss_and_the_gradient_of_one_rank_on_the_whole_batch():
    alone = step_of_a_share()
    for rank in run_ranks(step_of_a_share, 2):
        for name, value in alone.items():
            torch.testing.assert_close(rank[name], value, rtol=1e-10, atol=1e-12)
