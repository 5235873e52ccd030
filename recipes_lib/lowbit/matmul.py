# SPDX-License-Identifier: Apache-2.0
"""Products of 8-bit integer matrices, exact or scaled back to floats; the back end that multiplies is chosen by name.

All back ends add up exactly, in 32 bits, so they differ only in speed. A back end that does not on this CPU is refused.
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
same pass (CUDA). bitsandbytes: its int8 product, if installed. reference: float64, on any device, slow."""
HEIGHT = 512
"""Rows of a product that are computed at once on a CPU: few enough that the sums are still in the cache when they are
scaled, and so many that the other factor, whose layout is changed for every block, costs little."""

_EXACT: dict[str, bool] = {}
"""The results of :func:`is_exact` on the CPU, per back end."""


def default_backend(device: torch.device) -> Backend:
    """The fastest back end that gives exact sums on ``device``, without an optional package."""
    if device.type == "cuda":
        return "int_mm"
    return "int_mm" if is_exact("int_mm", device.type) else "reference"


def check_backend(backend: str, device: torch.device) -> None:
    """Raises ``ValueError`` if ``backend`` is unknown, or does not run or gives wrong sums on ``device``."""
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
    """The float product of two quantised matrices plus ``bias``: (s_left s_right / 127^2) (exact integer sums) + bias.

    A float ``left`` is quantised by rows, block by block; ``name`` is its name in errors. Without a name a row that is
    not finite raises no error and becomes a row of NaN.

    Shapes: ``left`` [n, k], ``right`` [k, m], ``bias`` [m] -> [n, m] of ``dtype``.
    Raises: ``FloatingPointError`` under the conditions of ``quantize.rows``; ``ValueError`` if inner sizes differ.
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
    """:func:`product` block by block: a block of rows is quantised, multiplied and scaled while it is in the cache."""
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
    """The sums [n, m] times the row scales [n, 1] and column scales [1, m] (each may be [1, 1]), plus the bias [m]."""
    out = sums.to(left.dtype) if out is None else out.copy_(sums)
    if right.numel() == 1:
        both = left * right / LARGEST**2
        out.mul_(torch.where(both.isinf(), left * (right / LARGEST**2), both))
    else:
        out.mul_(left / LARGEST).mul_(right / LARGEST)
    return out if bias is None else out.add_(bias)


def integers(a: Tensor, b: Tensor, backend: Backend, out: Tensor | None = None) -> Tensor:
    """The exact product of two int8 matrices.  int8 [n, k], int8 [k, m] -> int32 [n, m]

    ``out``: memory that a back end may use for the result.

    Raises: ``ValueError`` for other back ends, such as ``triton``, which has a ``product`` of its own.
    """
    match backend:
        case "int_mm":
            return _int_mm(_plain(a), _plain(b), out)
        case "bitsandbytes":  # on CPUs it calls torch's product, so it needs the same care
            return _bitsandbytes().int8_linear_matmul(_plain(a.contiguous()), _plain(b.T.contiguous().T).T)
        case "reference":
            return (a.double() @ b.double()).to(torch.int32)  # exact: sums below 2^53
    raise ValueError(f"backend = {backend!r} has no product of bare integers; use int_mm, bitsandbytes or reference.")


def _plain(x: Tensor) -> Tensor:
    """``x`` with the strides of a newly made matrix of its shape; it copies only if it must.

    A dimension of size 1 may have any stride, and torch's product mistakes some of them for another layout: it then
    does not write the result, or adds up wrong numbers. The same happens with strides of 0 (expanded tensors).
    """
    return x.reshape(-1).view(x.shape) if 1 in x.shape or 0 in x.stride() else x


def _int_mm(a: Tensor, b: Tensor, out: Tensor | None) -> Tensor:
    if a.device.type != "cuda":
        return torch._int_mm(a, b) if out is None else torch._int_mm(a, b, out=out)
    (n, k), m = a.shape, b.shape[1]
    rows, inner, across = max(0, 17 - n), -k % 8, -m % 8  # rows and columns of zeros that CUDA's product needs
    if not (rows or inner or across):
        return torch._int_mm(a, b)
    _warn_of_padding(k, m)
    return padded_int_mm(a, b, (rows, inner, across))


def padded_int_mm(a: Tensor, b: Tensor, more: tuple[int, int, int]) -> Tensor:
    """The exact product of ``a`` and ``b``, padded with zeros by ``more`` = (rows, inner size, columns); slower.

    Shapes: int8 [n, k], int8 [k, m] -> int32 [n, m].
    """
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
    """Whether ``backend`` adds up exactly on ``device``; on a CPU, products of several sizes and layouts are tried.

    On x86 without VNNI torch's product saturates pairs of products at 16 bits. Without AVX-512 the product of
    bitsandbytes adds up in float32, which represents integers exactly only up to 2^24.
    """
    if device != "cpu" or backend not in ("int_mm", "bitsandbytes"):
        return True
    if backend not in _EXACT:  # a dictionary rather than a cached function: torch.compile traces through a cache
        with _disable_current_modes():  # the check needs real numbers, even while a model is built of fake tensors
            _EXACT[backend] = all(
                map(functools.partial(_adds_up, backend), itertools.product((1, 3, 64), (1, 2, 2049), (1, 3, 64)))
            )
    return _EXACT[backend]


def _adds_up(backend: Backend, sizes: tuple[int, int, int]) -> bool:
    """Whether the product [n, k] x [k, m] of extreme numbers is right, for every combination of memory layouts.

    Each row of the left matrix is all 127 or all -127, so the sums are as large as possible, and some of them are odd.
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
