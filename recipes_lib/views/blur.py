# SPDX-License-Identifier: Apache-2.0
"""Gaussian blur with one width per sample, as products with banded matrices.

A blur of one axis is a matrix: row i holds the weights of output pixel i, and the mirrored border is folded into its
corners. A matrix product is what a processor does best; of a large image only the band beside the diagonal is
multiplied.
"""

import torch
from torch import Tensor

# Output pixels computed at once: with the kernel's reach added, wide enough to be efficient, and little beyond the band.
_TILE = 48


def gaussian_blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Blurs each image by a Gaussian of its own width.

    Shapes: ``images`` float [B, 3, H, W], ``sigma`` float [B] in pixels, above 0 -> float [B, 3, H, W].
    The kernel reaches 3 sigma to each side, rounded up, but never beyond the mirrored image; borders are mirrored.
    So image b equals torchvision's ``gaussian_blur(image, 2 * kernel_radius(sigma[b], side) + 1, sigma[b])``.
    """
    batch, channels, height, width = images.shape
    weights, reach = _blur_weights(sigma, height, images)
    tiles = [torch.matmul(weights[:, None, out, read], images[:, :, read]) for out, read in _tiles(height, reach)]
    images = (tiles[0] if len(tiles) == 1 else torch.cat(tiles, dim=2)).view(batch, channels * height, width)

    if width != height:
        weights, reach = _blur_weights(sigma, width, images)
    tiles = [torch.bmm(images[:, :, read], weights[:, out, read].mT) for out, read in _tiles(width, reach)]
    return (tiles[0] if len(tiles) == 1 else torch.cat(tiles, dim=2)).view(batch, channels, height, width)


def kernel_radius(sigma: Tensor, side: int) -> Tensor:
    """Pixels to each side of the centre: int64 like ``sigma``. A mirror has only ``side - 1`` pixels to give."""
    return torch.ceil(3 * sigma.double()).long().clamp_max(side - 1)


def _tiles(side: int, reach: int) -> list[tuple[slice, slice]]:
    """Parts of an axis, each with what its output pixels read."""
    starts = range(0, side, _TILE)
    return [
        (slice(start, start + _TILE), slice(max(0, start - reach), min(side, start + _TILE + reach)))
        for start in starts
    ]


def _blur_weights(sigma: Tensor, side: int, like: Tensor) -> tuple[Tensor, int]:
    """The matrices [B, side, side] on the device and in the dtype of ``like``, and the largest kernel radius."""
    sigma = sigma.to(like.device, torch.float32)[:, None]
    radius = kernel_radius(sigma, side)
    distance = torch.arange(2 * side - 1, device=like.device)
    kernel = torch.exp(-0.5 * (distance / sigma) ** 2) * (distance <= radius)
    kernel /= 2 * kernel.sum(dim=1, keepdim=True) - kernel[:, :1]  # [B, 2 side - 1]: the weight at each distance
    kernel = kernel.to(like.dtype)

    centred = torch.cat([kernel[:, 1:side].flip(1), kernel[:, :side]], dim=1)
    weights = centred.unfold(1, side, 1).flip(1)  # weights[b, i, j] = kernel[b, |i - j|]
    reach = int(radius.max())
    # source pixel j also lies, mirrored, j pixels before the first one: i + j from output pixel i
    mirrored = kernel.unfold(1, side, 1)[:, :reach, 1 : reach + 1]
    weights[:, :reach, 1 : reach + 1] += mirrored
    weights[:, side - reach :, side - 1 - reach : side - 1] += mirrored.flip(1, 2)
    return weights, reach
