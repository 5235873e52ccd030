# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recipes_lib.lowbit import quantize

X = [[0.5, -1, 0.25], [2, 0.1, -0.3]]
W = [[0.2, -0.4, 0.1], [0.05, 0.3, -0.25]]
G = [[1, -0.5], [0.03, 0.7]]
FLOATS = (torch.float64, torch.float32)


@pytest.mark.parametrize("dtype", FLOATS)
def test_golden_rows_and_whole_matrix(dtype):
    """Three entries are ties at +-63.5, which go to the even 64."""
    x = quantize.rows(torch.tensor(X, dtype=dtype))
    assert x.values.tolist() == [[64, -127, 32], [127, 6, -19]]
    assert x.scale.tolist() == [[1], [2]]
    w = quantize.tensor(torch.tensor(W, dtype=dtype))
    assert w.values.tolist() == [[64, -127, 32], [16, 95, -79]]
    assert w.scale.item() == pytest.approx(0.4)
    g = quantize.rows(torch.tensor(G, dtype=dtype))
    assert g.values.tolist() == [[127, -64], [5, 127]]
    assert g.scale.flatten().tolist() == pytest.approx([1, 0.7])


@given(st.integers(0, 2**31), st.integers(1, 40), st.integers(1, 40), st.sampled_from(["rows", "columns", "tensor"]))
@settings(max_examples=60, deadline=None)
def test_an_integer_is_never_further_than_half_a_step(seed, n, k, way):
    x = torch.randn(n, k, generator=torch.Generator().manual_seed(seed))
    q = getattr(quantize, way)(x)
    back = quantize.dequantize(q, torch.float32)
    assert ((back - x).abs() <= q.scale / 127 * 0.5 * (1 + 1e-5)).all()
    assert q.values.abs().max() == 127


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("way", ["rows", "columns", "tensor"])
def test_blocks_give_what_one_pass_gives(way, dtype, monkeypatch):
    x = torch.randn(37, 24, generator=torch.Generator().manual_seed(0)).to(dtype)
    x[5] = 0
    monkeypatch.setattr(quantize, "BLOCK", 100)
    q = getattr(quantize, way)(x)
    dim = {"rows": 1, "columns": 0, "tensor": (0, 1)}[way]
    wide = x.to(q.scale.dtype)
    scale = wide.abs().amax(dim=dim, keepdim=True)
    scale[scale == 0] = 1
    torch.testing.assert_close(q.scale, scale, rtol=0, atol=0)
    assert torch.equal(q.values, (127 * wide / scale).round().to(torch.int8))
    assert q.scale.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_a_row_of_zeros_has_scale_one():
    q = quantize.rows(torch.zeros(2, 3))
    assert q.values.tolist() == [[0] * 3] * 2
    assert q.scale.tolist() == [[1], [1]]


@pytest.mark.parametrize(("way", "shape"), [("rows", [0, 1]), ("columns", [1, 5]), ("tensor", [1, 1])])
def test_no_rows_are_no_error(way, shape):
    q = getattr(quantize, way)(torch.zeros(0, 5))
    assert list(q.values.shape) == [0, 5]
    assert list(q.scale.shape) == shape


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("way", ["rows", "columns", "tensor"])
def test_what_is_not_finite_is_refused_by_name(way, bad):
    x = torch.ones(4, 3)
    x[2, 1] = bad
    with pytest.raises(FloatingPointError, match="the input of f has 1 values that are not finite"):
        getattr(quantize, way)(x, name="the input of f")


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_without_a_name_what_is_not_finite_makes_its_scale_nan(bad):
    x = torch.ones(4, 3)
    x[2, 1] = bad
    assert quantize.rows(x, name=None).scale.isnan().flatten().tolist() == [False, False, True, False]
    assert quantize.columns(x, name=None).scale.isnan().flatten().tolist() == [False, True, False]
    assert quantize.tensor(x, name=None).scale.isnan().all()
    assert quantize.dequantize(quantize.rows(x, name=None), torch.float32).isnan()[2].all()


@pytest.mark.parametrize("way", ["rows", "columns", "tensor"])
@pytest.mark.parametrize("whole", [False, True])
def test_the_largest_floats_have_the_integers_of_smaller_ones(way, whole, monkeypatch):
    """127 x is infinite for x above 2.7e36."""
    if whole:  # the passes of a GPU and of compilers
        monkeypatch.setattr(quantize, "in_memory", lambda x: False)
    assert quantize.rows(torch.tensor([[3e36, 1.5e36, 0]])).values.tolist() == [[127, 64, 0]]
    x = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    x = x / x.abs().amax()
    for top in (2.0**121, 2.0**122, 2.0**127):  # powers of two, so that the integers stay
        found, want = (getattr(quantize, way)(each) for each in (x * top, x))
        assert torch.equal(found.values, want.values)
        assert torch.equal(found.scale, want.scale * top)
        assert quantize.dequantize(found, torch.float32).isfinite().all()
    mixed = torch.stack([x[0] * 2.0**127, x[1]])
    assert torch.equal(quantize.rows(mixed).values, quantize.rows(x[:2]).values)


def test_the_variance_of_a_sums_error_grows_with_its_length():
    """Rounding errors are uniform in a step D: D^2/12 each; of sum_k x_k w_k, about d (E w^2 Dx^2 + E x^2 Dw^2) / 12.

    With scales fixed at 1 (a 1 stands in every row and column) and uniform numbers, E x^2 = 1/3 and D = 1/127, so
    the variance is d / (18 * 127^2).
    """
    measured = {}
    for length in (64, 256, 1024, 4096):
        g = torch.Generator().manual_seed(length)
        x, w = (torch.rand(200, length, generator=g, dtype=torch.float64) * 2 - 1 for _ in range(2))
        x[:, 0] = w[:, 0] = 1.0
        coarse = [quantize.dequantize(quantize.rows(each), torch.float64) for each in (x, w)]
        measured[length] = (coarse[0] @ coarse[1].T - x @ w.T).var().item()
        assert measured[length] == pytest.approx(length / (18 * 127**2), rel=0.1)
    assert measured[4096] / measured[64] == pytest.approx(64, rel=0.2)
