# SPDX-License-Identifier: Apache-2.0
"""CUDA kernels in Triton: one quantises rows to 8-bit integers, one multiplies integers and scales the sums.

The first does in one pass what takes torch four (magnitude, maximum, division, conversion), the second what takes torch
three (product, scales, bias), so no int32 matrix is written. Import this module on demand: Triton is not a dependency.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from recipes_lib.lowbit.quantize import LARGEST, Quantized


def rows(x: Tensor) -> Quantized:
    """``quantize.rows`` in one kernel launch; it never raises: a row that is not finite gets scale NaN.

    Shapes: [n, k] -> values int8 [n, k], scale float32 [n, 1].
    """
    x = x.contiguous()
    n, k = x.shape
    values = torch.empty(n, k, dtype=torch.int8, device=x.device)
    scale = torch.empty(n, 1, dtype=torch.float32, device=x.device)
    limit = torch.finfo(torch.float32).max / LARGEST
    _rows_kernel[(n,)](x, values, scale, k, WIDTH=min(2048, triton.next_power_of_2(k)), LIMIT=limit)
    return Quantized(values, scale)


def product(left: Quantized, right: Quantized, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """``matmul.product`` of two quantised matrices of any size and strides.  [n, k], [k, m] -> [n, m] of ``dtype``"""
    (n, k), m = left.values.shape, right.values.shape[1]
    out = torch.empty(n, m, dtype=dtype, device=left.values.device)
    tall, wide, deep = 128, 128, 64
    grid = (triton.cdiv(n, tall) * triton.cdiv(m, wide),)
    left_scale = left.scale.reshape(-1).contiguous()
    right_scale = right.scale.reshape(-1).contiguous()
    _product_kernel[grid](
        left.values,
        right.values,
        out,
        left_scale,
        right_scale,
        out if bias is None else bias,
        n,
        m,
        k,
        *left.values.stride(),
        *right.values.stride(),
        1.0 / LARGEST**2,
        BY_COLUMN=right_scale.numel() > 1,
        BY_ROW=left_scale.numel() > 1,
        HAS_BIAS=bias is not None,
        TALL=tall,
        WIDE=wide,
        DEEP=deep,
        GROUP=8,
        num_warps=8,
        num_stages=3,
    )
    return out


@triton.jit
def _rows_kernel(x, values, scale, k, WIDTH: tl.constexpr, LIMIT: tl.constexpr):
    """One program per row: it finds the largest magnitude, then computes the integers while the row is in the cache."""
    row = tl.program_id(0).to(tl.int64)
    top = tl.zeros((WIDTH,), dtype=tl.float32)
    bad = tl.zeros((WIDTH,), dtype=tl.int32)
    for start in range(0, k, WIDTH):
        at = start + tl.arange(0, WIDTH)
        part = tl.abs(tl.load(x + row * k + at, mask=at < k, other=0.0).to(tl.float32))
        bad = bad | (part < float("inf")).to(tl.int32) ^ 1  # a comparison with NaN is false
        top = tl.maximum(top, part)
    largest = tl.max(top, axis=0)
    largest = tl.where(largest == 0.0, 1.0, largest)
    tl.store(scale + row, tl.where(tl.max(bad, axis=0) > 0, float("nan"), largest))
    first = tl.where(largest > LIMIT, 1.0, 127.0)  # above LIMIT, 127 x would be infinite
    last = tl.where(largest > LIMIT, 127.0, 1.0)
    for start in range(0, k, WIDTH):
        at = start + tl.arange(0, WIDTH)
        part = tl.load(x + row * k + at, mask=at < k, other=0.0).to(tl.float32)
        # 12582912 = 1.5 * 2^23: float32 has steps of 1 there, so the sum is rounded to an integer, halves to even
        codes = (tl.div_rn(part * first, largest) * last + 12582912.0) - 12582912.0
        tl.store(values + row * k + at, codes.to(tl.int8), mask=at < k)


@triton.jit
def _product_kernel(
    a,
    b,
    out,
    left_scale,
    right_scale,
    bias,
    n,
    m,
    k,
    a_row,
    a_column,
    b_row,
    b_column,
    unit,
    BY_COLUMN: tl.constexpr,
    BY_ROW: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    TALL: tl.constexpr,
    WIDE: tl.constexpr,
    DEEP: tl.constexpr,
    GROUP: tl.constexpr,
):
    """One program per tile of TALL x WIDE outputs.

    GROUP tiles of one column of tiles run one after the other, so that their part of b stays in the cache.
    """
    program = tl.program_id(0)
    tiles_down, tiles_across = tl.cdiv(n, TALL), tl.cdiv(m, WIDE)
    band = program // (GROUP * tiles_across)
    height = min(tiles_down - band * GROUP, GROUP)
    inside = program % (GROUP * tiles_across)
    down = (band * GROUP + inside % height) * TALL + tl.arange(0, TALL)
    across = (inside // height) * WIDE + tl.arange(0, WIDE)
    deep = tl.arange(0, DEEP)
    rows_at = down.to(tl.int64)[:, None]
    columns_at = across.to(tl.int64)[None, :]
    sums = tl.zeros((TALL, WIDE), dtype=tl.int32)
    for start in range(0, k, DEEP):
        inner = (start + deep).to(tl.int64)
        left = tl.load(
            a + rows_at * a_row + inner[None, :] * a_column,
            mask=(down[:, None] < n) & (inner[None, :] < k),
            other=0,
        )
        right = tl.load(
            b + inner[:, None] * b_row + columns_at * b_column,
            mask=(inner[:, None] < k) & (across[None, :] < m),
            other=0,
        )
        sums = tl.dot(left, right, sums, out_dtype=tl.int32)
    if BY_ROW:  # noqa: SIM108 - settled when the kernel is compiled
        by_row = tl.load(left_scale + down, mask=down < n, other=0.0)[:, None]
    else:
        by_row = tl.load(left_scale)
    if BY_COLUMN:
        by_column = tl.load(right_scale + across, mask=across < m, other=0.0)[None, :]
    else:
        by_column = tl.load(right_scale)
    y = sums.to(tl.float32) * (by_row * by_column * unit)
    if HAS_BIAS:
        y += tl.load(bias + across, mask=across < m, other=0.0).to(tl.float32)[None, :]
    tl.store(
        out + rows_at * m + columns_at, y.to(out.dtype.element_ty), mask=(down[:, None] < n) & (across[None, :] < m)
    )
