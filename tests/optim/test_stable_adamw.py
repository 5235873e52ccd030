# SPDX-License-Identifier: Apache-2.0
import copy
import math

import pytest
import torch
from torch import Tensor, nn

from recipes_lib.optim import StableAdamW, stable_adamw

START = [1.0, -2.0, 0.5]
GRADIENTS = [[0.1, -0.2, 0.3], [0.1] * 3, [5.0, -4.0, 3.0]]
CARD = {"lr": 0.01, "betas": (0.9, 0.99), "eps": 1e-6, "weight_decay": 0.1}


def weight_of(values: list[float], dtype: torch.dtype = torch.float64) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values, dtype=dtype))


def run(optimizer: torch.optim.Optimizer, weights: list[nn.Parameter], gradients: list[Tensor]) -> None:
    for gradient in gradients:
        for weight in weights:
            weight.grad = gradient.to(weight.dtype).expand_as(weight).clone()
        optimizer.step()


@pytest.mark.parametrize(
    ("clip_decay", "expected"),
    [(True, [0.9736182528, -1.9784315376, 0.4759173076]), (False, [0.9732091206, -1.9776018432, 0.4757163899])],
)
def test_three_steps_are_those_of_the_card(clip_decay, expected):
    weight = weight_of(START)
    optimizer, sizes = StableAdamW([weight], **CARD, clip_decay=clip_decay), []
    for gradient in GRADIENTS:
        run(optimizer, [weight], [torch.tensor(gradient, dtype=torch.float64)])
        sizes.append(optimizer.rms()[weight].item())
    torch.testing.assert_close(sizes, [1.0, 0.7307569005, 1.7191903146], rtol=0, atol=1e-10)
    torch.testing.assert_close(weight.tolist(), expected, rtol=0, atol=1e-10)


def test_it_is_adamw_while_rms_is_at_most_one():
    """Gradients of one size fall to a third: u stays above their squares. From the first greater one on they part."""
    g = torch.Generator().manual_seed(0)
    signs = (torch.randn(40, 6, generator=g, dtype=torch.float64) > 0) * 2.0 - 1
    gradients = list(signs * torch.linspace(1, 1 / 3, 40, dtype=torch.float64)[:, None])
    ours, theirs = weight_of([0.5] * 6), weight_of([0.5] * 6)
    a, b = StableAdamW([ours], **CARD), torch.optim.AdamW([theirs], **CARD)
    for gradient in gradients:
        run(a, [ours], [gradient])
        run(b, [theirs], [gradient])
        assert a.rms()[ours] <= 1
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
    run(a, [ours], [torch.full((6,), 3.0)])
    run(b, [theirs], [torch.full((6,), 3.0)])
    assert (ours - theirs).abs().max() > 1e-4


@pytest.mark.parametrize(("step", "bound"), [(2, 1.413860), (100, 9.757451)])
def test_rms_after_gradients_of_zero_is_at_its_bound(step, bound):
    weight = weight_of([0.0])
    optimizer = StableAdamW([weight], lr=0.1, betas=(0.9, 0.999))
    run(optimizer, [weight], [torch.zeros(1)] * (step - 1) + [torch.ones(1)])
    assert optimizer.rms()[weight].item() == pytest.approx(bound, abs=5e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_scale_of_all_gradients_does_not_matter(dtype):
    def end(factor: float) -> Tensor:
        weight = weight_of(START, dtype)
        run(StableAdamW([weight], lr=0.01, eps=1e-12), [weight], [factor * torch.tensor(g) for g in GRADIENTS])
        return weight.detach()

    torch.testing.assert_close(end(1e3), end(1e-3), rtol=1e-6, atol=0)


def test_each_tensor_has_a_learning_rate_of_its_own():
    calm, wild, alone = weight_of([1.0, 1.0]), weight_of([1.0, 1.0]), weight_of([1.0, 1.0])
    both, one = StableAdamW([calm, wild], lr=0.1), StableAdamW([alone], lr=0.1)
    for gradient in (1.0, 1.0, 50.0):
        calm.grad, alone.grad = (torch.ones(2).double() for _ in range(2))
        wild.grad = torch.full((2,), gradient).double()
        both.step()
        one.step()
    assert both.rms()[wild] > 1.5
    assert torch.equal(calm, alone)


@pytest.mark.parametrize("piece", [1, 5, 12, 100])
def test_tensors_cut_to_pieces_take_the_same_steps(monkeypatch, piece):
    """Shapes that need cutting, fit together, have no elements, no dimensions, or lie in another order."""

    def end() -> tuple[list[Tensor], list[float]]:
        g = torch.Generator().manual_seed(0)
        weights = [nn.Parameter(torch.randn(shape, generator=g).double()) for shape in ((7, 3), (), (2,), (3,))]
        weights.append(
            nn.Parameter(torch.randn(4, 3, 2, 2, generator=g).double().to(memory_format=torch.channels_last))
        )
        weights.append(nn.Parameter(torch.zeros(0, 4).double()))
        optimizer = StableAdamW(weights, lr=0.1)
        for scale in (1.0, 1.0, 30.0):
            for weight in weights:
                weight.grad = scale * torch.randn(weight.shape, generator=g).double()
            optimizer.step()
        return [weight.detach() for weight in weights], [rms.item() for rms in optimizer.rms().values()]

    whole = end()
    monkeypatch.setattr(stable_adamw, "_PIECE", piece)
    torch.testing.assert_close(end(), whole, rtol=1e-12, atol=0)
    assert whole[1][-1] == 0  # no elements


def test_a_parameter_that_starts_later_counts_its_own_steps():
    first, late, fresh = weight_of([1.0]), weight_of([1.0]), weight_of([1.0])
    optimizer = StableAdamW([first, late], lr=0.1)
    run(optimizer, [first], [torch.ones(1)] * 3)
    assert late not in optimizer.rms()
    assert late not in optimizer.state
    run(optimizer, [first, late], [torch.full((1,), 0.3)])
    run(StableAdamW([fresh], lr=0.1), [fresh], [torch.full((1,), 0.3)])
    assert torch.equal(late, fresh)
    assert [optimizer.state[weight]["step"] for weight in (first, late)] == [4, 1]


def test_zero_gradients_only_decay():
    weight = weight_of([2.0])
    run(StableAdamW([weight], lr=0.1, weight_decay=0.5), [weight], [torch.zeros(1)])
    assert weight.item() == pytest.approx(2.0 * (1 - 0.05))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_has_a_finite_rms_of_all_its_elements(dtype):
    """4,097 ones and a gradient that is always 0. bf16 has no 4,097, and in float16 the square of eps is 0."""
    weight = nn.Parameter(torch.zeros(4098, dtype=dtype))
    gradient = torch.ones(4098)
    gradient[0] = 0
    optimizer = StableAdamW([weight], lr=0.5, weight_decay=0.0)
    run(optimizer, [weight], [gradient])
    assert optimizer.rms()[weight].item() == pytest.approx((4097 / 4098) ** 0.5, abs=1e-6)
    assert weight.dtype == dtype
    torch.testing.assert_close(weight.float(), -0.5 * gradient, rtol=1e-2, atol=0)


def test_a_copy_goes_on_alike_and_the_state_holds_no_rms():
    weight = weight_of(START)
    optimizer = StableAdamW([weight], **CARD)
    run(optimizer, [weight], [torch.tensor(g) for g in GRADIENTS])
    other, other_weight = copy.deepcopy((optimizer, weight))
    assert optimizer.state[weight].keys() == {"step", "exp_avg", "exp_avg_sq"}
    assert other.rms() == {}
    for one, its_weight in ((optimizer, weight), (other, other_weight)):
        run(one, [its_weight], [torch.tensor(GRADIENTS[0])])
    assert torch.equal(weight, other_weight)


def test_the_closure_recomputes_the_loss_and_nothing_moves_without_gradient():
    weight = weight_of([1.0])
    optimizer = StableAdamW([weight], lr=0.1)
    assert optimizer.step(lambda: 7.0) == 7.0
    assert weight.item() == 1.0
    assert optimizer.state == {}
    assert math.isclose(optimizer.step(lambda: (weight * 3).sum().item()), 3.0)


@pytest.mark.parametrize(
    ("name", "value"),
    [("lr", -1.0), ("betas", (1.0, 0.9)), ("betas", (0.9, -0.1)), ("eps", 0.0), ("weight_decay", -0.1)],
)
def test_impossible_values_are_refused(name, value):
    with pytest.raises(ValueError, match=f"StableAdamW {name} = ") as caught:
        StableAdamW([weight_of([1.0])], **{"lr": 0.1, name: value})
    assert str(value) in str(caught.value)


def test_sparse_gradients_are_refused():
    table = nn.Embedding(5, 2, sparse=True)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match=r"dense gradients only; one of shape \(5, 2\) has layout torch.sparse_coo"):
        StableAdamW(table.parameters(), lr=0.1).step()
