# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch
from torch import Tensor, nn

from recipes_lib.distributed import collectives
from recipes_lib.distributed.local import run_ranks
from recipes_lib.objectives.masked import beit_loss, mae_loss, normalise_patches, patchify, simmim_loss

IMAGE = torch.arange(48, dtype=torch.float64).reshape(1, 3, 4, 4) / 10  # the card's, with patches of 2 x 2 pixels
HIDDEN = patchify(IMAGE, 2)[:, [0, 2, 3]]  # its mask [1, 0, 1, 1]
LOSSES = {"mae": mae_loss, "simmim": simmim_loss}


def draw(seed: int, *size: int) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*size, generator=g, dtype=torch.float64).requires_grad_()


# patches


def test_values_of_a_patch_are_ordered_by_row_column_and_channel():
    patches = patchify(IMAGE, 2)
    want = torch.tensor([0, 1.6, 3.2, 0.1, 1.7, 3.3, 0.4, 2, 3.6, 0.5, 2.1, 3.7], dtype=torch.float64)
    assert patches.shape == (1, 4, 12)
    torch.testing.assert_close(patches[0, 0], want, rtol=0, atol=1e-12)
    assert patches[0, 1, 0] == IMAGE[0, 0, 0, 2]  # the second patch lies to the right of the first
    assert patches[0, 2, 0] == IMAGE[0, 0, 2, 0]


def test_patches_that_do_not_tile_an_image_are_refused():
    with pytest.raises(ValueError, match="patches of 3 pixels do not tile images of 4 x 4 pixels"):
        patchify(IMAGE, 3)


# MAE


@pytest.mark.parametrize(
    ("guess", "normalise", "want"),
    [(0.0, False, 7.9383333333333335), (0.0, True, 0.9166661862794322), (0.1, True, 0.9266661862794324)],
)
def test_mae_loss_of_the_card(guess, normalise, want):
    parts = mae_loss(torch.full_like(HIDDEN, guess), HIDDEN, normalise=normalise)
    assert parts["loss"].item() == pytest.approx(want, abs=1e-9)


def test_a_patch_is_normalised_by_its_own_unbiased_variance_and_a_patch_of_one_colour_stays_finite():
    patches = torch.cat([draw(0, 1, 5, 12) * 3 + 7, torch.ones(1, 1, 12, dtype=torch.float64)], dim=1)
    normal = normalise_patches(patches)
    torch.testing.assert_close(normal.mean(dim=2), torch.zeros(1, 6, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(normal[:, :5].var(dim=2), torch.ones(1, 5, dtype=torch.float64), rtol=0, atol=1e-5)
    assert (normal[:, 5] == 0).all()


def test_explained_is_1_for_a_perfect_guess_and_0_for_the_mean():
    for loss, options in ((mae_loss, {"normalise": False}), (simmim_loss, {})):
        assert loss(HIDDEN, HIDDEN, **options)["explained"] == 1
        mean = HIDDEN.mean().expand_as(HIDDEN)
        assert loss(mean, HIDDEN, **options)["explained"].item() == pytest.approx(
            0, abs=1e-6
        )  # SimMIM adds 1e-5 to the pixels


# SimMIM


def test_simmim_loss_of_the_card():
    assert simmim_loss(torch.zeros_like(HIDDEN), HIDDEN)["loss"].item() == pytest.approx(2.4499979583350346, abs=1e-9)


# BEiT


def test_beit_loss_is_log_k_for_equal_logits_and_the_log_probability_of_the_word_otherwise():
    words = torch.tensor([[3, 0], [1, 1]])
    assert beit_loss(torch.zeros(2, 2, 5), words)["loss"].item() == pytest.approx(math.log(5), abs=1e-6)
    logits = draw(1, 2, 2, 5)
    probability = logits.softmax(dim=2).gather(2, words[..., None]).log()
    torch.testing.assert_close(beit_loss(logits, words)["loss"], -probability.mean(), rtol=0, atol=1e-12)


def test_accuracy_is_the_share_of_words_found():
    logits = torch.zeros(1, 4, 3)
    logits[0, range(4), [0, 1, 2, 2]] = 1
    assert beit_loss(logits, torch.tensor([[0, 1, 2, 0]]))["accuracy"] == 0.75


# all of them


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_those_of_finite_differences(name):
    patches = draw(2, 2, 3, 12).detach()
    assert torch.autograd.gradcheck(lambda guess: LOSSES[name](guess, patches)["loss"], draw(3, 2, 3, 12))


@pytest.mark.parametrize("name", LOSSES)
def test_only_the_loss_carries_a_graph_and_half_precision_is_raised(name):
    parts = LOSSES[name](draw(4, 2, 3, 12), HIDDEN.expand(2, -1, -1))
    assert {part for part, value in parts.items() if value.requires_grad} == {"loss"}
    half = LOSSES[name](draw(4, 2, 3, 12).bfloat16(), HIDDEN.expand(2, -1, -1).bfloat16())
    assert half["loss"].dtype == torch.float32


def test_beits_loss_alone_carries_a_graph_and_half_precision_is_raised():
    parts = beit_loss(draw(5, 2, 3, 7).bfloat16(), torch.zeros(2, 3, dtype=torch.int64))
    assert {part for part, value in parts.items() if value.requires_grad} == {"loss"}
    assert parts["loss"].dtype == torch.float32


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(("first", "second"), [((2, 3, 12), (2, 2, 12)), ((2, 0, 12), (2, 0, 12)), ((6, 12), (6, 12))])
def test_shapes_that_differ_and_nothing_hidden_are_named(name, first, second):
    words = r"at least one hidden patch .* got \[.*\], \[.*\]\."
    with pytest.raises(ValueError, match=words):
        LOSSES[name](torch.zeros(first), torch.zeros(second))


def test_words_of_other_shape_are_named():
    with pytest.raises(ValueError, match=r"got \[2, 3, 7\], \[2, 2\]"):
        beit_loss(torch.zeros(2, 3, 7), torch.zeros(2, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="at least one hidden patch"):
        beit_loss(torch.zeros(2, 0, 7), torch.zeros(2, 0, dtype=torch.int64))


def step_of_a_share() -> dict[str, Tensor]:
    """Losses and gradients of this rank's half of the images, gradients averaged as DDP does."""
    ranks, rank = collectives.world_size(), collectives.rank()
    own = slice(rank * 8 // ranks, (rank + 1) * 8 // ranks)
    patches, words = draw(6, 8, 5, 12).detach(), torch.arange(40).view(8, 5) % 12
    results = {}
    for name in ("mae", "simmim", "beit"):
        weight = nn.Parameter(draw(7, 12, 12).detach() / 3)
        guess = patches[own] @ weight
        parts = beit_loss(guess, words[own]) if name == "beit" else LOSSES[name](guess, patches[own])
        parts["loss"].backward()
        results |= {name: parts["loss"].detach(), f"gradient of {name}": weight.grad}
    return {name: collectives.all_reduce_mean(value) for name, value in results.items()}


@pytest.mark.distributed
def test_two_ranks_give_the_losses_and_the_gradients_of_one_rank_on_the_whole_batch():
    alone = step_of_a_share()
    for rank in run_ranks(step_of_a_share, 2):
        for name, value in alone.items():
            # SimMIM adds 1e-5 to each rank's number of hidden pixels, here 80 of 160
            torch.testing.assert_close(rank[name], value, rtol=2e-7 if "simmim" in name else 1e-10, atol=1e-12)
