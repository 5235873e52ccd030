# SPDX-License-Identifier: Apache-2.0
"""Quantises matrices to 8-bit integers with a scale per row, a scale per column, or one scale for the whole matrix.

x is stored as q = round(127 x / s), halves to the even neighbour, where s is the largest |x| of its row, column or
matrix; q stands for the number q s / 127. Scales are float32: scales in half precision would add an error of their own.

No integer stands for a number that is not finite. Its row, column or matrix gets the scale NaN, so that all results
computed from it are NaN and the fault shows.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

LARGEST = 127
"""The largest integer in use; -128 is not used, so that the grid is symmetric."""
BLOCK = 1 << 17
"""Elements that are processed at once on a CPU: 131,072 x 4 bytes = 512 KiB stay in its cache between passes."""


class Quantized(NamedTuple):
    """A quantised matrix: integers and their scales."""

    values: Tensor
    """int8 [n, k], in [-127, 127]; any integers where the scale is NaN."""
    scale: Tensor
    """The number that 127 stands for: [n, 1] by row, [1, k] by column, [1, 1] for all; NaN if a value is not finite."""

    @property
    def T(self) -> "Quantized":
        """The transpose: row scales become column scales; no memory is copied."""
        return Quantized(self.values.T, self.scale.T)


def rows(x: Tensor, *, name: str | None = "x") -> Quantized:
    """Quantises each row by its own largest magnitude; a row of zeros has scale 1, a row that is not finite scale NaN.

    Shapes: float [n, k] -> values int8 [n, k], scale float32 [n, 1] (float64 for a float64 ``x``).
    Raises: ``FloatingPointError`` with the matrix's ``name`` if a value is not finite. It never raises without a
    ``name``, on a GPU (a check would wait for the device), or while ``torch.compile`` or a tracer records (no values).
    Source: Wortsman et al., arXiv 2304.13013.
    """
    return _quantise(x, 1, name)


def columns(x: Tensor, *, name: str | None = "x") -> Quantized:
    """Quantises each column by its own largest magnitude, otherwise like :func:`rows`; the scale is [1, k]."""
    return _quantise(x, 0, name)


def tensor(x: Tensor, *, name: str | None = "x") -> Quantized:
    """Quantises the whole matrix by its largest magnitude, otherwise like :func:`rows`; the scale is [1, 1]."""
    return _quantise(x, None, name)


def dequantize(quantized: Quantized, dtype: torch.dtype) -> Tensor:
    """The numbers q s / 127 that the integers stand for.  int8 [n, k] -> [n, k] of ``dtype``"""
    scale = quantized.scale
    return (quantized.values.to(scale.dtype) * (scale / LARGEST)).to(dtype)


def in_memory(x: Tensor) -> bool:
    """Whether the values of ``x`` are in the CPU's memory, so that they can be checked and processed block by block.

    They are not on a GPU or the meta device, in a fake tensor, or while a compiler or a tracer records operations.
    """
    recorded = torch.compiler.is_compiling() or torch.jit.is_tracing()
    return not recorded and x.device.type == "cpu" and type(x) in (Tensor, nn.Parameter)


def _quantise(x: Tensor, dim: int | None, name: str | None) -> Quantized:
    wide = torch.promote_types(x.dtype, torch.float32)
    if x.numel() == 0:
        kept = [1 if dim in (None, axis) else size for axis, size in enumerate(x.shape)]
        return Quantized(torch.empty(x.shape, dtype=torch.int8, device=x.device), x.new_ones(kept, dtype=wide))
    if in_memory(x):
        return _in_blocks(x, dim, wide, name)
    # one kernel per operation, or one that torch.compile fuses
    scale = _divisor(x.abs().amax(dim=(0, 1) if dim is None else dim, keepdim=True).to(wide))
    return Quantized(_of_any_size(x.to(wide), scale).to(torch.int8), scale)


def _in_blocks(x: Tensor, dim: int | None, wide: torch.dtype, name: str | None) -> Quantized:
    """Quantises blocks of rows that fit a CPU's cache: three times faster than whole passes over a large matrix."""
    values = torch.empty(x.shape, dtype=torch.int8)
    height = max(1, BLOCK // x.shape[1])
    buffer = torch.empty(min(height, len(x)), x.shape[1], dtype=wide)
    tops, parts = [], []
    for i in range(0, len(x), height):
        part, out = x[i : i + height], values[i : i + height]
        held = buffer[: len(part)]
        tops.append(torch.abs(part.to(wide), out=held).amax(dim=0 if dim is None else dim, keepdim=True))
        parts.append((part, held, out))
        if dim == 1:  # a row's scale is known at once: its integers are computed while it is in the cache
            tops[-1] = _codes(part, tops[-1], held, out, x, name)
    if dim == 1:
        return Quantized(values, torch.cat(tops))
    top = torch.cat(tops).amax(dim=(0, 1) if dim is None else dim, keepdim=True)
    for part, held, out in parts:
        scale = _codes(part, top, held, out, x, name)
    return Quantized(values, scale)


def _codes(part: Tensor, top: Tensor, buffer: Tensor, out: Tensor, x: Tensor, name: str | None) -> Tensor:
    """Writes the integers of ``part``, a block of ``x``, into ``out`` and returns the scales made of ``top``.

    ``top`` holds the largest magnitudes. The order of operations is round((127 x) / s): for some x = s / 2,
    x / (s / 127) gives 63.49... instead of 63.5, which rounds to 64.
    """
    smallest, largest = (each.item() for each in torch.aminmax(top))
    if not math.isfinite(largest) and name is not None:
        bad = x.numel() - int(x.isfinite().sum())
        raise FloatingPointError(
            f"{name} has {bad} values that are not finite; as 8-bit integers they would go unseen."
        )
    # called only if needed: on a block's few scales its operations cost as much as one on all the block's numbers
    scale = top if smallest > 0 and largest < math.inf else _divisor(top)
    wide = part.to(buffer.dtype)
    if largest <= _limit(buffer.dtype):
        out.copy_(torch.mul(wide, LARGEST, out=buffer).div_(scale).round_())
    else:
        out.copy_(_of_any_size(wide, scale))
    return scale


def _of_any_size(x: Tensor, scale: Tensor) -> Tensor:
    """The integers round((127 x) / s), or round(127 (x / s)) where 127 x could overflow."""
    large = scale > _limit(x.dtype)
    first, last = torch.where(large, 1.0, float(LARGEST)), torch.where(large, float(LARGEST), 1.0)
    return (x * first / scale * last).round()


def _limit(dtype: torch.dtype) -> float:
    """The largest scale s of ``dtype`` for which 127 s is finite."""
    return torch.finfo(dtype).max / LARGEST


def _divisor(top: Tensor) -> Tensor:
    """The scale for a largest magnitude: that magnitude, 1 instead of 0, NaN if it is not finite."""
    return torch.where(top.isfinite(), torch.where(top == 0, 1.0, top), torch.nan)
