# SPDX-License-Identifier: Apache-2.0
"""Gaussian blur with one width per sample."""

import torch
from torch import Tensor


def gaussian_blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Blurs each image by a Gaussian of its own width; 0 leaves it as it is.

    Shapes: ``images`` float [B, 3, H, W], ``sigma`` [B] in pixels -> float [B, 3, H, W].
    The kernel reaches 3 sigma to each side, rounded up, but never beyond the mirrored image; borders are mirrored.
    So image b equals torchvision's ``gaussian_blur(image, 2 * kernel_radius(sigma[b], side) + 1, sigma[b])``.
    """
    height, width = images.shape[2:]
    rows, columns = _blur_weights(sigma, height).to(images), _blur_weights(sigma, width).to(images)
    return torch.matmul(torch.matmul(rows[:, None], images), columns[:, None].mT)


def kernel_radius(sigma: Tensor, side: int) -> Tensor:
    """Pixels to each side of the centre: int64 like ``sigma``. A mirror has only ``side - 1`` pixels to give."""
    return torch.ceil(3 * sigma.double()).long().clamp_max(side - 1)


def _blur_weights(sigma: Tensor, side: int) -> Tensor:
    """Blurring one axis as a matrix, mirrored borders folded in: float32 [B, side, side]."""
    sigma = sigma.cpu().float()
    radius = kernel_radius(sigma, side)[:, None]
    offset = torch.arange(1 - side, side)
    kernel = torch.exp(-0.5 * (offset / sigma[:, None].clamp_min(1e-6)) ** 2) * (offset.abs() <= radius)
    kernel /= kernel.sum(dim=1, keepdim=True)  # [B, 2 side - 1], centre at side - 1
    here = torch.arange(side)
    near = here[None, :] - here[:, None]  # source - output
    weights = kernel[:, near + side - 1]
    for mirrored in (-here, 2 * (side - 1) - here):  # the images of a source pixel behind either border
        off = mirrored[None, :] - here[:, None]
        real = (off.abs() < side) & (mirrored != here)[None, :]
        weights += kernel[:, off.clamp(1 - side, side - 1) + side - 1] * real
    return weights
