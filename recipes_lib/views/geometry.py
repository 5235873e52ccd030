# SPDX-License-Identifier: Apache-2.0
"""The geometry of views: draws a crop box per sample, and crops, resizes, flips and rotates images.

Each function takes a batch with one set of parameters per sample. It agrees with torchvision's function of the same
name at the same parameters.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from recipes_lib.config.views import Kernel

DENSE_SIDE = 48
"""The largest output side at which two dense matrix products are cheaper on a CPU than one native call per image."""

_TRIES = 10
BOX_DRAWS = 2 * _TRIES + 2
"""Uniform random numbers per box: area and aspect ratio of each of ten tries, then the two positions."""


def boxes_from(
    draws: Tensor, *, height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float] = (3 / 4, 4 / 3)
) -> Tensor:
    """Boxes of random area and aspect ratio: int64 [..., 4], each row (top, left, height, width) in pixels.

    ``draws``: [..., ``BOX_DRAWS``], uniform in [0, 1); ``scale``: range of the box's share of the image's area; ``ratio``: range of
    its width over its height, uniform in the logarithm.
    The distribution is that of torchvision's ``RandomResizedCrop``: ten tries, of which the first that fits is taken,
    else the largest central box whose ratio is in range.
    """
    u = draws.double()  # so that every device rounds to the same box
    area = height * width * (scale[0] + (scale[1] - scale[0]) * u[..., :_TRIES])  # [..., tries]
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = torch.exp(low + (high - low) * u[..., _TRIES : 2 * _TRIES])  # [..., tries]
    tried = torch.stack([area / aspect, area * aspect]).sqrt_().round_().long()  # [2, ..., tries]: heights, widths
    limit = torch.tensor([height, width], device=u.device).view(2, *[1] * u.dim())
    fits = ((tried > 0) & (tried <= limit)).all(dim=0)  # [..., tries]
    first = fits.int().argmax(dim=-1, keepdim=True)  # [..., 1]
    sides = tried.gather(-1, first.expand(2, *first.shape))[..., 0]  # [2, ...]

    central = torch.tensor([min(height, round(width / ratio[0])), min(width, round(height * ratio[1]))])
    some, limit = fits.any(dim=-1), limit[..., 0]
    sides = torch.where(some, sides, central.to(u.device).view_as(limit))
    room = limit - sides
    starts = torch.where(some, (u[..., 2 * _TRIES :].movedim(-1, 0) * (room + 1)).long(), room // 2)  # [2, ...]
    return torch.cat([starts, sides]).movedim(0, -1)


def resized_crop(
    images: Tensor, boxes: Tensor, size: int, flip: Tensor | None = None, mode: Kernel = "bilinear"
) -> Tensor:
    """Crops each image to its box, resizes it with antialiasing, and mirrors it where ``flip`` is set.

    Shapes: ``images`` uint8 (0 to 255) or float (0 to 1) [B, 3, H, W], ``boxes`` int64 [B, 4] (top, left, height,
    width) inside the image, ``flip`` bool [B] -> float [B, 3, size, size] in [0, 1].
    On a CPU, large crops of uint8 images are resized in uint8, so their values are multiples of 1/255.
    Raises: ``ValueError`` if there is not one box per image.
    """
    if boxes.shape != (len(images), 4):
        raise ValueError(f"boxes of shape {tuple(boxes.shape)} do not fit {len(images)} images: give [batch, 4]")
    flip = torch.zeros(len(images), dtype=torch.bool) if flip is None else flip
    if mode == "bicubic" or (images.device.type == "cpu" and size > DENSE_SIDE):
        out = torch.empty(len(images), 3, size, size, device=images.device)
        crops = crop_each(images, boxes, flip, out, mode)
        return crops.mul_(1 / 255) if images.dtype == torch.uint8 else crops.clamp_(0, 1)  # bicubic may leave [0, 1]
    batch, channels, height, width = images.shape
    rows, columns = _resize_weights(images, boxes.to(images.device), size, flip)
    if images.dtype == torch.uint8:
        images, rows = images.to(torch.float32), rows.mul_(1 / 255)
    narrow = torch.bmm(images.reshape(batch, channels * height, width), columns.mT)  # [B, 3 * H, size]
    return torch.matmul(rows[:, None], narrow.view(batch, channels, height, size))  # [B, 3, size, size]


def _resize_weights(images: Tensor, boxes: Tensor, size: int, flip: Tensor) -> tuple[Tensor, Tensor]:
    """The matrices that resize the rows, [B, size, H], and the columns, [B, size, W]; the weights of a row sum to 1.

    The weights of an output pixel are a triangle around its centre, which falls to 0 at a distance of one output pixel,
    or of one source pixel if that is larger. Both axes are computed as one tensor [B, 2, size, longer side]: at this
    size the number of calls costs more than the arithmetic.
    """
    height, width = images.shape[2:]
    dtype = images.dtype if images.is_floating_point() else torch.float32
    start, length = boxes[:, :2, None, None].to(dtype), boxes[:, 2:, None, None].to(dtype)  # [B, 2, 1, 1]
    step = length / size  # source pixels per output pixel
    reach = step.clamp_min(1)  # half the triangle's base, in source pixels
    output = torch.arange(size, device=boxes.device, dtype=dtype).add_(0.5).view(size, 1)
    pixel = torch.arange(max(height, width), device=boxes.device, dtype=dtype).add_(0.5)
    outside = (pixel - start - length / 2).abs_() > length / 2  # [B, 2, 1, side]

    centre = step * output + start  # [B, 2, size, 1]
    centre[:, 1] = torch.where(flip.to(boxes.device)[:, None, None], centre[:, 1].flip(1), centre[:, 1])
    peak = torch.where(outside, -torch.inf, 1.0)  # pixels outside the box get weight 0
    weights = (pixel / reach - centre / reach).abs_()  # [B, 2, size, side]
    torch.sub(peak, weights, out=weights).clamp_min_(0)
    weights.div_(weights.sum(dim=3, keepdim=True))
    return weights[:, 0, :, :height], weights[:, 1, :, :width]


def crop_each(
    images: Tensor | Sequence[Tensor], boxes: Tensor, flip: Tensor, out: Tensor, mode: Kernel = "bilinear"
) -> Tensor:
    """:func:`resized_crop` by one native call per image, written to ``out`` [B, 3, size, size] in its dtype.

    The images, [3, H, W] each, may differ in size. Images in channels-last memory, as decoders return them, are cropped
    fastest. Values of float images are not clipped.
    """
    for i, ((top, left, height, width), mirrored) in enumerate(zip(boxes.tolist(), flip.tolist(), strict=True)):
        # clone: a box in contiguous memory is resized a quarter faster
        box = images[i][None, :, top : top + height, left : left + width].clone()
        crop = F.interpolate(box, out.shape[2:], mode=mode, antialias=True)[0]
        out[i] = crop.flip(-1) if mirrored else crop
    return out


def to_float(images: Tensor) -> Tensor:
    """Converts uint8 images (0 to 255) to float32 (0 to 1); float images are returned unchanged."""
    return images if images.is_floating_point() else images.to(torch.float32).mul_(1 / 255)


def rotate(images: Tensor, degrees: Tensor) -> Tensor:
    """Rotates each image counter-clockwise about its centre, with bilinear interpolation.

    Shapes: ``images`` float [B, 3, H, W], ``degrees`` [B] -> float [B, 3, H, W].
    Differs: torchvision fills the corners that come into view with black, from which a network could read the angle;
    here the mirrored image fills them.
    """
    batch, _, height, width = images.shape
    angle = torch.deg2rad(degrees.to(images))
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    # grid_sample's coordinates run from -1 to 1 along both axes, so an image that is not square needs the sides' ratio
    row_x = torch.stack([cos, -sin * (height / width), zero], dim=1)  # [B, 3]
    row_y = torch.stack([sin * (width / height), cos, zero], dim=1)
    grid = F.affine_grid(torch.stack([row_x, row_y], dim=1), [batch, 1, height, width], align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
