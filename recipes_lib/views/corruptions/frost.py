# SPDX-License-Identifier: Apache-2.0
"""Frost on a window pane, drawn by rule in place of the authors' photographs.

Differs: the published images were made with crops of five photographs, which we may not pass on. Ours is a texture with
the mean colour and the spread of a photograph, with feathery crystals and slow changes of brightness. So accuracies
under this corruption cannot be compared with published ones.
"""

import math

import torch
from torch import Tensor

from recipes_lib.randomness import uniform
from recipes_lib.views.corruptions.weather import plasma

# Mean red, green and blue of the authors' first five photographs, and the standard deviation of their brightness; 0 to
# 255. The second and the third photograph are the same.
_PHOTOGRAPHS = (
    ((78, 149, 166), 17),
    ((201, 205, 214), 22),
    ((201, 205, 214), 22),
    ((138, 153, 165), 29),
    ((112, 123, 135), 43),
)
_CELL = 40  # pixels of a photograph per crystal, on each axis
_BARB = 5.0  # pixels of a photograph from one barb of a crystal to the next


def frost(images: Tensor, keys: Tensor, purpose: str, weights: tuple[float, float], scale: float) -> Tensor:
    """The weighted sum of image and frost; ``scale``: by how much smaller than in the photographs the crystals are.

    Shapes: ``images`` float [B, 3, H, W] in [0, 1], ``keys`` int64 [B] -> float [B, 3, H, W], not clipped.
    """
    pane = texture(keys, purpose, *images.shape[2:], scale).to(images)
    return weights[0] * images + weights[1] * pane


def texture(keys: Tensor, purpose: str, height: int, width: int, scale: float) -> Tensor:
    """Panes of frost: crystals of random place and direction, each with a bright spine and barbs on both its sides.

    Shapes: ``keys`` int64 [B] -> float32 [B, 3, height, width] in [0, 1].
    """
    rows = torch.arange(height, device=keys.device) / scale
    columns = torch.arange(width, device=keys.device) / scale
    crystals = _crystals(keys, purpose, rows, columns)  # [B, H, W]
    side = 1 << (max(height, width) - 1).bit_length()
    slow = plasma(keys, f"{purpose} pane", side, 1.6)[:, :height, :width]
    pattern = _standardised(_standardised(crystals) + _standardised(slow))
    kind = (uniform(keys, f"{purpose} kind", 1)[:, 0] * len(_PHOTOGRAPHS)).long()
    colours = torch.tensor([colour for colour, _ in _PHOTOGRAPHS], device=keys.device)[kind]  # [B, 3]
    spreads = torch.tensor([spread for _, spread in _PHOTOGRAPHS], device=keys.device)[kind]  # [B]
    pane = colours[:, :, None, None] + spreads[:, None, None, None] * pattern[:, None]
    return (pane / 255).clamp(0, 1)


def _crystals(keys: Tensor, purpose: str, rows: Tensor, columns: Tensor) -> Tensor:
    """The brightness of crystals at each pixel; every pixel belongs to the crystal whose centre is nearest.

    Shapes: ``rows`` [H] and ``columns`` [W], in pixels of a photograph -> float32 [B, H, W].
    """
    tall, wide = rows[-1].item() + 2 * _CELL, columns[-1].item() + 2 * _CELL
    count = math.ceil(tall * wide / _CELL**2)
    draws = uniform(keys, f"{purpose} crystals", 3 * count).view(-1, 3, count, 1, 1)
    down = rows[:, None] - (draws[:, 0] * tall - _CELL)  # [B, count, H, 1]
    right = columns - (draws[:, 1] * wide - _CELL)  # [B, count, 1, W]
    nearest = (down**2 + right**2).argmin(dim=1, keepdim=True)  # [B, 1, H, W]
    angle = (2 * math.pi * draws[:, 2]).expand(-1, -1, *nearest.shape[2:]).gather(1, nearest)[:, 0]
    down = down.expand(-1, -1, *nearest.shape[2:]).gather(1, nearest)[:, 0]
    right = right.expand(-1, -1, *nearest.shape[2:]).gather(1, nearest)[:, 0]
    along = down * angle.sin() + right * angle.cos()
    aside = (right * angle.sin() - down * angle.cos()).abs()
    barbs = (1 + torch.cos(2 * math.pi * (along + aside) / _BARB)) / 2  # they leave the spine at 45 degrees
    spine = torch.exp(-aside / 2)
    fading = torch.exp(-(along**2 + aside**2).sqrt() / _CELL)
    return (0.6 * barbs + spine) * fading


def _standardised(pattern: Tensor) -> Tensor:
    """Scales each pattern [B, H, W] to mean 0 and standard deviation 1."""
    pattern = pattern - pattern.mean(dim=(1, 2), keepdim=True)
    return pattern / pattern.std(dim=(1, 2), keepdim=True).clamp_min(1e-6)  # a pattern may be flat
