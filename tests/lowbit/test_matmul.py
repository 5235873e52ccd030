# SPDX-License-Identifier: Apache-2.0
import itertools
import os
import subprocess
import sys
import warnings

import pytest
import torch

from recipes_lib.lowbit import matmul, quantize
from recipes_lib.lowbit.matmul import default_backend, integers, padded_int_mm, product

CPU = torch.device("cpu")


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def test_golden_integer_products():
    x = quantize.rows(torch.tensor([[0.5, -1, 0.25], [2, 0.1, -0.3]])).values
    w = quantize.tensor(torch.tensor([[0.2, -0.4, 0.1], [0.05, 0.3, -0.25]])).values
    g = quantize.rows(torch.tensor([[1, -0.5], [0.03, 0.7]])).values
    for backend in ("reference", default_backend(CPU)):
        assert integers(x, w.T, backend).tolist() == [[21249, -13569], [6758, 4103]]
        assert integers(g, w, backend).tolist() == [[7104, -22209, 9120], [2352, 11430, -9873]]


@pytest.mark.parametrize(("n", "k", "m"), [(1, 1, 1), (3, 7, 5), (17, 64, 40), (33, 2048, 9)])
def test_back_ends_agree_exactly_at_the_extremes(n, k, m):
    g = torch.Generator().manual_seed(0)
    a, b = (torch.randint(0, 2, size, generator=g) * 254 - 127 for size in ((n, k), (k, m)))
    a, b = a.to(torch.int8), b.to(torch.int8)
    want = (a.long() @ b.long()).to(torch.int32)
    assert torch.equal(integers(a, b, "reference"), want)
    if matmul.is_exact("int_mm", "cpu"):
        assert torch.equal(integers(a, b, "int_mm"), want)
        assert torch.equal(padded_int_mm(a, b, (17, -k % 8, -m % 8)), want)


def layouts(n, k, g):
    """The same numbers laid out by rows, by columns, expanded, and with any strides where a dimension has one place."""
    x = torch.randint(-127, 128, (n, k), generator=g).to(torch.int8)
    yield from (x, x.T.contiguous().T, x[:1].expand(n, k), x[:, :1].expand(n, k))
    for strides in itertools.product((1, 2, 7), repeat=2):
        if (n == 1 or strides[0] == 1 + 6 * (k > 1)) and (k == 1 or strides[1] == 1):
            yield torch.randint(-127, 128, (7 * n * k + 7,), generator=g).to(torch.int8).as_strided((n, k), strides)


@pytest.mark.parametrize("backend", ["int_mm", "bitsandbytes"])
def test_the_product_is_right_for_every_layout_of_small_matrices(backend):
    """torch's product left the result unwritten for some strides of dimensions of one place, and for strides of 0."""
    if backend == "bitsandbytes":
        pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    if not matmul.is_exact(backend, "cpu"):
        pytest.skip(f"{backend} gives wrong sums on this CPU, and is refused")
    g = torch.Generator().manual_seed(0)
    for n, k, m in itertools.product((0, 1, 2, 7), (1, 2, 7), (0, 1, 2, 7)):
        for a, b in itertools.product(layouts(n, k, g), layouts(k, m, g)):
            for out in (None, torch.full((n, m), 12345, dtype=torch.int32)):
                got = integers(a, b, backend, out)
                assert torch.equal(got.long(), a.long() @ b.long()), (a.shape, a.stride(), b.shape, b.stride())


def test_the_check_of_a_back_end_tries_dimensions_of_one_place(monkeypatch):
    monkeypatch.setattr(matmul, "_EXACT", {})
    right = torch._int_mm
    monkeypatch.setattr(torch, "_int_mm", lambda a, b: right(a, b) if a.shape[1] > 1 else right(a, b) + 1)
    assert not matmul.is_exact("int_mm", "cpu")


def test_scales_whose_product_overflows_give_the_finite_result():
    """3e36 times 1e3 is no float32; what the integers make of it here is 1e35 times 1e3."""
    left, right = quantize.rows(torch.tensor([[3e36, 1e35]])), quantize.tensor(torch.tensor([[0.0, 1], [1e3, 1]]))
    y = product(left, right, dtype=torch.float32, backend="reference", name="x")
    torch.testing.assert_close(y, torch.tensor([[1e38, 0]]), rtol=0.1, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("way", ["columns", "tensor"])
@pytest.mark.parametrize("already", [False, True])
def test_blocks_give_the_product_of_what_the_integers_stand_for(way, dtype, already, monkeypatch):
    monkeypatch.setattr(matmul, "HEIGHT", 16)
    x, w, bias = draw(50, 40, dtype=dtype), draw(40, 24, seed=1, dtype=dtype), draw(24, seed=2, dtype=dtype)
    left, right = quantize.rows(x), getattr(quantize, way)(w)
    want = quantize.dequantize(left, torch.float64) @ quantize.dequantize(right, torch.float64) + bias.double()
    for backend in ("reference", default_backend(CPU)):
        got = product(left if already else x, right, dtype=dtype, backend=backend, bias=bias, name="x")
        assert got.dtype == dtype
        torch.testing.assert_close(got, want.to(dtype), rtol=1e-5 if dtype == torch.float32 else 8e-3, atol=1e-5)


def test_transposed_scales_go_with_the_transposed_integers():
    w = quantize.rows(draw(6, 4)).T
    assert list(w.scale.shape) == [1, 6]
    torch.testing.assert_close(quantize.dequantize(w, torch.float32), draw(6, 4).T, rtol=0, atol=0.02)


def test_inner_sizes_that_differ_are_refused():
    with pytest.raises(ValueError, match=r"\[2, 3\] with \[4, 5\]: the inner sizes differ"):
        product(draw(2, 3), quantize.tensor(draw(4, 5)), dtype=torch.float32, backend="reference", name="x")


def test_unknown_and_unfit_back_ends_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="'int4'; there are int_mm, bitsandbytes, triton, reference"):
        matmul.check_backend("int4", CPU)
    with pytest.raises(ValueError, match="'triton' runs on CUDA, not on cpu"):
        matmul.check_backend("triton", CPU)
    monkeypatch.setattr(matmul, "_EXACT", {"int_mm": False, "bitsandbytes": False})
    assert default_backend(CPU) == "reference"
    for backend in ("int_mm", "bitsandbytes"):
        with pytest.raises(ValueError, match=f"'{backend}' gives wrong sums on this cpu.*use 'reference'"):
            matmul.check_backend(backend, CPU)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="oneDNN's switch is tried on Linux")
def test_a_cpu_without_vnni_is_found_out():
    """oneDNN made to forget VNNI: its product saturates, or (on other builds) is right; never wrong and trusted."""
    program = (
        "import torch; from recipes_lib.lowbit.matmul import is_exact;"
        "a = torch.full((64, 256), 127, dtype=torch.int8); b = torch.full((256, 64), -127, dtype=torch.int8);"
        "right = bool((torch._int_mm(a, b) == -127 * 127 * 256).all()); assert is_exact('int_mm', 'cpu') == right"
    )
    subprocess.run([sys.executable, "-c", program], env=os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"}, check=True)


def test_padding_is_told_once():
    matmul._warn_of_padding.cache_clear()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for _ in range(3):
            matmul._warn_of_padding(7, 9)
    assert len(seen) == 1
    assert "[n, 7] x [7, 9] is padded with zeros" in str(seen[0].message)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("backend", ["int_mm", "triton"])
@pytest.mark.parametrize(("n", "k", "m"), [(3, 7, 5), (300, 256, 512)])
def test_gpu_back_ends_agree_with_the_reference(backend, n, k, m):
    x, w, bias = (each.cuda() for each in (draw(n, k), draw(k, m, seed=1), draw(m, seed=2)))
    for right in (quantize.tensor(w), quantize.columns(w)):
        want, got = (
            product(x, right, dtype=torch.float32, backend=b, bias=bias, name="x") for b in ("reference", backend)
        )
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
