# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from recipes_lib.distributed import collectives
from recipes_lib.distributed.local import run_ranks
from recipes_lib.objectives import image_text
from recipes_lib.objectives.image_text import clip_loss, siglip_loss

# The card's three pairs.
IMAGES = torch.tensor([[1, 0], [0, 1], [0.6, 0.8]], dtype=torch.float64)
TEXTS = torch.tensor([[0.8, 0.6], [0, 1], [1, 0]], dtype=torch.float64)


def close(got: Tensor, want: object, atol: float = 5e-9) -> None:
    torch.testing.assert_close(got, torch.as_tensor(want, dtype=got.dtype), rtol=0, atol=atol)


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def log(scale: float) -> Tensor:
    return number(math.log(scale))


def draw(seed: int, count: int = 6, dim: int = 4) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    images, texts = torch.randn(2, count, dim, generator=g, dtype=torch.float64)
    return F.normalize(images, dim=1), F.normalize(texts, dim=1)


# golden values


@pytest.mark.parametrize(
    ("scale", "want"), [(1, 0.9968140385), (2, 0.9885335332), (1 / 0.07, 2.7204272278), (100, 18.6666667049)]
)
def test_loss_has_the_golden_values(scale, want):
    parts = clip_loss(IMAGES, TEXTS, log(scale))
    close(parts["loss"], want, atol=1e-10)
    close(parts["scale"], scale, atol=1e-10)


def test_directions_and_scale_gradient_have_the_golden_values():
    a = log(1 / 0.07).requires_grad_()
    parts = clip_loss(IMAGES, TEXTS, a)
    close(parts["image_to_text"], (2.91298736 + 0.00329370 + 5.24500062) / 3)
    close(parts["text_to_image"], (2.38785776 + 0.05584450 + 5.71757941) / 3)
    parts["loss"].backward()
    close(a.grad, 2.52966815)
    close(a.grad * 0.07, 0.17707677)  # dL/ds = dL/da / s


def test_gradient_of_the_images_has_the_golden_values():
    images = IMAGES.clone().requires_grad_()
    clip_loss(images, TEXTS, log(2))["loss"].backward()
    rows = [[0.04812191, -0.21015739], [0.19120462, -0.17101008], [-0.25781927, 0.41388388]]
    close(images.grad, rows)


def test_siglip_has_the_golden_value():
    close(siglip_loss(IMAGES, TEXTS, log(10), number(-10))["loss"], 2.7298520964, atol=1e-10)


def test_accuracy_counts_images_whose_own_text_is_nearest():
    # cosines by row: .8 0 1 | .6 1 0 | .96 .8 .6: only the second image finds its text
    close(clip_loss(IMAGES, TEXTS, log(5))["accuracy"], 1 / 3)
    close(siglip_loss(IMAGES, TEXTS, log(5), number(0))["accuracy"], 1 / 3)


def test_the_scale_starts_at_the_inverse_of_the_papers_temperature():
    assert math.exp(image_text.INITIAL_LOG_SCALE) == pytest.approx(1 / 0.07)
    assert math.exp(image_text.MAX_LOG_SCALE) == pytest.approx(100)


# equal captions


def test_equal_captions_need_no_target_of_their_own():
    """Equal texts have equal logits: a target spread over them gives the same value and gradient."""
    images, texts = draw(0, count=4)
    texts = texts[[0, 1, 0, 0]].requires_grad_()
    logits = 3 * images @ texts.T
    target = number([[1 / 3, 0, 1 / 3, 1 / 3], [0, 1, 0, 0], [1 / 3, 0, 1 / 3, 1 / 3], [1 / 3, 0, 1 / 3, 1 / 3]])
    spread = -(target * (logits.log_softmax(dim=1) + logits.T.log_softmax(dim=1))).sum() / 8
    loss = clip_loss(images, texts, log(3))["loss"]
    close(loss, spread, atol=1e-12)
    ours, theirs = (torch.autograd.grad(value, texts, retain_graph=True)[0] for value in (loss, spread))
    # one text is embedded three times: what reaches the tower is the sum over its copies
    close(ours[[0, 2, 3]].sum(dim=0), theirs[[0, 2, 3]].sum(dim=0), atol=1e-12)


# gradients


def test_clip_gradients_are_those_of_finite_differences():
    inputs = [x.requires_grad_() for x in (*draw(3, count=3, dim=3), log(4))]
    assert torch.autograd.gradcheck(lambda *x: clip_loss(*x)["loss"], inputs)


def test_siglip_gradients_are_those_of_finite_differences():
    inputs = [x.requires_grad_() for x in (*draw(4, count=3, dim=3), log(4), number(-2))]
    assert torch.autograd.gradcheck(lambda *x: siglip_loss(*x)["loss"], inputs)


def test_only_the_loss_carries_a_graph():
    images, texts = (x.requires_grad_() for x in draw(5))
    for parts in (clip_loss(images, texts, log(4)), siglip_loss(images, texts, log(4), number(0))):
        assert {name for name, value in parts.items() if value.requires_grad} == {"loss"}


# invariants


@given(seed=st.integers(0, 10_000), scale=st.floats(0.5, 100.0))
@settings(max_examples=25, deadline=None)
def test_losses_ignore_order_and_rotation_and_clip_which_side_is_which(seed, scale):
    images, texts = draw(seed)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    turn = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))[0]
    losses = [clip_loss, lambda f, g, a: siglip_loss(f, g, a, number(-3))]
    for loss in losses:
        want = loss(images, texts, log(scale))["loss"]
        close(loss(images[order], texts[order], log(scale))["loss"], want, atol=1e-9)
        close(loss(images @ turn, texts @ turn, log(scale))["loss"], want, atol=1e-9)
        close(loss(texts, images, log(scale))["loss"], want, atol=1e-9)


def test_loss_is_log_n_where_embeddings_are_alike_or_the_scale_is_zero():
    images, texts = draw(6)
    close(clip_loss(images[:1].expand(6, -1), images[:1].expand(6, -1), log(50))["loss"], math.log(6), atol=1e-12)
    close(clip_loss(images, texts, number(-800.0))["loss"], math.log(6), atol=1e-12)  # exp(-800) = 0


def test_one_pair_has_no_loss_and_no_gradient():
    images, texts = (x.requires_grad_() for x in draw(7, count=1))
    loss = clip_loss(images, texts, log(10))["loss"]
    loss.backward()
    assert loss == 0
    assert not images.grad.any()
    assert not texts.grad.any()


# precision


def test_half_precision_is_raised_and_autocast_makes_no_difference():
    images, texts = (x.float() for x in draw(8, count=32, dim=16))
    a, b = torch.tensor(4.0), torch.tensor(-5.0)
    for loss in (lambda f, g: clip_loss(f, g, a)["loss"], lambda f, g: siglip_loss(f, g, a, b)["loss"]):
        plain = loss(images, texts)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert loss(images, texts) == plain
        half = loss(images.bfloat16(), texts.bfloat16())
        assert half.dtype == torch.float32
        torch.testing.assert_close(half, plain, rtol=0.05, atol=0)


# bad input


def test_unequal_numbers_of_images_and_texts_name_both_shapes():
    with pytest.raises(ValueError, match=r"images \[3, 2\] and texts \[2, 2\] are no pairs"):
        clip_loss(IMAGES, TEXTS[:2], log(1))


def test_embeddings_that_are_not_normalised_name_their_norms():
    with pytest.raises(ValueError, match=r"texts have norms from 1 to 3; normalise"):
        clip_loss(IMAGES, TEXTS * torch.tensor([[1.0], [2.0], [3.0]]), log(1))


def test_values_that_are_not_finite_are_named():
    bad = IMAGES.clone()
    bad[1, 0] = math.nan
    with pytest.raises(FloatingPointError, match=r"images\[1\] holds NaN or Inf"):
        siglip_loss(bad, TEXTS, log(1), number(0))
    with pytest.raises(FloatingPointError, match=r"log_scale = nan"):
        clip_loss(IMAGES, TEXTS, number(math.nan))


def test_a_scale_of_another_shape_is_named():
    with pytest.raises(ValueError, match=r"log_scale has shape \[1\]"):
        clip_loss(IMAGES, TEXTS, log(1)[None])


# ranks


def step_of_a_share(kind: str) -> dict[str, Tensor]:
    """Loss and gradients of this rank's share of 8 pairs, gradients averaged as DDP does."""
    torch.manual_seed(0)
    towers = nn.ModuleDict({"image": nn.Linear(6, 4), "text": nn.Linear(5, 4)}).double()
    a, b = nn.Parameter(log(7)), nn.Parameter(number(-1))
    images, texts = torch.randn(8, 6, dtype=torch.float64), torch.randn(8, 5, dtype=torch.float64)
    ranks, rank = collectives.world_size(), collectives.rank()
    share = slice(rank * 8 // ranks, (rank + 1) * 8 // ranks)
    f, g = F.normalize(towers["image"](images[share]), dim=1), F.normalize(towers["text"](texts[share]), dim=1)
    parts = siglip_loss(f, g, a, b) if kind == "siglip" else clip_loss(f, g, a)
    parts["loss"].backward()
    results = {name: value.detach() for name, value in parts.items()}
    results |= {f"gradient of {name}": p.grad for name, p in towers.named_parameters()}
    results["gradient of a"] = a.grad
    results["gradient of b"] = b.grad if kind == "siglip" else torch.zeros(1)
    return {name: collectives.all_reduce_mean(value) for name, value in results.items()}


def unequal_shares() -> str:
    images, texts = draw(0, count=3 + collectives.rank())
    try:
        clip_loss(images, texts, log(1))
    except ValueError as error:
        return str(error)
    return "nothing was raised"


KINDS = ("clip", "siglip")


def everything() -> tuple[dict[str, dict[str, Tensor]], str]:
    return {kind: step_of_a_share(kind) for kind in KINDS}, unequal_shares()


@pytest.fixture(scope="module")
def two_ranks() -> list[tuple[dict[str, dict[str, Tensor]], str]]:
    return run_ranks(everything, 2)


@pytest.mark.distributed
@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_give_the_loss_and_the_gradients_of_one_rank_on_the_whole_batch(kind, two_ranks):
    alone = step_of_a_share(kind)
    for steps, _ in two_ranks:
        for name, value in alone.items():
            torch.testing.assert_close(
                steps[kind][name], value, rtol=1e-10, atol=1e-12, msg=lambda m, name=name: f"{name}: {m}"
            )


@pytest.mark.distributed
def test_ranks_with_unequal_numbers_of_pairs_are_told_so(two_ranks):
    for _, message in two_ranks:
        assert message.startswith("ranks hold [3, 4] pairs; each must hold equally many.")
