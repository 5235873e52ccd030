# SPDX-License-Identifier: Apache-2.0
"""Numbers as 8-bit integers and their scales: by row, by column, or one scale for a whole matrix.

x is held as q = round(127 x / s), halves to the even neighbour, with s the largest |x| of its row, column or matrix;
it comes back as q s / 127. Scales are float32: those in half precision would add an error of their own.

A number that is not finite has no integer. Its row, column or matrix gets the scale NaN, so that all that comes of it is NaN
and nothing is hidden.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

LARGEST = 127
"""The largest integer in use; -128 is left out, so that the grid is symmetric."""
BLOCK = 1 << 17
"""Elements worked on at once on a CPU: 512 KiB of float32 stay in its cache from one pass to the next."""


class Quantized(NamedTuple):
    """A matrix of integers with what they are multiplied by."""

    values: Tensor
    """int8 [n, k], in [-127, 127]; any integers where the scale is NaN."""
    scale: Tensor
    """What 127 stands for: [n, 1] by row, [1, k] by column, [1, 1] for the whole. NaN where a number is not finite."""

    @property
    def T(self) -> "Quantized":
        """The transpose: rows' scales become columns' scales; nothing is copied."""
        return Quantized(self.values.T, self.scale.T)


def rows(x: Tensor, *, name: str | None = "x") -> Quantized:
    """Quantises each row by its own largest magnitude; a row of zeros has scale 1, one that is not finite NaN.

    Shapes: float [n, k] -> values int8 [n, k], scale float32 [n, 1] (float64 for a float64 ``x``).
    Raises: ``FloatingPointError`` that names the matrix where a value is not finite; never without a ``name``, nor on
    a GPU, where looking would hold up the queue, nor under ``torch.compile`` and the like, where there is nothing to see.
    Source: Wortsman et al., arXiv 2304.13013.
    """
    return _quantise(x, 1, name)


def columns(x: Tensor, *, name: str | None = "x") -> Quantized:
    """Quantises each column by its own largest magnitude, else as ``rows``: scale [1, k]."""
    return _quantise(x, 0, name)


def tensor(x: Tensor, *, name: str | None = "x") -> Quantized:
    """Quantises all of a matrix by its one largest magnitude, else as ``rows``: scale [1, 1]."""
    return _quantise(x, None, name)


def dequantize(quantized: Quantized, dtype: torch.dtype) -> Tensor:
    """The numbers that the integers stand for: q s / 127. [n, k]"""
    scale = quantized.scale
    return (quantized.values.to(scale.dtype) * (scale / LARGEST)).to(dtype)


def in_memory(x: Tensor) -> bool:
    """Whether the numbers of ``x`` lie in this machine's memory, to be looked at and worked on block by block.

    They do not on a GPU or the meta device, in a fake tensor, nor while a compiler or a tracer records what is done.
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
    # kernels that follow each other, or one fused by torch
    scale = _divisor(x.abs().amax(dim=(0, 1) if dim is None else dim, keepdim=True).to(wide))
    return Quantized(_of_any_size(x.to(wide), scale).to(torch.int8), scale)


def _in_blocks(x: Tensor, dim: int | None, wide: torch.dtype, name: str | None) -> Quantized:
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
            tops[-1] = _codes(part, tops[-1], held, out, x, name)
    if dim == 1:
        return Quantized(values, torch.cat(tops))
    top = torch.cat(tops).amax(dim=(0, 1) if dim is None else dim, keepdim=True)
    for part, held, out in parts:
        scale = _codes(part, top, held, out, x, name)
    return Quantized(values, scale)


def _codes(part: Tensor, top: Tensor, buffer: Tensor, out: Tensor, x: Tensor, name: str | None) -> Tensor:
    """Writes the integers of ``part``, a block of ``x``, into ``out`` and returns the scale that ``top`` makes.

    round(127 x / s) in this order: x / (s / 127) is 63.49... for some x = s / 2, where 63.5 goes to 64.
    """
    smallest, largest = (each.item() for each in torch.aminmax(top))
    if not math.isfinite(largest) and name is not None:
        bad = x.numel() - int(x.isfinite().sum())
        raise FloatingPointError(
            f"{name} has {bad} values that are not finite; as 8-bit integers they would go unseen."
        )
    # only where it must: on a block's few scales these operations cost as much as one on all its numbers
    scale = top if smallest > 0 and largest < math.inf else _divisor(top)
    wide = part.to(buffer.dtype)
    if largest <= _limit(buffer.dtype):
        out.copy_(torch.mul(wide, LARGEST, out=buffer).div_(scale).round_())
    else:
        out.copy_(_of_any_size(wide, scale))
    return scale


def _of_any_size(x: Tensor, scale: Tensor) -> Tensor:
    """round(127 x / s), and round(127 (x / s)) where 127 x could be infinite."""
    large = scale > _limit(x.dtype)
    first, last = torch.where(large, 1.0, float(LARGEST)), torch.where(large, float(LARGEST), 1.0)
    return (x * first / scale * last).round()


def _limit(dtype: torch.dtype) -> float:
    """The largest s for which 127 s is finite."""
    return torch.finfo(dtype).max / LARGEST


def _divisor(top: Tensor) -> Tensor:
    """The scale that a largest magnitude makes: 1 for 0, NaN for what is not finite."""
    return torch.where(top.isfinite(), torch.where(top == 0, 1.0, top), torch.nan)
