# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch
from torch import nn

from recipes_lib.lowbit import Fp8Linear, convert
from recipes_lib.lowbit.fp8 import quantized, round_to

TYPES = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}
FACTS = {"e4m3": (253, 2**-9, 448), "e5m2": (247, 2**-16, 57344)}


def grid(fmt):
    """All finite numbers of a format, in order, read off its 256 codes by torch."""
    values = torch.arange(256, dtype=torch.uint8).view(TYPES[fmt]).double()
    return values[values.isfinite()].unique()


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("fmt", TYPES)
def test_the_grid_is_the_formats(fmt):
    values = grid(fmt)
    count, smallest, largest = FACTS[fmt]
    assert len(values) == count
    assert values[values > 0].min() == smallest
    assert values.max() == largest
    assert torch.equal(round_to(values, fmt), values)


@pytest.mark.parametrize("fmt", TYPES)
def test_rounding_is_torchs_cast_within_the_range(fmt):
    largest = FACTS[fmt][2]
    x = torch.cat([draw(20000) * 10.0**power for power in range(-7, 5)]).clamp(-largest, largest)
    halves = (grid(fmt)[1:] + grid(fmt)[:-1]).float() / 2
    for each in (x, halves):
        assert torch.equal(round_to(each, fmt), each.to(TYPES[fmt]).float())
    for dtype in (torch.bfloat16, torch.float16):
        assert torch.equal(round_to(halves.to(dtype), fmt), halves.to(dtype).to(TYPES[fmt]).to(dtype))


@pytest.mark.parametrize(
    ("fmt", "x", "want"),
    [
        ("e4m3", 0.3, 0.3125),
        ("e4m3", 1.1, 1.125),
        ("e4m3", 17, 16),
        ("e4m3", 1e-4, 0),
        ("e4m3", 465, 448),
        ("e4m3", math.inf, 448),
        ("e5m2", 1.1, 1.0),
        ("e5m2", 300, 320),
        ("e5m2", 61439, 57344),
        ("e5m2", 61440, 57344),
        ("e5m2", -math.inf, -57344),
    ],
)
def test_golden_numbers(fmt, x, want):
    for dtype in (torch.float32, torch.float64):
        assert round_to(torch.tensor(float(x), dtype=dtype), fmt).item() == want


def test_float64_is_rounded_once():
    """1.0625 + 2^-40 is above the half of 1 and 1.125; by way of float32 it would be the half, and go down to 1."""
    assert round_to(torch.tensor(1.0625 + 2**-40, dtype=torch.float64), "e4m3") == 1.125


def test_nan_stays():
    assert round_to(torch.tensor(math.nan), "e4m3").isnan()


def test_unknown_formats_and_scalings_are_refused():
    with pytest.raises(ValueError, match="'e3m4'; there are e4m3, e5m2"):
        round_to(torch.ones(1), "e3m4")
    with pytest.raises(ValueError, match="'column'; there are tensor and row"):
        Fp8Linear(2, 2, scaling="column")


@pytest.mark.parametrize(("scaling", "dim"), [("tensor", (0, 1)), ("row", 1)])
def test_the_largest_magnitude_keeps_its_place(scaling, dim):
    x = draw(5, 40) * torch.tensor([1e-6, 1, 1e3, 7, 0])[:, None]
    got = quantized(x, "e4m3", scaling=scaling)
    torch.testing.assert_close(got.abs().amax(dim), x.abs().amax(dim))
    assert got[4].abs().sum() == 0
    if scaling == "row":
        assert ((got - x).abs() <= x.abs() / 16 + x.abs().amax(1, keepdim=True) * 2**-10 / 448 + 1e-12).all()


@pytest.mark.parametrize("fmt", TYPES)
@pytest.mark.parametrize("scaling", ["tensor", "row"])
def test_the_smallest_numbers_stay_finite_and_zeros_zero(fmt, scaling):
    """A scale of 448 / 1e-37 is infinite in float32: zeros became NaN and the rest 0."""
    for top in (1e-33, 1e-34, 1e-35, 1e-36, 1e-37):
        x = torch.tensor([[top, top / 2, 0]])
        got = quantized(x, fmt, scaling=scaling)
        assert got[0, 2] == 0
        torch.testing.assert_close(got, x, rtol=2**-2 if fmt == "e5m2" else 2**-3, atol=0)
    for top in (1e-40, 1e-45):
        assert quantized(torch.tensor([[top, 0.0]]), fmt, scaling=scaling).isfinite().all()


def test_a_network_whose_gradients_vanish_trains_on_in_fp8():
    torch.manual_seed(0)  # nn.Linear draws from the global generator
    net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))
    convert(net, "fp8_switchback", skip=())
    x, y = draw(64, 64), torch.arange(64) % 10
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-2)
    for _ in range(40):
        loss = nn.functional.cross_entropy(net(x), y)
        optimizer.zero_grad()
        loss.backward()
        assert all(parameter.grad.isfinite().all() for parameter in net.parameters())
        optimizer.step()
    assert loss < 1e-3


@pytest.mark.parametrize("scaling", ["tensor", "row"])
def test_the_layer_multiplies_what_lies_on_the_grids(scaling):
    layer = Fp8Linear(24, 16, scaling=scaling)
    x, grad = draw(30, 24).requires_grad_(), draw(30, 16, seed=1)
    y = layer(x)
    dx, dw, db = torch.autograd.grad(y, (x, layer.weight, layer.bias), grad)
    flat = x.detach()
    cx, cg = quantized(flat, "e4m3", scaling=scaling), quantized(grad, "e5m2", scaling=scaling)
    cw = quantized(layer.weight.detach(), "e4m3", scaling="tensor")
    torch.testing.assert_close(y, cx @ cw.T + layer.bias)
    torch.testing.assert_close(dx, cg @ cw)
    torch.testing.assert_close(dw, cg.T @ cx if scaling == "tensor" else grad.T @ flat)
    torch.testing.assert_close(db, grad.sum(0))
    assert (y - nn.functional.linear(x, layer.weight, layer.bias)).norm() > 1e-3


def test_autocast_and_leading_dimensions():
    layer = Fp8Linear(8, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(draw(2, 3, 8))
    assert y.dtype == torch.bfloat16
    assert list(y.shape) == [2, 3, 4]
    y.float().sum().backward()
    assert layer.weight.grad.dtype == torch.float32
    assert list(layer(torch.zeros(0, 8)).shape) == [0, 4]


def test_bad_input_is_refused_in_words():
    with pytest.raises(TypeError, match="the input is int64; it takes floats"):
        Fp8Linear(8, 4)(torch.ones(1, 8, dtype=torch.long))
    with pytest.raises(ValueError, match=r"shape \[1, 7\]; in_features is 8"):
        Fp8Linear(8, 4)(torch.ones(1, 7))


def e4m3_codes(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix in the GPU's own fp8 numbers, and its scale."""
    scale = matrix.abs().amax().float() / torch.finfo(torch.float8_e4m3fn).max
    return (matrix / scale).to(torch.float8_e4m3fn), scale


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 9), reason="needs a GPU with fp8"
)
def test_the_simulation_is_what_the_gpu_computes():
    x, weight = draw(32, 48).cuda(), draw(16, 48, seed=1).cuda()  # a GPU's units take multiples of 16
    simulated = quantized(x, "e4m3", scaling="tensor") @ quantized(weight, "e4m3", scaling="tensor").T
    (left, left_scale), (right, right_scale) = map(e4m3_codes, (x, weight))
    y = torch._scaled_mm(left, right.T, scale_a=left_scale, scale_b=right_scale, out_dtype=torch.bfloat16)
    torch.testing.assert_close(y.float(), simulated, rtol=2e-2, atol=2e-2)
