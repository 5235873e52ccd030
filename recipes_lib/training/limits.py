# SPDX-License-Identifier: Apache-2.0
"""Refuses a run that cannot fit into memory, before anything is allocated.

The counts are lower bounds, so no run is refused that would fit. They include the images that are drawn, one copy of
the views, the weights, and the gradients of the trained weights. ``recipes plan`` counts the rest.
"""

import math
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from recipes_lib.config import DRAWN
from recipes_lib.errors import ConfigError

_FLOAT = 4  # bytes of a float32


def refuse_too_large(config: Any, build: Callable[[], nn.Module], *, world_size: int, device: torch.device) -> None:
    """Raises ``ConfigError`` with one line per part of the run that does not fit into memory.

    ``build`` makes the method; it is called on the meta device, so its weights need no memory. ``train.memory_limit``
    (GB), if given, is used instead of the machine's memory.
    """
    data, train = config.data, config.train
    micro_batch = math.ceil(train.batch_size / train.accumulate / world_size)
    images = data.train_size + data.test_size if data.name in DRAWN else 0
    parts = (
        ("the images to draw", ("data.train_size", "data.test_size", "data.image_size"),
         3 * images * data.image_size**2, torch.device("cpu")),
        ("the views of one step", ("train.batch_size", "views.image_size", "views.global_views", "views.local_views"),
         _FLOAT * micro_batch * _values(config.views), device),
        ("the weights and their gradients", ("the fields of model",),
         _FLOAT * _weights(build) / (world_size if config.sync.name == "fsdp" else 1), device),
    )  # fmt: skip
    lines = []
    for what, fields, needed, place in parts:
        available = train.memory_limit * 1e9 if train.memory_limit else _memory(place)
        if needed > available:
            size = f"at least {needed / 1e9:,.0f} GB" if math.isfinite(needed) else "more memory than can be counted"
            lift = f", or lift the limit: --train.memory-limit {math.ceil(needed / 1e9)}" if needed < 1e15 else ""
            lines.append(
                f"This run needs {size} for {what}; {available / 1e9:,.0f} GB are allowed. "
                f"Make {', '.join(fields[:-1])}{' or ' * (len(fields) > 1)}{fields[-1]} smaller{lift}."
            )
    if lines:
        raise ConfigError("\n".join(lines))


def _values(views: Any) -> int:
    """The number of values in all views of one image: the target's (or only) view, and the anchor's views."""
    return 3 * ((1 + views.global_views) * views.image_size**2 + views.local_views * views.local_size**2)


def _weights(build: Callable[[], nn.Module]) -> float:
    """The number of values in the method's weights and gradients; infinite if a layer's size overflows 64 bits."""
    try:
        with torch.device("meta"):
            return sum(weight.numel() * (1 + weight.requires_grad) for weight in build().parameters())
    except (RuntimeError, OverflowError) as error:
        if "overflow" not in str(error).lower() and "too large" not in str(error).lower():
            raise
        return math.inf


def _memory(device: torch.device) -> float:
    """The total memory of the device, in bytes."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
