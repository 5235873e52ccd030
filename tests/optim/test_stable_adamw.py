# SPDX-License-Identifier: Apache-2.0
import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from recipes_lib.distributed.local import run_ranks
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


def plain(weight: Tensor, gradients: list[Tensor], lr: float, decay: float, clip_decay: bool) -> Tensor:
    """The docstring's equations, an operation a line, betas .9 and .99, eps 1e-6."""
    v, u = torch.zeros_like(weight), torch.zeros_like(weight)
    for step, g in enumerate(gradients, start=1):
        beta1, beta2 = (beta * (1 - beta ** (step - 1)) / (1 - beta**step) for beta in (0.9, 0.99))
        v = beta1 * v + (1 - beta1) * g
        u = beta2 * u + (1 - beta2) * g**2
        eta = lr / max(1.0, (g**2 / u.clamp_min(1e-12)).mean().sqrt().item())
        weight = weight * (1 - decay * (eta if clip_decay else lr)) - eta * v / (u.sqrt() + 1e-6)
    return weight


@pytest.mark.parametrize("clip_decay", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_the_fused_kernels_steps_are_those_of_the_plain_equations(dtype, tolerance, clip_decay):
    """Tensors with elements that are always 0, gradients below eps, and jumps that are clipped, every other tensor's."""
    g = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=g, dtype=dtype) for shape in ((5, 4), (7,), (2, 3, 2), ())]
    drawn = [[torch.randn(x.shape, generator=g, dtype=dtype) for x in start] for _ in range(30)]
    for step, gradients in enumerate(drawn):
        gradients[0][0] = 0
        gradients[0][1] *= 1e-8
        for gradient in gradients[::2]:
            gradient *= 40 if step % 10 == 9 else 1
    weights = [nn.Parameter(x.clone()) for x in start]
    optimizer = StableAdamW(weights, **CARD, clip_decay=clip_decay)
    for gradients in drawn:
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient.clone()
        optimizer.step()
    for place, weight in enumerate(weights):
        want = plain(start[place], [gradients[place] for gradients in drawn], 0.01, 0.1, clip_decay)
        torch.testing.assert_close(weight.detach(), want, rtol=tolerance, atol=tolerance)


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


@pytest.mark.parametrize("betas", [(0.9, 0.99), (0.9, 0.0)])
@pytest.mark.parametrize(
    ("dtype", "gradients"),
    [
        (torch.float16, [1.0, 1.0, 300.0, 1.0, 1.0]),
        (torch.float16, [1.0, 1.0, 6e4, 6e4, 1.0, 1.0]),
        (torch.bfloat16, [1.0, 1e20, 1.0]),
        (torch.float32, [1e20]),
        (torch.float32, [1.0, 1e20, 1.0, 1.0]),
        (torch.float32, [1.0, 3e38, 1.0, 1.0]),
    ],
)
def test_squares_that_overflow_leave_the_weights_finite(dtype, gradients, betas):
    weight, calm = (nn.Parameter(torch.ones(3, dtype=dtype)) for _ in range(2))
    optimizer = StableAdamW([weight, calm], lr=0.01, betas=betas)
    for gradient in gradients:
        weight.grad = torch.tensor([1.0, gradient, 1.0]).to(dtype)
        calm.grad = torch.ones(3, dtype=dtype)
        optimizer.step()
        assert weight.isfinite().all()
        assert optimizer.rms()[weight].isfinite()
    assert (weight[::2] < 1).all()  # the other elements went on
    if dtype == torch.float16:
        assert optimizer.state[weight]["exp_avg_sq"].isfinite().all()


def test_a_spike_whose_square_overflows_is_clipped():
    """u of the spike counts as the largest number: the mean of three ratios of which one is about 1 / (1 - beta2)."""
    weight = nn.Parameter(torch.ones(3))
    optimizer = StableAdamW([weight], lr=0.01, weight_decay=0.0)
    run(optimizer, [weight], [torch.ones(3)] * 200)
    run(optimizer, [weight], [torch.tensor([1.0, 3e20, 1.0])])
    assert optimizer.rms()[weight].item() > 5


def test_a_learning_rate_may_be_a_tensor():
    (ours, theirs), gradients = (weight_of(START) for _ in range(2)), [torch.tensor(g) for g in GRADIENTS]
    run(StableAdamW([ours], **CARD | {"lr": torch.tensor(0.01, dtype=torch.float64)}), [ours], gradients)
    run(StableAdamW([theirs], **CARD), [theirs], gradients)
    assert torch.equal(ours, theirs)
    with pytest.raises(ValueError, match=r"lr has shape \(2,\)"):
        StableAdamW([ours], lr=torch.ones(2))


def test_maximizing_is_minimizing_the_negative():
    ours, theirs = weight_of(START), weight_of(START)
    run(StableAdamW([ours], **CARD, maximize=True), [ours], [torch.tensor(g) for g in GRADIENTS])
    run(StableAdamW([theirs], **CARD), [theirs], [-torch.tensor(g) for g in GRADIENTS])
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_kahans_sum_follows_float32_where_plain_half_precision_stands_still(dtype):
    """Steps of 1e-4 from a weight of 1: the neighbours in bfloat16 are 2^-8 and 2^-7 away, in float16 2^-11 and 2^-10."""

    def end(dtype: torch.dtype, kahan: bool) -> float:
        weight = nn.Parameter(torch.ones(8, dtype=dtype))
        optimizer = StableAdamW([weight], lr=1e-4, weight_decay=0.0, kahan=kahan)
        run(optimizer, [weight], [torch.ones(8)] * 200)
        assert ("kahan_comp" in optimizer.state[weight]) == (kahan and dtype != torch.float32)
        return weight[0].item()

    assert end(dtype, kahan=False) == 1.0
    assert end(dtype, kahan=True) == pytest.approx(0.98, abs=2e-3)
    assert end(torch.float32, kahan=True) == end(torch.float32, kahan=False) == pytest.approx(0.98, abs=1e-5)


def adam_state(kind: type, steps: int = 3, **more: object) -> tuple[nn.Parameter, torch.optim.Optimizer]:
    weight = weight_of(START)
    optimizer = kind([weight], lr=0.01, betas=(0.9, 0.99), eps=1e-6, weight_decay=0.1, **more)
    run(optimizer, [weight], [torch.tensor([0.1, -0.2, 0.3]) * scale for scale in torch.linspace(1, 0.7, steps)])
    return weight, optimizer


@pytest.mark.parametrize("more", [{}, {"fused": True}, {"amsgrad": True}])
def test_it_goes_on_from_torchs_adamw(more):
    """Where no gradient grows they are the same, so the state of one is the other's once its bias is corrected."""
    theirs, adamw = adam_state(torch.optim.AdamW, **more)
    ours, ownself = adam_state(StableAdamW)
    weight = nn.Parameter(theirs.detach().clone())
    optimizer = StableAdamW([weight], lr=1.0)
    optimizer.load_state_dict(adamw.state_dict())
    torch.testing.assert_close(optimizer.state[weight], ownself.state[ours], rtol=1e-12, atol=0)
    assert optimizer.param_groups[0].keys() - ownself.param_groups[0].keys() == {"differentiable"}  # torch adds it
    for one, its_weight in ((optimizer, weight), (ownself, ours)):
        run(one, [its_weight], [torch.tensor([5.0, -4.0, 3.0])])
    torch.testing.assert_close(weight, ours, rtol=1e-12, atol=0)


def test_it_goes_on_from_torch_optimis():
    optimi = pytest.importorskip("optimi", reason="torch-optimi is not installed")
    theirs, other = adam_state(optimi.StableAdamW, triton=False)
    ours, ownself = adam_state(StableAdamW)
    optimizer = StableAdamW([theirs], lr=1.0)
    optimizer.load_state_dict(other.state_dict())
    torch.testing.assert_close(optimizer.state[theirs], ownself.state[ours], rtol=1e-12, atol=0)
    assert optimizer.param_groups[0].keys() - ownself.param_groups[0].keys() == {"differentiable"}  # torch adds it
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.99)


def test_a_state_that_does_not_fit_is_refused_in_one_line():
    weight = weight_of(START)
    other = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    run(other, [weight], [torch.ones(3)])
    with pytest.raises(ValueError, match="cannot go on from a state of momentum_buffer: it needs step") as caught:
        StableAdamW([weight], lr=0.1).load_state_dict(other.state_dict())
    assert "\n" not in str(caught.value)


def test_a_state_of_an_older_version_has_the_defaults_of_newer_options():
    ours, optimizer = adam_state(StableAdamW)
    saved = optimizer.state_dict()
    for key in ("clip_decay", "maximize", "kahan"):
        del saved["param_groups"][0][key]
    again = StableAdamW([ours], lr=1.0, clip_decay=False)
    again.load_state_dict(saved)
    assert again.param_groups[0]["clip_decay"] is False
    run(again, [ours], [torch.ones(3)])


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

    optimizer = StableAdamW([weight_of([1.0])], lr=0.1)
    with pytest.raises(ValueError, match=f"StableAdamW {name} = "):
        optimizer.add_param_group({"params": [weight_of([1.0])], name: value})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize(
    ("parameter", "message"),
    [
        (torch.ones(2, dtype=torch.complex64), r"of shape \(2,\) and torch.complex64; it takes floating-point numbers"),
        (torch.ones(2, 6)[:, :3], r"of shape \(2, 3\) with gaps or repetitions in memory"),
        (torch.ones(3).expand(2, 3), r"of shape \(2, 3\) with gaps or repetitions in memory"),
    ],
)
def test_parameters_that_it_cannot_move_are_refused(parameter, message):
    with pytest.raises(ValueError, match=message):
        StableAdamW([nn.Parameter(parameter)], lr=0.1)


@pytest.mark.distributed
def test_shares_of_a_tensor_are_refused():
    assert run_ranks(refuse_a_share, 1) == ["StableAdamW got a parameter of shape (4,) of which each rank has a share"]


def refuse_a_share() -> str:
    share = distribute_tensor(torch.ones(4), init_device_mesh("cpu", (1,)), [Shard(0)])
    try:
        StableAdamW([nn.Parameter(share)], lr=0.1)
    except ValueError as error:
        return str(error).split(", and it measures")[0]
    return "taken"


def test_sparse_gradients_are_refused():
    table = nn.Embedding(5, 2, sparse=True)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match=r"dense gradients only; one of shape \(5, 2\) has layout torch.sparse_coo"):
        StableAdamW(table.parameters(), lr=0.1).step()
