# SPDX-License-Identifier: Apache-2.0
"""Weather: snow, frost, fog and brightness."""

import torch
from torch import Tensor

from recipes_lib.randomness import normal, uniform
from recipes_lib.views.corruptions.blur import enlarged, motion_blur, zoom_window
from recipes_lib.views.corruptions.parameters import Snow
from recipes_lib.views.corruptions.rounding import rounded, rounded_down

GREY = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in the brightness of a pixel."""


def snow(images: Tensor, keys: Tensor, purpose: str, look: Snow) -> Tensor:
    """Whitens the image and adds flakes that fall in a direction of each image's own, and the same flakes upside down.

    Shapes: ``images`` float [B, 3, H, W] in [0, 1], ``keys`` int64 [B] -> float [B, 3, H, W], not clipped.
    """
    height, width = images.shape[2:]
    (top, tall), (left, wide) = (zoom_window(side, look.zoom) for side in (height, width))
    flakes = images.new_zeros(len(images), 1, height, width)
    draws = normal(keys, f"{purpose} flakes", tall * wide).view(-1, 1, tall, wide).to(images)
    flakes[:, :, top : top + tall, left : left + wide] = look.mean + look.std * draws  # only this part is enlarged
    flakes = enlarged(flakes, look.zoom)
    flakes = rounded_down(torch.where(flakes < look.threshold, 0, flakes))
    degrees = -135 + 90 * uniform(keys, f"{purpose} direction", 1)[:, 0]
    flakes = rounded(motion_blur(flakes, degrees, look.radius, look.sigma))
    grey = (images * images.new_tensor(GREY)[:, None, None]).sum(dim=1, keepdim=True)
    white = torch.maximum(images, 1.5 * grey + 0.5)
    return look.keep * images + (1 - look.keep) * white + flakes + flakes.flip(2, 3)


def fog(images: Tensor, keys: Tensor, purpose: str, thickness: float, decay: float) -> Tensor:
    """Adds fog of random density, and darkens the sum so that the largest possible value is the image's largest.

    Shapes: ``images`` float [B, 3, H, W] in [0, 1] -> float [B, 3, H, W].
    """
    height, width = images.shape[2:]
    side = 1 << (max(height, width) - 1).bit_length()
    density = plasma(keys, purpose, side, decay)[:, None, :height, :width].to(images)
    brightest = images.amax(dim=(1, 2, 3), keepdim=True)
    return (images + thickness * density) * brightest / (brightest + thickness)


def plasma(keys: Tensor, purpose: str, side: int, decay: float) -> Tensor:
    """Random landscapes that continue across their borders, by the diamond-square algorithm, scaled to [0, 1].

    At each scale the point in the middle of four others is their mean plus a random number, first for squares, then for
    diamonds. The size of the random numbers falls by ``decay`` ** 2 from one scale to the next.

    Shapes: ``keys`` int64 [B], ``side`` a power of two -> float32 [B, side, side].
    """
    random = 2 * uniform(keys, purpose, side * side).view(-1, side, side) - 1
    heights = torch.zeros_like(random)  # starts from one point of height 0, at the top left
    step, size = side, 1.0
    while step >= 2:
        half = step // 2
        corners, edges = slice(0, None, step), slice(half, None, step)
        corner = heights[:, corners, corners]
        below = corner + corner.roll(-1, dims=1)
        heights[:, edges, edges] = (below + below.roll(-1, dims=2)) / 4 + size * random[:, edges, edges]
        centre = heights[:, edges, edges]
        across = corner + corner.roll(-1, dims=2) + centre + centre.roll(1, dims=1)
        heights[:, corners, edges] = across / 4 + size * random[:, corners, edges]
        along = corner + corner.roll(-1, dims=1) + centre + centre.roll(1, dims=2)
        heights[:, edges, corners] = along / 4 + size * random[:, edges, corners]
        step, size = half, size / decay**2
    heights = heights - heights.amin(dim=(1, 2), keepdim=True)
    return heights / heights.amax(dim=(1, 2), keepdim=True)


def brightness(images: Tensor, added: float) -> Tensor:
    """Adds to the value of each pixel in HSV, its largest channel; hue and saturation stay, and black becomes grey.

    Shapes: ``images`` float [B, 3, H, W] in [0, 1] -> float [B, 3, H, W].
    """
    value = images.amax(dim=1, keepdim=True)
    brighter = (value + added).clamp_max(1)
    return torch.where(value > 0, images * (brighter / value.clamp_min(1e-6)), brighter)  # values are 0 or above 1/256
