# SPDX-License-Identifier: Apache-2.0
"""Numbers as 8-bit integers and their scales: by row, by column, or one scale for a whole matrix.

x is held as q = round(127 x / s), halves to the even neighbour, with s the largest |x| of its row, column or matrix;
it comes back as q s / 127. Scales are float32: those in half precision would add an error of their own.
"""

from typing import NamedTuple

import torch
from torch import Tensor

LARGEST = 127
"""The largest integer in use; -128 is left out, so that the grid is symmetric."""
BLOCK = 1 << 17
"""Elements worked on at once on a CPU: 512 KiB of float32 stay in its cache from one pass to the next."""


class Quantized(NamedTuple):
    """A matrix of integers with what they are multiplied by."""

    values: Tensor
    """int8 [n, k], in [-127, 127]."""
    scale: Tensor
    """What 127 stands for: [n, 1] by row, [1, k] by column, [1, 1] for the whole."""

    @property
    def T(self) -> "Quantized":
        """The transpose: rows' scales become columns' scales; nothing is copied."""
        return Quantized(self.values.T, self.scale.T)


def rows(x: Tensor, *, name: str = "x") -> Quantized:
    """Quantises each row by its own largest magnitude; a row of zeros has scale 1.

    Shapes: float [n, k] -> values int8 [n, k], scale float32 [n, 1] (float64 for a float64 ``x``).
    Raises: ``FloatingPointError`` that names the matrix where a value is not finite. On a GPU, where looking would hold
    up the queue, and under ``torch.compile`` it does not look: such a row's scale is not finite, nor what comes of it.
    Source: Wortsman et al., arXiv 2304.13013.
    """
    return _quantise(x, 1, name)


def columns(x: Tensor, *, name: str = "x") -> Quantized:
    """Quantises each column by its own largest magnitude, else as ``rows``: scale [1, k]."""
    return _quantise(x, 0, name)


def tensor(x: Tensor, *, name: str = "x") -> Quantized:
    """Quantises all of a matrix by its one largest magnitude, else as ``rows``: scale [1, 1]."""
    return _quantise(x, None, name)


def dequantize(quantized: Quantized, dtype: torch.dtype) -> Tensor:
    """The numbers that the integers stand for: q s / 127. [n, k]"""
    scale = quantized.scale
    return (quantized.values.to(scale.dtype) * (scale / LARGEST)).to(dtype)


def _quantise(x: Tensor, dim: int | None, name: str) -> Quantized:
    wide = torch.promote_types(x.dtype, torch.float32)
    if x.numel() == 0:
        kept = [1 if dim in (None, axis) else size for axis, size in enumerate(x.shape)]
        return Quantized(torch.empty(x.shape, dtype=torch.int8, device=x.device), x.new_ones(kept, dtype=wide))
    if x.device.type != "cpu" or torch.compiler.is_compiling():  # kernels that follow each other, or one fused by torch
        scale = x.abs().amax(dim=(0, 1) if dim is None else dim, keepdim=True).to(wide)
        return Quantized(_codes(x.to(wide), _divisor(scale)), _divisor(scale))
    return _in_blocks(x, dim, wide, name)


def _in_blocks(x: Tensor, dim: int | None, wide: torch.dtype, name: str) -> Quantized:
    """The same in blocks of rows that fit a CPU's cache: three times faster than whole passes over a large matrix."""
    values = torch.empty(x.shape, dtype=torch.int8)
    height = max(1, BLOCK // x.shape[1])
    buffer = torch.empty(min(height, len(x)), x.shape[1], dtype=wide)
    tops, parts = [], []
    for i in range(0, len(x), height):
        part, out = x[i : i + height], values[i : i + height]
        held = buffer[: len(part)]
        tops.append(torch.abs(part.to(wide), out=held).amax(dim=0 if dim is None else dim, keepdim=True))
        parts.append((part, held, out))
        if dim == 1:  # a row's scale is known at once: its integers come while it is in the cache
            tops[-1] = _finite(tops[-1], x, name)
            _codes(part, tops[-1], held, out)
    if dim == 1:
        return Quantized(values, torch.cat(tops))
    scale = _finite(torch.cat(tops).amax(dim=(0, 1) if dim is None else dim, keepdim=True), x, name)
    for part, held, out in parts:
        _codes(part, scale, held, out)
    return Quantized(values, scale)


def _codes(x: Tensor, scale: Tensor, buffer: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """round(127 x / s) in this order: x / (s / 127) is 63.49... for some x = s / 2, where 63.5 goes to 64."""
    if buffer is None or out is None:
        return (x * LARGEST / scale).round().to(torch.int8)
    return out.copy_(torch.mul(x.to(buffer.dtype), LARGEST, out=buffer).div_(scale).round_())


def _divisor(scale: Tensor) -> Tensor:
    return torch.where(scale == 0, 1.0, scale)


def _finite(scale: Tensor, x: Tensor, name: str) -> Tensor:
    """``scale`` with 1 for 0, once it is known to be finite, as it is where all of ``x`` is."""
    if not scale.isfinite().all():
        bad = x.numel() - int(x.isfinite().sum())
        raise FloatingPointError(
            f"{name} has {bad} values that are not finite; as 8-bit integers they would go unseen."
        )
    return _divisor(scale)
