# SPDX-License-Identifier: Apache-2.0
"""Random numbers that depend on what they are for, and on nothing that happened before.

A draw about a sample derives from ``(seed, epoch, index in the data set)`` and the name of its purpose; a draw about
a step from ``(seed, step)``. So a resumed run, two processes in place of one, or a loader with eight workers see the
same numbers. The generator is SplitMix64 used as a hash: vectorised over samples, equal on CPU and GPU.

Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014 (mixing constants).
"""

import math
import zlib

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)  # int64 twins of the paper's unsigned constants
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)
_ALL = (1 << 64) - 1


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift: int64's own shift would drag the sign bit along."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser; int64 products wrap, as the algorithm wants. int64 [...] -> int64 [...]"""
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


def _mix_number(x: int) -> int:
    """:func:`_mix` of one number, as an int64: torch's operations on a single one take a hundred times as long."""
    x &= _ALL
    x = (x ^ (x >> 30)) * _MIX_1 & _ALL
    x = (x ^ (x >> 27)) * _MIX_2 & _ALL
    return _int64(x ^ (x >> 31))


def _int64(x: int) -> int:
    """The number that int64 has for the lowest 64 bits of ``x``."""
    return ((x + (1 << 63)) & _ALL) - (1 << 63)


def _absorb(state: Tensor, value: Tensor | int) -> Tensor:
    if isinstance(value, int):
        return _mix(state + _int64(_GOLDEN + _mix_number(value + _GOLDEN)))
    return _mix(state + _GOLDEN + _mix(value + _GOLDEN))


def _absorb_numbers(*values: int) -> int:
    """What :func:`_absorb` makes of 0 and each of ``values`` in turn."""
    state = 0
    for value in values:
        state = _mix_number(state + _GOLDEN + _mix_number(value + _GOLDEN))
    return state


def sample_keys(seed: int, epoch: int, indices: Tensor) -> Tensor:
    """One key per sample, from which all its draws derive.

    Shapes: ``indices`` int64 [batch] (positions in the data set) -> int64 [batch].
    """
    return _mix(_int64(_absorb_numbers(seed, epoch) + _GOLDEN) + _mix(indices + _GOLDEN))


def step_key(seed: int, step: int, purpose: str) -> int:
    """A non-negative 63-bit seed for what a whole step shares (a mask, a dropout pattern)."""
    return _absorb_numbers(seed, step, zlib.crc32(purpose.encode())) & ((1 << 63) - 1)


def seed_torch(key: int, device: torch.device) -> None:
    """Seeds torch's global generators of the CPU and of ``device``, as ``torch.manual_seed`` does.

    That seeds the devices of all kinds, and notes for those that are not in use from where it was called, which takes
    longer than a small network's step.
    """
    torch.default_generator.manual_seed(key)
    if device.type == "cuda":
        torch.cuda.manual_seed(key)


def generator(seed: int, step: int, purpose: str) -> torch.Generator:
    """A CPU generator for one purpose of one step (or epoch): equal wherever it is made."""
    return torch.Generator().manual_seed(step_key(seed, step, purpose))


def uniform(keys: Tensor, purpose: str, count: int) -> Tensor:
    """Uniform draws in [0, 1), a row for each key.

    Shapes: ``keys`` int64 [batch] -> float32 [batch, count].
    """
    state = _absorb(keys, zlib.crc32(purpose.encode()))
    counters = torch.arange(count, device=keys.device)
    bits = _mix(state[:, None] + _GOLDEN * (counters + 1))  # [batch, count]
    return _shift_right(bits, 40).to(torch.float32) * 2.0**-24  # 24 bits: every float32 step of [0, 1)


def normal(keys: Tensor, purpose: str, count: int) -> Tensor:
    """Standard normal draws by Box and Muller's transform, a row for each key.

    Shapes: ``keys`` int64 [batch] -> float32 [batch, count].
    """
    pairs = (count + 1) // 2
    u = uniform(keys, purpose, 2 * pairs)
    radius = torch.sqrt(-2 * torch.log1p(-u[:, :pairs]))  # log1p(-u): u may be 0, never 1
    angle = 2 * math.pi * u[:, pairs:]
    return torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)], dim=1)[:, :count]


def permutation(seed: int, epoch: int, size: int) -> Tensor:
    """The order in which an epoch visits the data set: int64 [size], from ``(seed, epoch)`` alone."""
    return torch.randperm(size, generator=generator(seed, epoch, "order"))
