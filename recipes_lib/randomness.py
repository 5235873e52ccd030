# SPDX-License-Identifier: Apache-2.0
"""Random numbers that depend only on their purpose, not on earlier draws.

A random number for a sample derives from ``(seed, epoch, index in the data set)`` and the name of its purpose; one for
a step derives from ``(seed, step)`` and the name of its purpose. So a resumed run, two processes instead of one, or a
loader with eight workers get the same numbers. The generator is SplitMix64, used as a hash function: it is vectorised
over samples and gives the same numbers on CPU and GPU.

Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014 (mixing constants).
"""

import math
import random
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)  # the paper's unsigned constants as int64
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)
_ALL = (1 << 64) - 1


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """A logical right shift: int64's own shift would copy the sign bit.  int64 [...] -> int64 [...]"""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser; int64 products wrap around, as the algorithm requires.  int64 [...] -> int64 [...]"""
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


def _mix_number(x: int) -> int:
    """:func:`_mix` of one Python number: torch's operations on a single number take a hundred times as long."""
    x &= _ALL
    x = (x ^ (x >> 30)) * _MIX_1 & _ALL
    x = (x ^ (x >> 27)) * _MIX_2 & _ALL
    return _int64(x ^ (x >> 31))


def _int64(x: int) -> int:
    """The lowest 64 bits of ``x`` as a signed (int64) number."""
    return ((x + (1 << 63)) & _ALL) - (1 << 63)


def _absorb(state: Tensor, value: Tensor | int) -> Tensor:
    if isinstance(value, int):
        return _mix(state + _int64(_GOLDEN + _mix_number(value + _GOLDEN)))
    return _mix(state + _GOLDEN + _mix(value + _GOLDEN))


def _absorb_numbers(*values: int) -> int:
    """:func:`_absorb` of each of ``values`` in turn, from the state 0, for Python numbers."""
    state = 0
    for value in values:
        state = _mix_number(state + _GOLDEN + _mix_number(value + _GOLDEN))
    return state


def sample_keys(seed: int, epoch: int, indices: Tensor) -> Tensor:
    """One key per sample, from which all random numbers of the sample derive.

    Shapes: ``indices`` int64 [batch] (positions in the data set) -> int64 [batch].
    """
    return _mix(_int64(_absorb_numbers(seed, epoch) + _GOLDEN) + _mix(indices + _GOLDEN))


def step_key(seed: int, step: int, purpose: str) -> int:
    """A non-negative 63-bit seed for random numbers that a whole step shares (a mask, a dropout pattern)."""
    return _absorb_numbers(seed, step, zlib.crc32(purpose.encode())) & ((1 << 63) - 1)


def seed_torch(key: int, device: torch.device) -> None:
    """Seeds torch's global generators of the CPU and of ``device``.

    ``torch.manual_seed`` would also seed devices of all other kinds, and record its call stack for those that are not
    in use. This takes longer than a step of a small network.
    """
    torch.default_generator.manual_seed(key)
    if device.type == "cuda":
        torch.cuda.manual_seed(key)


@contextmanager
def seeded_libraries(key: int) -> Iterator[None]:
    """Inside the context, Python's and numpy's global generators start from ``key``; afterwards they are as before.

    It is for functions of other libraries that draw from them. Threads that draw at the same time disturb each other.
    """
    before, numpy_before = random.getstate(), np.random.get_state()  # noqa: NPY002 - what others draw from
    random.seed(key)
    np.random.seed(key & 0xFFFFFFFF)  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(before)
        np.random.set_state(numpy_before)  # noqa: NPY002


def generator(seed: int, step: int, purpose: str) -> torch.Generator:
    """A CPU generator for one purpose of one step (or epoch), the same wherever it is made."""
    return torch.Generator().manual_seed(step_key(seed, step, purpose))


def uniform(keys: Tensor, purpose: str, count: int) -> Tensor:
    """Draws uniform numbers in [0, 1), one row per key.

    Shapes: ``keys`` int64 [batch] -> float32 [batch, count].
    """
    state = _absorb(keys, zlib.crc32(purpose.encode()))
    counters = torch.arange(count, device=keys.device)
    bits = _mix(state[:, None] + _GOLDEN * (counters + 1))  # [batch, count]
    return _shift_right(bits, 40).to(torch.float32) * 2.0**-24  # 24 bits, the precision of float32


def normal(keys: Tensor, purpose: str, count: int) -> Tensor:
    """Draws standard normal numbers by the Box-Muller transform, one row per key.

    Shapes: ``keys`` int64 [batch] -> float32 [batch, count].
    """
    pairs = (count + 1) // 2
    u = uniform(keys, purpose, 2 * pairs)  # [batch, 2 * pairs]
    radius = torch.sqrt(-2 * torch.log1p(-u[:, :pairs]))  # log(1 - u), because u may be 0 but never 1
    angle = 2 * math.pi * u[:, pairs:]  # [batch, pairs]
    return torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)], dim=1)[:, :count]


def permutation(seed: int, epoch: int, size: int) -> Tensor:
    """The order in which an epoch visits the data set, from ``(seed, epoch)`` only: int64 [size]."""
    return torch.randperm(size, generator=generator(seed, epoch, "order"))
