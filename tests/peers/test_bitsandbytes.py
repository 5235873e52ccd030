# SPDX-License-Identifier: Apache-2.0
"""Parity with bitsandbytes 0.50's int8 operations, which are what is left of its SwitchBack layers (removed in 0.50).

The sums are equal, being integers. Its quantisation multiplies by 127 / s where ours divides 127 x by s, so that a number
within a last bit of half a step may go to the other integer. Its scaled result is ours to 2e-5 of the largest: in its plain
code, which a CPU runs, 1 / 127^2 = 6.200012e-05 stands as 6.200124e-05. On a CPU it calls torch's product for the sums.
"""

import pytest
import torch

from recipes_lib.lowbit import SwitchBackLinear, quantize
from recipes_lib.lowbit.matmul import default_backend, integers, is_exact, product

functional = pytest.importorskip("bitsandbytes.functional", reason="bitsandbytes is not installed")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIZES = [(32, 64, 96), (512, 192, 48), (7, 320, 40)]


def draw(tokens, inside, outside):
    g = torch.Generator().manual_seed(tokens)
    x, w = (torch.randn(*size, generator=g).to(DEVICE) for size in ((tokens, inside), (outside, inside)))
    return x, w, torch.randn(outside, generator=g).to(DEVICE)


@pytest.mark.parametrize("sizes", SIZES)
def test_our_sums_are_those_of_bitsandbytes(sizes):
    x, w, _ = draw(*sizes)
    left, right = quantize.rows(x), quantize.tensor(w)
    theirs = functional.int8_linear_matmul(left.values, right.values)
    for backend in ("reference", default_backend(x.device)):
        assert torch.equal(integers(left.values, right.values.T, backend), theirs)


@pytest.mark.parametrize("sizes", SIZES)
def test_our_integers_are_those_of_bitsandbytes_but_at_half_a_step(sizes):
    x, _, _ = draw(*sizes)
    mine = quantize.rows(x.half())
    values, scale, _ = functional.int8_vectorwise_quant(x.half())
    assert torch.equal(mine.scale[:, 0], scale)
    apart = (mine.values.int() - values.int()).abs()
    assert apart.max() <= 1
    assert (apart > 0).float().mean() < 2e-3
    exact = x.half().double() / scale.double()[:, None] * 127
    assert ((exact - exact.floor())[apart > 0] - 0.5).abs().lt(0.05).all()


@pytest.mark.parametrize("sizes", SIZES)
def test_our_scaled_product_is_that_of_bitsandbytes(sizes):
    x, w, bias = draw(*sizes)
    left, right = quantize.rows(x), quantize.rows(w)
    arguments = (left.values, right.values, left.scale[:, 0], right.scale[:, 0])
    theirs = torch.ops.bitsandbytes.int8_scaled_mm(*arguments, bias=bias, dtype=torch.float32)
    mine = product(left, right.T, dtype=torch.float32, backend=default_backend(x.device), bias=bias, name="x")
    torch.testing.assert_close(mine, theirs, rtol=0, atol=2e-5 * theirs.abs().max().item())
    sums = functional.int8_linear_matmul(*arguments[:2])
    half = functional.int8_mm_dequant(sums, *arguments[2:], bias=bias.half())
    torch.testing.assert_close(mine.half(), half, rtol=2**-9, atol=2**-9)


@pytest.mark.parametrize("sizes", SIZES)
def test_the_layer_gives_the_same_with_bitsandbytes_product_as_with_its_own(sizes):
    x, w, bias = draw(*sizes)
    results = []
    for backend in (None, "bitsandbytes"):
        layer = SwitchBackLinear(sizes[1], sizes[2], device=DEVICE, backend=backend)
        layer.load_state_dict({"weight": w, "bias": bias})
        leaf = x.clone().requires_grad_()
        y = layer(leaf)
        results.append((y, *torch.autograd.grad(y.square().sum(), (leaf, layer.weight, layer.bias))))
    assert is_exact("bitsandbytes", DEVICE)
    for mine, theirs in zip(*results, strict=True):
        assert torch.equal(mine, theirs)
