# SPDX-License-Identifier: Apache-2.0
import copy
import math
import pickle

import pytest
import torch
from torch import nn

from recipes_lib.lowbit import Int8Linear, SwitchBackLinear, SwitchBackMLinear, SwitchBackQLinear

KINDS = [SwitchBackLinear, SwitchBackMLinear, SwitchBackQLinear, Int8Linear]
X = [[0.5, -1, 0.25], [2, 0.1, -0.3]]
W = [[0.2, -0.4, 0.1], [0.05, 0.3, -0.25]]
G = [[1, -0.5], [0.03, 0.7]]
Y = [[0.6269762540, -0.5365118730], [0.4351974704, 0.0035092070]]
DX = [[0.1761795524, -0.5507843016, 0.2261764524], [0.0408308017, 0.1984251969, -0.1713956228]]
DW = [[0.56, -0.997, 0.241], [1.15, 0.57, -0.335]]


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pair(kind, inside=24, outside=16, **options):
    """A layer of ``kind`` and an ``nn.Linear`` with the same weights."""
    plain = nn.Linear(inside, outside)
    layer = kind(inside, outside, **options)
    layer.load_state_dict(plain.state_dict())
    return layer, plain


def gradients(layer, x, grad):
    x = x.clone().requires_grad_()
    y = layer(x)
    return [y, *torch.autograd.grad(y, (x, layer.weight, layer.bias), grad)]


@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize(
    ("kind", "changed"),
    [
        (SwitchBackLinear, {"y": Y, "dx": DX, "dw": DW}),
        (
            SwitchBackMLinear,
            {
                "y": Y,
                "dx": DX,
                "dw": [[0.5639370079, -0.9971653543, 0.2429921260], [1.1480314961, 0.5661417323, -0.3354330709]],
            },
        ),
        (SwitchBackQLinear, {"y": [[0.6269762540, -0.5380928762], [0.4351974704, 0.0024800050]], "dw": DW}),
        (
            Int8Linear,
            {"dw": [[0.5669291339, -0.9967759936, 0.2409448819], [1.1472378945, 0.5732283465, -0.3355911712]]},
        ),
    ],
)
def test_golden_layer(kind, changed, backend):
    layer = kind(3, 2, backend=backend)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(W))
        layer.bias.copy_(torch.tensor([0.1, -0.2]))
    got = dict(zip(("y", "dx", "dw", "db"), gradients(layer, torch.tensor(X), torch.tensor(G)), strict=True))
    for name, want in {**changed, "db": [1.03, 0.2]}.items():
        torch.testing.assert_close(got[name], torch.tensor(want), rtol=0, atol=2e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [SwitchBackLinear, SwitchBackQLinear])
def test_the_weights_gradient_is_nn_linears_bit_for_bit(kind, dtype):
    layer, plain = (each.to(dtype) for each in pair(kind))
    x, grad = draw(3, 50, 24).to(dtype), draw(3, 50, 16, seed=1).to(dtype)
    mine, theirs = gradients(layer, x, grad), gradients(plain, x, grad)
    assert torch.equal(mine[2], theirs[2])
    assert torch.equal(mine[3], theirs[3])
    for i in (0, 1):
        assert 0 < (mine[i] - theirs[i]).norm() / theirs[i].norm() < 0.02


def test_under_autocast_the_weights_gradient_is_nn_linears_in_bf16():
    layer, plain = pair(SwitchBackLinear)
    x, grad = draw(50, 24), draw(50, 16, seed=1).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mine, theirs = gradients(layer, x, grad), gradients(plain, x, grad)
    assert [each.dtype for each in mine] == [each.dtype for each in theirs]
    assert torch.equal(mine[2], theirs[2])
    torch.testing.assert_close(mine[1], theirs[1], rtol=0.05, atol=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_independent_of_their_order(kind):
    layer, _ = pair(kind)
    x, order = draw(20, 24), torch.randperm(20, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(layer(x)[order], layer(x[order]), rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_times_a_power_of_two_gives_its_output_times_that(kind):
    layer = kind(24, 16, bias=False)
    x = draw(5, 24)
    powers = torch.tensor([1.0, 2.0, 0.25, 64.0, 2**-10])[:, None]
    assert torch.equal(layer(x * powers), layer(x) * powers)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_of_zeros_gives_the_bias_and_no_rows_give_none(kind):
    layer, _ = pair(kind)
    assert torch.equal(layer(torch.zeros(2, 24)), layer.bias.detach().expand(2, 16))
    y, dx, dw, db = gradients(layer, torch.zeros(0, 3, 24), torch.zeros(0, 3, 16))
    assert list(y.shape) == [0, 3, 16]
    assert list(dx.shape) == [0, 3, 24]
    assert dw.shape == layer.weight.shape
    assert dw.abs().sum() == db.abs().sum() == 0


def test_only_the_gradients_that_are_wanted_are_made():
    layer, _ = pair(SwitchBackLinear)
    layer.weight.requires_grad_(False)
    x = draw(4, 24).requires_grad_()
    layer(x).sum().backward()
    assert layer.weight.grad is None
    assert x.grad is not None
    layer, _ = pair(SwitchBackLinear)
    layer(draw(4, 24)).sum().backward()
    assert layer.weight.grad is not None


def test_the_lean_layer_keeps_no_float_input():
    kept = {}
    for kind in (SwitchBackLinear, SwitchBackMLinear):
        sizes = kept[kind] = []
        layer, _ = pair(kind)
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, s=sizes: (s.append((t.dtype, len(t))), t)[1], lambda t: t
        ):
            layer(draw(100, 24))
    assert (torch.float32, 100) in kept[SwitchBackLinear]
    assert (torch.int8, 100) in kept[SwitchBackMLinear]
    lean = [dtype for dtype, count in kept[SwitchBackMLinear] if count == 100]
    assert lean.count(torch.float32) == 1  # its rows' scales


@pytest.mark.parametrize("kind", KINDS)
def test_a_changed_weight_is_quantised_anew(kind):
    layer, _ = pair(kind)
    x = draw(4, 24)
    before = layer(x)
    with torch.no_grad():
        layer.weight.mul_(2)
    torch.testing.assert_close(layer(x) - layer.bias, 2 * (before - layer.bias))
    layer.weight = nn.Parameter(torch.zeros(16, 24))
    assert torch.equal(layer(x), layer.bias.expand(4, 16))
    version = layer.weight._version
    layer.weight.grad = torch.ones(16, 24)
    torch.optim.AdamW([layer.weight], lr=0.1, fused=True).step()
    assert layer.weight._version == version  # why no version is asked whether the integers still fit
    assert not torch.equal(layer(x), layer.bias.expand(4, 16))


@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_edited_before_backward_is_an_error(kind):
    layer, _ = pair(kind)
    y = layer(draw(4, 24))
    with torch.no_grad():
        layer.weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_copies_and_pickles_give_the_same():
    layer, _ = pair(SwitchBackQLinear)
    want = layer(draw(4, 24))
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(draw(4, 24)), want)


def test_another_weight_by_functional_call_is_used():
    layer, _ = pair(SwitchBackLinear)
    layer(draw(4, 24))
    y = torch.func.functional_call(layer, {"weight": torch.zeros(16, 24)}, (draw(4, 24),))
    assert torch.equal(y, layer.bias.expand(4, 16))


def test_it_compiles_into_one_graph():
    layer, _ = pair(SwitchBackLinear)
    torch.compiler.reset()  # a function may be compiled anew eight times only
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    x, grad = draw(2, 10, 24), draw(2, 10, 16, seed=1)
    eager = gradients(layer, x, grad)
    leaf = x.clone().requires_grad_()
    y = compiled(leaf)
    got = [y, *torch.autograd.grad(y, (leaf, layer.weight, layer.bias), grad)]
    for mine, theirs in zip(got, eager, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def test_bad_input_is_refused_in_words():
    layer, _ = pair(SwitchBackLinear)
    with pytest.raises(TypeError, match="the input is int64; it takes float32, bfloat16, float16"):
        layer(torch.ones(2, 24, dtype=torch.long))
    with pytest.raises(TypeError, match="the input is float64"):
        layer(torch.ones(2, 24, dtype=torch.double))
    with pytest.raises(TypeError, match="make them one dtype"):
        layer(torch.ones(2, 24).bfloat16())
    with pytest.raises(ValueError, match=r"shape \[2, 23\]; in_features is 24"):
        layer(torch.ones(2, 23))
    with pytest.raises(FloatingPointError, match=r"the input of SwitchBackLinear\(24, 16\) has 1 values"):
        layer(torch.full((1, 24), 1.0).index_fill(1, torch.tensor([3]), math.nan))
    with pytest.raises(ValueError, match="'int4'; there are"):
        SwitchBackLinear(24, 16, backend="int4")(torch.ones(2, 24))
