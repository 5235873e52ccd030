# SPDX-License-Identifier: Apache-2.0
"""Products of matrices of 8-bit integers, and what they stand for; the back end that multiplies is chosen by name.

All back ends add up exactly, in 32 bits, so they differ in speed only; one that does not on this CPU is refused.
"""

import functools
import itertools
import warnings
from types import ModuleType
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from recipes_lib.lowbit import quantize
from recipes_lib.lowbit.quantize import LARGEST, Quantized

Backend = Literal["int_mm", "bitsandbytes", "triton", "reference"]
"""int_mm: torch's own int8 product (CPUs with VNNI or AMX, CUDA). triton: our kernels, which quantise and scale in the
same pass (CUDA). bitsandbytes: its int8 product, where installed. reference: float64, anywhere and slowly."""
HEIGHT = 512
"""Rows of a product worked on at once on a CPU: few enough that the sums are scaled while they are in the cache, and
enough that the other factor, which is laid out anew for every block, is no burden."""

_EXACT: dict[str, bool] = {}


def default_backend(device: torch.device) -> Backend:
    """The fastest back end that is right on ``device``."""
    if device.type == "cuda":
        return "int_mm"
    return "int_mm" if is_exact("int_mm", device.type) else "reference"


def check_backend(backend: str, device: torch.device) -> None:
    """Raises ``ValueError`` where ``backend`` is none, or gives wrong sums on ``device``."""
    if backend not in get_args(Backend):
        raise ValueError(f"backend = {backend!r}; there are {', '.join(get_args(Backend))}.")
    if backend == "triton" and device.type != "cuda":
        raise ValueError(f"backend = 'triton' runs on CUDA, not on {device.type}; use {default_backend(device)!r}.")
    if not is_exact(backend, device.type):
        raise ValueError(
            f"backend = {backend!r} gives wrong sums on this {device.type}, which lacks the instructions for it (VNNI); "
            f"use {default_backend(device)!r}."
        )


def product(
    left: Tensor | Quantized,
    right: Quantized,
    *,
    dtype: torch.dtype,
    backend: Backend,
    bias: Tensor | None = None,
    name: str | None,
) -> Tensor:
    """What Q(left) Q(right) stands for, plus ``bias``: (s_left s_right / 127^2) (integers, added up exactly) + bias.

    A float ``left`` is quantised by rows, block by block; ``name`` is its name in errors. Without a name a row that is not
    finite is no error but a row of NaN.

    Shapes: ``left`` [n, k], ``right`` [k, m], ``bias`` [m] -> [n, m] of ``dtype``.
    Raises: ``FloatingPointError`` as ``quantize.rows``; ``ValueError`` for inner sizes that differ.
    """
    (n, k), (inner, m) = (left.values if isinstance(left, Quantized) else left).shape, right.values.shape
    if k != inner:
        raise ValueError(f"a product of [{n}, {k}] with [{inner}, {m}]: the inner sizes differ.")
    if n == 0:
        return right.scale.new_empty(n, m, dtype=dtype)
    if backend == "triton":
        from recipes_lib.lowbit import triton_kernels

        left = left if isinstance(left, Quantized) else triton_kernels.rows(left)
        return triton_kernels.product(left, right, bias, dtype)
    if not quantize.in_memory(right.values):
        left = left if isinstance(left, Quantized) else quantize.rows(left, name=name)
        return _scaled(integers(left.values, right.values, backend), left.scale, right.scale, bias).to(dtype)
    return _in_blocks(left, right, dtype, backend, bias, name)


def _in_blocks(
    left: Tensor | Quantized,
    right: Quantized,
    dtype: torch.dtype,
    backend: Backend,
    bias: Tensor | None,
    name: str | None,
) -> Tensor:
    """The same, with each block of rows quantised, multiplied and scaled before the next, while it is in the cache."""
    count, across = len(left.values if isinstance(left, Quantized) else left), right.values.shape[1]
    wide = right.scale.dtype
    out = right.scale.new_empty(count, across, dtype=dtype)
    # buffers for all blocks: fresh memory costs the kernels more time than their arithmetic
    height = min(HEIGHT, count)
    buffer = torch.empty(height, across, dtype=torch.int32)
    held = None if dtype == wide else torch.empty(height, across, dtype=wide)
    for i in range(0, count, HEIGHT):
        block = slice(i, i + HEIGHT)
        if isinstance(left, Quantized):
            part = Quantized(left.values[block], left.scale[block])
        else:
            part = quantize.rows(left[block], name=name)
        sums = integers(part.values, right.values, backend, buffer[: len(part.values)])
        if held is None:
            _scaled(sums, part.scale, right.scale, bias, out[block])
        else:
            out[block] = _scaled(sums, part.scale, right.scale, bias, held[: len(sums)])
    return out


def _scaled(sums: Tensor, left: Tensor, right: Tensor, bias: Tensor | None, out: Tensor | None = None) -> Tensor:
    """int32 [n, m] times the scales of rows [n, 1] and of columns [1, m], or of all [1, 1], plus the bias [m]."""
    out = sums.to(left.dtype) if out is None else out.copy_(sums)
    if right.numel() == 1:
        both = left * right / LARGEST**2
        out.mul_(torch.where(both.isinf(), left * (right / LARGEST**2), both))
    else:
        out.mul_(left / LARGEST).mul_(right / LARGEST)
    return out if bias is None else out.add_(bias)


def integers(a: Tensor, b: Tensor, backend: Backend, out: Tensor | None = None) -> Tensor:
    """The exact product of int8 [n, k] and int8 [k, m]: int32 [n, m]; ``triton`` has a ``product`` of its own.

    ``out`` is memory that a back end may use for the result.
    """
    match backend:
        case "int_mm":
            return _int_mm(_plain(a), _plain(b), out)
        case "bitsandbytes":  # on CPUs it calls torch's product, so it needs the same care
            return _bitsandbytes().int8_linear_matmul(_plain(a.contiguous()), _plain(b.T.contiguous().T).T)
        case "reference":
            return (a.double() @ b.double()).to(torch.int32)  # exact: sums below 2^53
    raise ValueError(f"backend = {backend!r} multiplies no bare integers; use int_mm, bitsandbytes or reference.")


def _plain(x: Tensor) -> Tensor:
    """``x`` with the strides of a matrix that was made in its shape.

    A dimension of one place may have any stride, and torch's product takes some of them for another layout: it then
    leaves the result as it found the memory, or adds up other numbers. So with strides of 0 (expanded tensors).
    """
    return x.reshape(-1).view(x.shape) if 1 in x.shape or 0 in x.stride() else x


def _int_mm(a: Tensor, b: Tensor, out: Tensor | None) -> Tensor:
    if a.device.type != "cuda":
        return torch._int_mm(a, b) if out is None else torch._int_mm(a, b, out=out)
    (n, k), m = a.shape, b.shape[1]
    rows, inner, across = max(0, 17 - n), -k % 8, -m % 8
    if not (rows or inner or across):
        return torch._int_mm(a, b)
    _warn_of_padding(k, m)
    return padded_int_mm(a, b, (rows, inner, across))


def padded_int_mm(a: Tensor, b: Tensor, more: tuple[int, int, int]) -> Tensor:
    """The product by way of larger matrices, with ``more`` rows, inner places and columns of zeros: as exact, slower."""
    rows, inner, across = more
    a = torch.nn.functional.pad(a, (0, inner, 0, rows))
    b = torch.nn.functional.pad(b, (0, across, 0, inner))
    return torch._int_mm(a, b)[: len(a) - rows, : b.shape[1] - across]


@functools.cache
def _warn_of_padding(inner: int, across: int) -> None:
    warnings.warn(
        f"CUDA's int8 product takes more than 16 rows and sizes that are multiples of 8; [n, {inner}] x [{inner}, "
        f"{across}] is padded with zeros, exactly but with copies.",
        stacklevel=2,
    )


def is_exact(backend: Backend, device: str) -> bool:
    """Whether a product that is not ours adds up right there: every size of one place or more, in every layout.

    On x86 without VNNI torch's product saturates pairs of products at 16 bits; without AVX-512 that of bitsandbytes adds
    up in float32, which holds integers up to 2^24.
    """
    if device != "cpu" or backend not in ("int_mm", "bitsandbytes"):
        return True
    if backend not in _EXACT:  # a dictionary rather than a cached function: torch.compile traces through a cache
        with _disable_current_modes():  # the check needs real numbers, also where a model is built of fake tensors
            _EXACT[backend] = all(
                map(functools.partial(_adds_up, backend), itertools.product((1, 3, 64), (1, 2, 2049), (1, 3, 64)))
            )
    return _EXACT[backend]


def _adds_up(backend: Backend, sizes: tuple[int, int, int]) -> bool:
    """Whether [n, k] times [k, m] is right at the extremes, whichever of both is laid out as a transpose.

    Each row of the left is all 127 or all -127, so that sums are as large as they get, and odd ones as well.
    """
    n, k, m = sizes
    sign = 1 - 2 * (torch.arange(n, device="cpu") % 2)
    a = (LARGEST * sign[:, None]).expand(n, k).to(torch.int8)
    b = (LARGEST - torch.arange(m, device="cpu") % 2).expand(k, m).to(torch.int8)
    want = a.double() @ b.double()
    lefts, rights = (a.contiguous(), a.T.contiguous().T, a), (b.contiguous(), b.T.contiguous().T, b)
    return all(torch.equal(integers(*pair, backend).double(), want) for pair in itertools.product(lefts, rights))


@functools.cache
def _bitsandbytes() -> ModuleType:
    try:
        from bitsandbytes import functional
    except ImportError:
        raise ValueError("backend = 'bitsandbytes' needs that package: pip install bitsandbytes.") from None
    return functional
