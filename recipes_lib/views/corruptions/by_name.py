# SPDX-License-Identifier: Apache-2.0
"""Corrupts a batch of images by the name of the corruption and its severity."""

import torch
from torch import Tensor

from recipes_lib.config.evaluation import CORRUPTIONS, SEVERITIES, Corruption
from recipes_lib.randomness import sample_keys, uniform
from recipes_lib.views.corruptions import blur, digital, noise, weather
from recipes_lib.views.corruptions.frost import frost
from recipes_lib.views.corruptions.parameters import Published, for_side
from recipes_lib.views.corruptions.rounding import rounded, to_bytes

SMALLEST = 8
"""The smallest side of an image in pixels, that of the smallest images of a run."""
_PART = 2**21  # values that are corrupted at once: their random numbers take 16 bytes each


def corrupt(images: Tensor, name: Corruption, severity: int, indices: Tensor, *, seed: int = 0) -> Tensor:
    """The corrupted images. The strengths are those published for the side nearest to the images' shorter side.

    Shapes: ``images`` uint8 (0 to 255) or float (0 to 1) [B, 3, H, W], ``indices`` int64 [B] (positions in the data
    set) -> the same shape and dtype. Float images are rounded to bytes first, because the corruptions are defined for
    bytes.

    Raises: ``ValueError`` for another shape, name or severity, and for images below 8 pixels.
    """
    _check(images, name, severity, indices)
    if images.dtype != torch.uint8:
        pictures = (images.clamp(0, 1) * 255).round().to(torch.uint8)
        return corrupt(pictures, name, severity, indices, seed=seed).to(images.dtype) / 255
    strengths = for_side(min(images.shape[2:]))
    keys = sample_keys(seed, 0, indices.to(images.device))
    part = max(1, _PART // images[0].numel())
    parts = zip(images.split(part), keys.split(part), strict=True)
    return torch.cat([_corrupt(chunk, name, severity, strengths, some) for chunk, some in parts])


def _corrupt(pictures: Tensor, name: Corruption, severity: int, strengths: Published, keys: Tensor) -> Tensor:
    """One corruption of bytes [B, 3, H, W], by match: each is a function of its own with its own strengths."""
    images, at, purpose = pictures.float() / 255, severity - 1, f"{name} {severity}"
    match name:
        case "gaussian_noise":
            images = noise.gaussian_noise(images, keys, purpose, strengths.gaussian_noise[at])
        case "shot_noise":
            images = noise.shot_noise(images, keys, purpose, strengths.shot_noise[at])
        case "impulse_noise":
            images = noise.impulse_noise(images, keys, purpose, strengths.impulse_noise[at])
        case "defocus_blur":
            images = blur.defocus_blur(images, *strengths.defocus_blur[at])
        case "glass_blur":
            images = blur.glass_blur(images, keys, purpose, strengths.glass_blur[at])
        case "motion_blur":
            degrees = -45 + 90 * uniform(keys, purpose, 1)[:, 0]
            images = rounded(blur.motion_blur(images, degrees, *strengths.motion_blur[at]))
        case "zoom_blur":
            images = blur.zoom_blur(images, *strengths.zoom_blur[at])
        case "snow":
            images = weather.snow(images, keys, purpose, strengths.snow[at])
        case "frost":
            images = frost(images, keys, purpose, strengths.frost[at], strengths.frost_scale)
        case "fog":
            images = weather.fog(images, keys, purpose, *strengths.fog[at])
        case "brightness":
            images = weather.brightness(images, strengths.brightness[at])
        case "contrast":
            images = digital.contrast(images, strengths.contrast[at])
        case "elastic_transform":
            grown = min(images.shape[2:]) / strengths.side
            sizes = [grown * pixels for pixels in strengths.elastic_transform[at]]
            images = digital.elastic_transform(images, keys, purpose, *sizes)
        case "pixelate":
            images = digital.pixelate(images, strengths.pixelate[at])
        case "jpeg_compression":
            return digital.jpeg_compression(pictures, strengths.jpeg_compression[at])
    return to_bytes(images)


def _check(images: Tensor, name: str, severity: int, indices: Tensor) -> None:
    if images.ndim != 4 or images.shape[1] != 3 or len(indices) != len(images):
        raise ValueError(
            f"images {list(images.shape)} and {len(indices)} indices: give [B, 3, H, W], and an index for each image."
        )
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise ValueError(f"images are {images.dtype}: give uint8 (0 to 255) or float (0 to 1).")
    if min(images.shape[2:]) < SMALLEST:
        raise ValueError(f"images of {images.shape[2]}x{images.shape[3]} pixels: both sides must have {SMALLEST}.")
    if name not in CORRUPTIONS:
        raise ValueError(f"There is no corruption {name!r}. There are {', '.join(CORRUPTIONS)}.")
    if severity not in SEVERITIES:
        raise ValueError(f"severity = {severity}: use 1 to 5.")
