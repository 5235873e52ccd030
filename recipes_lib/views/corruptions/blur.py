# SPDX-License-Identifier: Apache-2.0
"""Blur: defocus, glass, motion and zoom blur, and what other corruptions share with them."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from recipes_lib.randomness import uniform
from recipes_lib.views.corruptions.parameters import Glass
from recipes_lib.views.corruptions.rounding import rounded_down


def defocus_blur(images: Tensor, radius: float, soften: float) -> Tensor:
    """Convolves with a disk of ``radius`` pixels whose edge is softened by a Gaussian of width ``soften``.

    Borders are mirrored without repeating the edge.

    Shapes: ``images`` float [B, 3, H, W] -> float [B, 3, H, W].
    """
    kernel = disk(radius, soften).to(images)
    reach = kernel.shape[0] // 2
    padded = F.pad(images, [reach] * 4, mode="reflect")
    return F.conv2d(padded.flatten(0, 1)[:, None], kernel[None, None]).view_as(images)


def disk(radius: float, soften: float) -> Tensor:
    """The kernel of :func:`defocus_blur`: float32 [side, side], of sum 1, without the rows that are 0.

    The disk has all pixels whose centre is at most ``radius`` away. The Gaussian has 3 x 3 pixels, or 5 x 5 if the
    radius is above 8. The array on which the authors draw it ends at the disk's own edge if the radius is above 8, and
    the Gaussian is mirrored there.
    """
    half, ring = (8, 1) if radius <= 8 else (math.ceil(radius), 2)
    offsets = torch.arange(-half, half + 1, dtype=torch.float64)
    inside = (offsets[:, None] ** 2 + offsets**2 <= radius**2).to(torch.float64)
    weights = torch.exp(-(torch.arange(-ring, ring + 1, dtype=torch.float64) ** 2) / (2 * soften**2))
    weights = weights / weights.sum()
    padded = F.pad((inside / inside.sum())[None, None], [ring] * 4, mode="reflect")
    kernel = F.conv2d(padded, torch.outer(weights, weights)[None, None])[0, 0]
    reach = min(half, math.floor(radius) + ring)
    return kernel[half - reach : half + reach + 1, half - reach : half + reach + 1].float()


def glass_blur(images: Tensor, keys: Tensor, purpose: str, glass: Glass) -> Tensor:
    """Blurs, lets each pixel take the value of a random near pixel, and blurs again.

    The pixels are visited from the bottom right to the top left, so what a pixel takes may have been taken before.
    A strip of ``reach`` pixels along the borders stays (at the bottom and on the right one less).

    Differs: the paper says that pixels are exchanged. The authors' program copies them: its swap of two views of one
    array keeps no copy of the first. The published images are made so, and we copy too.

    Shapes: ``images`` float [B, 3, H, W], multiples of 1/255 in [0, 1] -> float [B, 3, H, W].
    """
    height, width = images.shape[2:]
    # float64: a byte that falls on the other side of a whole number would be copied to other pixels
    exact = (images * 255).round().double() / 255
    pixels = rounded_down(smooth(exact, glass.sigma, border="nearest")).to(images.dtype).flatten(2)
    for turn in range(glass.rounds):
        source = _glass_sources(keys, f"{purpose} {turn}", height, width, glass.reach).to(pixels.device)
        pixels = pixels.gather(2, source[:, None].expand_as(pixels))
    return smooth(pixels.view_as(images), glass.sigma, border="nearest")


def _glass_sources(keys: Tensor, purpose: str, height: int, width: int, reach: int) -> Tensor:
    """The pixel from which each pixel's value comes in the end: int64 [B, H * W].

    Pixel p points to its near pixel q. If q was visited before p, q has its new value by then, and p has the source of
    q; else p has the old value of q. So chains of pointers end at the first pixel that was not visited before.
    Doubling all pointers finds the ends in a few steps.
    """
    draws = uniform(keys, purpose, 2 * height * width).view(-1, 2, height, width)
    down, right = ((2 * reach * draws).long() - reach).unbind(1)  # -reach to reach - 1, as numpy's randint
    rows = torch.arange(height, device=keys.device)[:, None]
    columns = torch.arange(width, device=keys.device)
    visited = (rows > reach) & (rows <= height - reach) & (columns > reach) & (columns <= width - reach)
    here = rows * width + columns  # [H, W]
    near = torch.where(visited, here + down * width + right, here).flatten(1)  # [B, H * W]
    here, visited = here.flatten().expand_as(near), visited.flatten().expand_as(near)
    # 2n pointers: n pixels after their visit, then n old values, which point to themselves
    count = height * width
    before = (near > here) & visited.gather(1, near)  # pixels are visited in falling order of their number
    after_visit = torch.where(visited & before, near, near + count)
    pointers = torch.cat([after_visit, here + count], dim=1)
    while not torch.equal(further := pointers.gather(1, pointers), pointers):
        pointers = further
    return pointers[:, :count] - count


def motion_blur(images: Tensor, degrees: Tensor, radius: int, sigma: float) -> Tensor:
    """The weighted mean along a straight path that starts at each pixel, in a direction of each image's own.

    The path has ``2 * radius + 1`` pixels with the weights of one half of a Gaussian of width ``sigma``, as in
    ImageMagick's ``MotionBlur``. Borders are repeated.

    Shapes: ``images`` float [B, C, H, W], ``degrees`` float [B], clockwise from the right -> float [B, C, H, W].
    """
    height, width = images.shape[2:]
    steps = torch.arange(2 * radius + 1, device=images.device, dtype=torch.float64)
    weights = torch.exp(-(steps**2) / (2 * sigma**2))
    weights = (weights / weights.sum()).tolist()
    angle = torch.deg2rad(degrees.to(images.device, torch.float64))[:, None]
    down, right = (torch.ceil(steps * part - 0.5).long() for part in (angle.sin(), angle.cos()))  # [B, steps]
    rows = (torch.arange(height, device=images.device) + down[..., None]).clamp(0, height - 1)  # [B, steps, H]
    columns = (torch.arange(width, device=images.device) + right[..., None]).clamp(0, width - 1)
    pixels, out = images.flatten(2), torch.zeros_like(images).flatten(2)
    for step, weight in enumerate(weights):
        index = (rows[:, step, :, None] * width + columns[:, step, None]).flatten(1)  # [B, H * W]
        out += weight * pixels.gather(2, index[:, None].expand_as(pixels))
    return out.view_as(images)


def zoom_blur(images: Tensor, step: float, count: int) -> Tensor:
    """The mean of the image and of its enlargements by 1, 1 + ``step``, ..., ``count`` of them.

    Shapes: ``images`` float [B, 3, H, W] -> float [B, 3, H, W].
    """
    total = images.clone()
    exact = (1 + step) - 1  # numpy.arange's own step: it decides whether 26 pixels times 1.25 become 32 or 33
    for number in range(count):
        total += enlarged(images, 1 + number * exact)
    return total / (count + 1)


def enlarged(images: Tensor, factor: float) -> Tensor:
    """The centre of the images, enlarged by ``factor`` to the size of the whole; linear interpolation.

    Shapes: ``images`` float [B, C, H, W] -> float [B, C, H, W].
    """
    height, width = images.shape[2:]
    (top, tall), (left, wide) = (zoom_window(side, factor) for side in (height, width))
    size = round(tall * factor), round(wide * factor)
    # the first and the last pixel of the crop stay the first and the last, as in scipy.ndimage.zoom
    large = F.interpolate(images[:, :, top : top + tall, left : left + wide], size, mode="bilinear", align_corners=True)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return large[:, :, top : top + height, left : left + width]


def zoom_window(side: int, factor: float) -> tuple[int, int]:
    """Where the part of a side begins that is enlarged by ``factor``, and how many pixels it has."""
    length = math.ceil(side / factor)
    return (side - length) // 2, length


def smooth(images: Tensor, sigma: float, *, border: str, truncate: float = 4.0) -> Tensor:
    """Blurs with a Gaussian of width ``sigma`` whose kernel ends at ``truncate`` widths; a product with two matrices.

    ``border``: ``nearest`` repeats the edge; ``reflect`` mirrors the image with the edge repeated, as often as the
    kernel needs. The result is that of ``scipy.ndimage.gaussian_filter``.

    Shapes: ``images`` float [..., H, W] -> float [..., H, W].
    """
    rows, columns = (_smoothing(side, sigma, border, truncate).to(images) for side in images.shape[-2:])
    return rows @ images @ columns.mT


def _smoothing(side: int, sigma: float, border: str, truncate: float) -> Tensor:
    """The matrix of the blur along one axis: float64 [side, side], each row of sum 1."""
    reach = math.floor(truncate * sigma + 0.5)
    offsets = torch.arange(-reach, reach + 1)
    weights = torch.exp(-0.5 * (offsets.double() / sigma) ** 2) if reach else torch.ones(1, dtype=torch.float64)
    places = torch.arange(side)[:, None] + offsets  # [side, taps]
    if border == "nearest":
        places = places.clamp(0, side - 1)
    else:
        places = places % (2 * side)
        places = torch.minimum(places, 2 * side - 1 - places)
    matrix = torch.zeros(side, side, dtype=torch.float64)
    return matrix.scatter_add_(1, places, (weights / weights.sum()).expand_as(places))
