# SPDX-License-Identifier: Apache-2.0
"""How values become bytes, as in the authors' program: most corruptions cut the fraction off."""

import torch
from torch import Tensor

# In units of 1/255: a whole number that was missed by a rounding error stays the number.
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}


def to_bytes(images: Tensor) -> Tensor:
    """float32 or float64 values are clipped to [0, 1] and cut off to whole 255ths.  -> uint8, in the same shape"""
    return (images.clamp(0, 1) * 255 + _TOLERANCE[images.dtype]).to(torch.uint8)


def rounded_down(images: Tensor) -> Tensor:
    """The values of :func:`to_bytes`, as floats in [0, 1]."""
    return to_bytes(images).to(images.dtype) / 255


def rounded(images: Tensor) -> Tensor:
    """float32 or float64 values in [0, 1], clipped and rounded to the nearest whole 255th."""
    return (images.clamp(0, 1) * 255 + 0.5 + _TOLERANCE[images.dtype]).floor() / 255
