# SPDX-License-Identifier: Apache-2.0
"""Helpers of the low-bit layers' autograd functions: autocast on any device, and a rule for ``torch.func.vmap``."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


def autocast_dtype(device: str) -> torch.dtype | None:
    """The dtype of autocast on ``device``, or None if autocast is off or the device has none (the meta device)."""
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)


def no_autocast(device: str) -> AbstractContextManager:
    """A context in which autocast is off on ``device``."""
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


def one_by_one(
    function: Callable[..., tuple[Tensor, ...]], count: int, in_dims: Sequence[Any], inputs: Sequence[Any]
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """A rule for ``torch.func.vmap``: calls ``function`` for each of ``count`` samples and stacks the results.

    The samples are multiplied one after the other, because an integer product takes two matrices. Each sample has its
    own scales.
    """

    def sample(i: int) -> tuple[Tensor, ...]:
        pairs = zip(inputs, in_dims, strict=True)
        return function(*(each.select(dim, i) if isinstance(dim, int) else each for each, dim in pairs))

    samples = [sample(i) for i in range(count)]
    stacked = tuple(torch.stack(parts) for parts in zip(*samples, strict=True))
    return stacked, (0,) * len(stacked)
