# SPDX-License-Identifier: Apache-2.0
"""The precision that losses are computed in: at least float32, because exponentials underflow in half precision."""

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """Converts ``x`` to float32 if it has less precision; float32 and float64 stay.  [...] -> [...]"""
    return x.to(torch.promote_types(x.dtype, torch.float32))
