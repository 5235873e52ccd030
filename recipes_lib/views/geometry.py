# SPDX-License-Identifier: Apache-2.0
"""Where a view looks: crop boxes drawn per sample, and images cut, resized, mirrored and turned along them.

Each function takes a batch with one set of parameters per sample and agrees with torchvision's function of the same
name at the same parameters.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from recipes_lib.randomness import uniform

# Above this output side, one native call per image is cheaper on a CPU than two dense matrix products.
_DENSE_SIDE = 48

_TRIES = 10


def crop_boxes(
    keys: Tensor,
    purpose: str,
    *,
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Tensor:
    """Boxes of random area and aspect ratio: int64 [B, 4], each row (top, left, height, width) in pixels.

    ``keys`` int64 [B] (``randomness.sample_keys``); ``scale``: range of the box's share of the image's area; ``ratio``:
    range of its width over its height, drawn uniformly in the logarithm.
    The distribution is that of torchvision's ``RandomResizedCrop``: ten tries, of which the first that fits is taken,
    else the largest central box whose ratio is in range.
    """
    u = uniform(keys, purpose, 2 * _TRIES + 2).cpu().double()  # float64: every device rounds to the same box
    area = height * width * (scale[0] + (scale[1] - scale[0]) * u[:, :_TRIES])  # [B, tries]
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = torch.exp(low + (high - low) * u[:, _TRIES : 2 * _TRIES])
    tried_w, tried_h = (area * aspect).sqrt().round().long(), (area / aspect).sqrt().round().long()
    fits = (tried_w > 0) & (tried_w <= width) & (tried_h > 0) & (tried_h <= height)
    first = fits.int().argmax(dim=1, keepdim=True)
    some = fits.any(dim=1)

    central_w = min(width, round(height * ratio[1]))
    central_h = min(height, round(width / ratio[0]))
    w = torch.where(some, tried_w.gather(1, first)[:, 0], central_w)
    h = torch.where(some, tried_h.gather(1, first)[:, 0], central_h)
    top = torch.where(some, (u[:, -2] * (height - h + 1)).long(), (height - h) // 2)
    left = torch.where(some, (u[:, -1] * (width - w + 1)).long(), (width - w) // 2)
    return torch.stack([top, left, h, w], dim=1).to(keys.device)


def resized_crop(images: Tensor, boxes: Tensor, size: int, flip: Tensor | None = None) -> Tensor:
    """Cuts each image's box, resizes it bilinearly with antialiasing, and mirrors it where ``flip`` is set.

    Shapes: ``images`` uint8 (0 to 255) or float (0 to 1) [B, 3, H, W], ``boxes`` int64 [B, 4] (top, left, height,
    width) inside the image, ``flip`` bool [B] -> float [B, 3, size, size] in [0, 1].
    uint8 images that are large are resized in uint8, so their crops are rounded to 1/255.
    """
    if boxes.shape != (len(images), 4):
        raise ValueError(f"boxes of shape {tuple(boxes.shape)} do not fit {len(images)} images: give [batch, 4]")
    if images.device.type == "cpu" and size > _DENSE_SIDE:
        return to_float(crop_each(images, boxes, size, flip))
    batch, channels, height, width = images.shape
    pixels = to_float(images)
    boxes = boxes.to(images.device)
    rows = resize_weights(boxes[:, 0], boxes[:, 2], height, size).to(pixels.dtype)  # [B, size, H]
    columns = resize_weights(boxes[:, 1], boxes[:, 3], width, size, flip).to(pixels.dtype)  # [B, size, W]
    narrow = torch.bmm(pixels.reshape(batch, channels * height, width), columns.mT)
    return torch.matmul(rows[:, None], narrow.view(batch, channels, height, size))


def crop_each(images: Tensor, boxes: Tensor, size: int, flip: Tensor | None = None) -> Tensor:
    """:func:`resized_crop` by one native call per image; keeps the dtype of ``images``, as torchvision does."""
    crops = images.new_empty(len(images), images.shape[1], size, size)
    flips = [False] * len(images) if flip is None else flip.tolist()
    for i, (top, left, height, width) in enumerate(boxes.tolist()):
        box = images[i : i + 1, :, top : top + height, left : left + width]
        crop = F.interpolate(box, (size, size), mode="bilinear", antialias=True)
        crops[i] = crop[0].flip(-1) if flips[i] else crop[0]
    return crops


def to_float(images: Tensor) -> Tensor:
    """uint8 (0 to 255) to float32 (0 to 1); floats pass as they are."""
    return images if images.is_floating_point() else images.to(torch.float32).mul_(1 / 255)


def resize_weights(start: Tensor, length: Tensor, source: int, size: int, reverse: Tensor | None = None) -> Tensor:
    """The matrices that resize one axis: each output pixel's weights on the source's pixels, rows summing to 1.

    Shapes: ``start`` and ``length`` int64 [B] (the part of the axis to read, in pixels), ``reverse`` bool [B] ->
    float32 [B, size, source]. A tent as wide as an output pixel, never narrower than a source pixel (antialiasing).
    """
    step = length.to(torch.float32) / size  # source pixels per output pixel
    output = torch.arange(size, device=start.device) + 0.5
    outputs = output.expand(len(start), size)
    if reverse is not None:
        outputs = torch.where(reverse.to(start.device)[:, None], size - outputs, outputs)
    centre = outputs * step[:, None] + start[:, None]  # [B, size], in source pixels
    pixel = torch.arange(source, device=start.device) + 0.5
    reach = step.clamp_min(1.0)[:, None, None]
    weights = (pixel - centre[:, :, None]).abs_().div_(-reach).add_(1).clamp_min_(0)  # [B, size, source]
    inside = (pixel > start[:, None]) & (pixel < (start + length)[:, None])  # [B, source]
    weights.mul_(inside[:, None])
    return weights.div_(weights.sum(dim=2, keepdim=True))


def rotate(images: Tensor, degrees: Tensor) -> Tensor:
    """Turns each image counter-clockwise about its centre, bilinearly.

    Shapes: ``images`` float [B, 3, H, W], ``degrees`` [B] -> float [B, 3, H, W].
    Differs: torchvision paints the corners that come into view black, a mark of the angle that a network can read;
    here the image is mirrored into them.
    """
    batch, _, height, width = images.shape
    angle = torch.deg2rad(degrees.to(images))
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    # grid_sample's axes run from -1 to 1 on both sides, so an oblong image needs its sides' ratio
    row_x = torch.stack([cos, -sin * (height / width), zero], dim=1)
    row_y = torch.stack([sin * (width / height), cos, zero], dim=1)
    grid = F.affine_grid(torch.stack([row_x, row_y], dim=1), [batch, 1, height, width], align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
