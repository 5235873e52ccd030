# SPDX-License-Identifier: Apache-2.0
"""A run that cannot fit into memory is refused before anything of it is allocated, with what it would need.

The counts are lower bounds, so that no run is refused that would fit: what is drawn and kept, one copy of the views, the
weights, and the gradients of those that are trained. ``recipes plan`` counts the rest.
"""

import math
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from recipes_lib.errors import ConfigError

_FLOAT = 4  # bytes


def refuse_too_large(config: Any, build: Callable[[], nn.Module], *, world_size: int, device: torch.device) -> None:
    """Raises ``ConfigError`` with a line for each part of the run that memory cannot hold.

    ``build`` makes the method; here it is called without storage for its weights. ``train.memory_limit`` (GB) takes the
    place of what the machine has.
    """
    data, train = config.data, config.train
    micro_batch = math.ceil(train.batch_size / train.accumulate / world_size)
    images = data.train_size + data.test_size if data.name in ("digits", "pantry") else 0
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
    """Values of all views of one image: one for the target or the only one, then the anchor's."""
    return 3 * ((1 + views.global_views) * views.image_size**2 + views.local_views * views.local_size**2)


def _weights(build: Callable[[], nn.Module]) -> float:
    """Numbers in the method's weights and gradients; infinite where a layer has more than 64 bits can count."""
    try:
        with torch.device("meta"):
            return sum(weight.numel() * (1 + weight.requires_grad) for weight in build().parameters())
    except (RuntimeError, OverflowError) as error:
        if "overflow" not in str(error).lower() and "too large" not in str(error).lower():
            raise
        return math.inf


def _memory(device: torch.device) -> float:
    """Bytes that the device has in all."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
