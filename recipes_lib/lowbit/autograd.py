# SPDX-License-Identifier: Apache-2.0
"""What the low-bit layers ask of torch around their products: autocast on any device, and ``torch.func.vmap``."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


def autocast_dtype(device: str) -> torch.dtype | None:
    """The dtype that autocast asks for on ``device`` now; none where it is off or, as on the meta device, unknown."""
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)


def no_autocast(device: str) -> AbstractContextManager:
    """Switches autocast off on ``device``."""
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


def one_by_one(
    function: Callable[..., tuple[Tensor, ...]], count: int, in_dims: Sequence[Any], inputs: Sequence[Any]
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """A rule for ``torch.func.vmap``: calls ``function`` for each of ``count`` samples and stacks what they return.

    The samples are multiplied one after the other, for an integer product takes two matrices; each has its own scales.
    """

    def sample(i: int) -> tuple[Tensor, ...]:
        pairs = zip(inputs, in_dims, strict=True)
        return function(*(each.select(dim, i) if isinstance(dim, int) else each for each, dim in pairs))

    samples = [sample(i) for i in range(count)]
    stacked = tuple(torch.stack(parts) for parts in zip(*samples, strict=True))
    return stacked, (0,) * len(stacked)
