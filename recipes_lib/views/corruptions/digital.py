# SPDX-License-Identifier: Apache-2.0
"""Digital corruptions: contrast, elastic transform, pixelation and JPEG compression."""

import io

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from recipes_lib.randomness import uniform
from recipes_lib.views.corruptions.blur import smooth
from recipes_lib.views.corruptions.rounding import rounded


def contrast(images: Tensor, factor: float) -> Tensor:
    """Multiplies each value's distance from the mean of its channel by ``factor``.

    Shapes: ``images`` float [B, 3, H, W] -> float [B, 3, H, W].
    """
    means = images.mean(dim=(2, 3), keepdim=True)
    return (images - means) * factor + means


def elastic_transform(images: Tensor, keys: Tensor, purpose: str, size: float, sigma: float, corners: float) -> Tensor:
    """Moves the image by a random affine map, and then each pixel by a random displacement that changes slowly.

    The affine map moves three corners of the central square by up to ``corners`` pixels on each axis. The displacements
    are uniform in [-1, 1], blurred with a Gaussian of width ``sigma``, times ``size``; all in pixels.

    Shapes: ``images`` float [B, 3, H, W], ``keys`` int64 [B] -> float [B, 3, H, W].
    """
    height, width = images.shape[2:]
    images = affine(images, corners * (2 * uniform(keys, f"{purpose} corners", 6).view(-1, 3, 2) - 1))
    if not size:
        return images
    field = 2 * uniform(keys, f"{purpose} displacements", 2 * height * width).view(-1, 2, height, width) - 1
    field = size * smooth(field.double(), sigma, border="reflect", truncate=3.0)
    return displaced(images, field)


def affine(images: Tensor, moves: Tensor) -> Tensor:
    """Moves three corners of the central square of each image; borders are mirrored without repeating the edge.

    The square's sides are two thirds of the image's shorter side. ``moves``: by how many pixels, right and down, the
    bottom right, the top right and the top left corner move.

    Shapes: ``images`` float [B, 3, H, W], ``moves`` float [B, 3, 2] -> float [B, 3, H, W].
    """
    height, width = images.shape[2:]
    reach = min(height, width) // 3
    centre = torch.tensor([width // 2, height // 2], dtype=torch.float64, device=images.device)
    corners = centre + reach * torch.tensor([[1, 1], [1, -1], [-1, -1]], device=images.device)  # [3, 2], (x, y)
    moved = F.pad(corners + moves.to(corners), (0, 1), value=1)  # [B, 3, 3], rows (x, y, 1)
    back = torch.linalg.solve(moved, corners.expand(len(images), 3, 2))  # from places in the result to the image
    x, y = torch.meshgrid(*(torch.arange(side, device=images.device) for side in (width, height)), indexing="xy")
    places = torch.stack([x, y, torch.ones_like(x)], dim=-1).to(back) @ back[:, None]  # [B, H, W, 2]
    return _sampled(images, places, mirror_edge=False)


def displaced(images: Tensor, field: Tensor) -> Tensor:
    """Takes each pixel from the place that lies ``field`` (right, down) away; borders are mirrored with the edge.

    Shapes: ``images`` float [B, 3, H, W], ``field`` float [B, 2, H, W] in pixels -> float [B, 3, H, W].
    """
    height, width = images.shape[2:]
    x, y = torch.meshgrid(*(torch.arange(side, device=images.device) for side in (width, height)), indexing="xy")
    return _sampled(images, torch.stack([x, y], dim=-1) + field.movedim(1, -1), mirror_edge=True)


def _sampled(images: Tensor, places: Tensor, *, mirror_edge: bool) -> Tensor:
    """Linear interpolation at ``places`` [B, H, W, 2], (x, y) in pixels."""
    sides = places.new_tensor([images.shape[3], images.shape[2]])
    # grid_sample's units: it mirrors at the outer borders of the edge pixels, or with align_corners at their centres
    units = (2 * places + 1) / sides - 1 if mirror_edge else 2 * places / (sides - 1) - 1
    how = {"mode": "bilinear", "padding_mode": "reflection", "align_corners": not mirror_edge}
    return F.grid_sample(images, units.to(images), **how)


def pixelate(images: Tensor, factor: float) -> Tensor:
    """Shrinks by the mean of the pixels in each box, and enlarges again by repeating pixels, as Pillow's ``BOX`` does.

    Shapes: ``images`` float [B, 3, H, W], multiples of 1/255 in [0, 1] -> float [B, 3, H, W], the same.
    """
    height, width = images.shape[2:]
    rows, columns = (_box_means(side, int(side * factor)).to(images) for side in (height, width))
    small = rounded(rows @ rounded(images @ columns.mT))  # Pillow rounds after each axis
    return F.interpolate(small, (height, width), mode="nearest-exact")


def _box_means(side: int, size: int) -> Tensor:
    """The matrix that shrinks an axis: float64 [size, side]. A pixel counts where its centre lies inside the box."""
    scale = side / size
    centres = (torch.arange(size, dtype=torch.float64)[:, None] + 0.5) * scale
    distance = (torch.arange(side, dtype=torch.float64) + 0.5 - centres) / scale
    inside = ((distance > -0.5) & (distance <= 0.5)).double()
    return inside / inside.sum(dim=1, keepdim=True)


def jpeg_compression(images: Tensor, quality: int) -> Tensor:
    """Compresses each image as a JPEG file and reads it again, by Pillow; on the CPU, one image at a time.

    Shapes: ``images`` uint8 [B, 3, H, W] -> uint8 [B, 3, H, W].
    """
    pictures = images.movedim(1, -1).cpu().numpy()
    return torch.stack([_through_jpeg(picture, quality) for picture in pictures]).to(images.device)


def _through_jpeg(picture: np.ndarray, quality: int) -> Tensor:
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(file, "JPEG", quality=quality)
    return torch.from_numpy(np.array(Image.open(file))).movedim(-1, 0)
