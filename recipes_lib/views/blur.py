# SPDX-License-Identifier: Apache-2.0
"""Gaussian blur with one width per sample, computed as products with banded matrices.

The blur along one axis is a matrix: row i holds the weights of output pixel i, and the mirrored border is added to its
corners. Matrix products are fast on every device. For a large image only the band along the diagonal is multiplied.
"""

import torch
from torch import Tensor

# Output pixels per product: enough to be efficient, and so few that hardly any zeros beside the band are multiplied.
_TILE = 48


def gaussian_blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Blurs each image with a Gaussian kernel of its own width.

    The kernel reaches 3 sigma to each side, rounded up, but never beyond the mirrored image; borders are mirrored.
    The result for image b equals torchvision's
    ``gaussian_blur(image, 2 * kernel_radius(sigma[b], side) + 1, sigma[b])``.

    Shapes: ``images`` float [B, 3, H, W], ``sigma`` float [B] in pixels, above 0 -> float [B, 3, H, W].
    """
    batch, channels, height, width = images.shape
    weights, reach = _blur_weights(sigma, height, images)  # [B, H, H]
    tiles = [torch.matmul(weights[:, None, out, read], images[:, :, read]) for out, read in _tiles(height, reach)]
    images = (tiles[0] if len(tiles) == 1 else torch.cat(tiles, dim=2)).view(batch, channels * height, width)

    if width != height:
        weights, reach = _blur_weights(sigma, width, images)  # [B, W, W]
    tiles = [torch.bmm(images[:, :, read], weights[:, out, read].mT) for out, read in _tiles(width, reach)]
    return (tiles[0] if len(tiles) == 1 else torch.cat(tiles, dim=2)).view(batch, channels, height, width)


def kernel_radius(sigma: Tensor, side: int) -> Tensor:
    """The number of kernel pixels on each side of the centre, int64 in the shape of ``sigma``.

    It is ``side - 1`` at most, because the mirrored border has only so many pixels.
    """
    return torch.ceil(3 * sigma.double()).long().clamp_max(side - 1)


def _tiles(side: int, reach: int) -> list[tuple[slice, slice]]:
    """Splits an axis into tiles: pairs of the slice of output pixels and the slice of input pixels that they read."""
    starts = range(0, side, _TILE)
    return [
        (slice(start, start + _TILE), slice(max(0, start - reach), min(side, start + _TILE + reach)))
        for start in starts
    ]


def _blur_weights(sigma: Tensor, side: int, like: Tensor) -> tuple[Tensor, int]:
    """The blur matrices [B, side, side], on the device and in the dtype of ``like``, and the largest kernel radius."""
    sigma = sigma.to(like.device, torch.float32)[:, None]
    radius = kernel_radius(sigma, side)
    distance = torch.arange(2 * side - 1, device=like.device)
    kernel = torch.exp(-0.5 * (distance / sigma) ** 2) * (distance <= radius)  # [B, 2 side - 1]
    kernel /= 2 * kernel.sum(dim=1, keepdim=True) - kernel[:, :1]  # weights sum to 1 over both sides of the centre
    kernel = kernel.to(like.dtype)

    centred = torch.cat([kernel[:, 1:side].flip(1), kernel[:, :side]], dim=1)  # [B, 2 side - 1]
    weights = centred.unfold(1, side, 1).flip(1)  # [B, side, side]: weights[b, i, j] = kernel[b, |i - j|]
    reach = int(radius.max())
    # source pixel j appears again, mirrored, j pixels before the first one, at distance i + j from output pixel i
    mirrored = kernel.unfold(1, side, 1)[:, :reach, 1 : reach + 1]  # [B, reach, reach]
    weights[:, :reach, 1 : reach + 1] += mirrored
    weights[:, side - reach :, side - 1 - reach : side - 1] += mirrored.flip(1, 2)
    return weights, reach
