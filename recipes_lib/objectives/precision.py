# SPDX-License-Identifier: Apache-2.0
"""The precision that losses are computed in: exponentials and logarithms of half precision underflow."""

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """``x`` in float32 where it has less precision; float64 stays. [...] -> [...]"""
    return x.to(torch.promote_types(x.dtype, torch.float32))
