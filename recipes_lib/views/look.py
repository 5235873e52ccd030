# SPDX-License-Identifier: Apache-2.0
"""The look of a view: which operations on colours and pixels each sample meets, at which strength, and their doing.

The order of the operations is that of torchvision's usual pipeline: (turn,) jitter, greyscale, blur, solarise,
equalise, (invert, shuffle channels).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from recipes_lib.config.views import ViewsConfig
from recipes_lib.views import colour, geometry
from recipes_lib.views.blur import gaussian_blur


@dataclass(frozen=True)
class Look:
    """What happens to the colours of each sample of one view; all on the CPU, where it decides what is computed."""

    order: Tensor
    """int64 [B, 4]: the jitters in turn, as :func:`colour.color_jitter` takes them."""
    factors: Tensor
    """float [B, 4]: brightness, contrast, saturation, hue."""
    grayscale: Tensor
    """bool [B]."""
    sigma: Tensor
    """float [B]: the blur's deviation in pixels; 0: none."""
    solarize: Tensor
    """bool [B]."""
    threshold: Tensor
    """float [B]: the brightness that solarising inverts from."""
    equalize: Tensor
    """bool [B]."""
    invert: Tensor
    """bool [B]."""
    channels: Tensor
    """int64 [B, 3]: the order of red, green and blue."""
    degrees: Tensor
    """float [B]: turn, counter-clockwise."""

    def split(self, parts: list[Tensor]) -> list["Look"]:
        """The looks of some samples after another, by their numbers."""
        together, sizes = torch.cat(parts), [len(part) for part in parts]
        fields = {name: values[together].split(sizes) for name, values in vars(self).items()}
        return [Look(**dict(zip(fields, values, strict=True))) for values in zip(*fields.values(), strict=True)]


_EVENTS = 6
LOOK_DRAWS = _EVENTS + 4 + 4 + 1 + 3 + 1
"""Uniform draws that one look takes. Whether to equalise, and where to solarise, came later: draws of their own leave these
as they were."""

_NEUTRAL = torch.tensor([1.0, 1.0, 1.0, 0.0])
_LEAST = torch.tensor([0.0, 0.0, 0.0, -0.5])


def look_from(config: ViewsConfig, draws: Tensor, equalize: Tensor, threshold: Tensor) -> Look:
    """The looks that uniform draws [B, ``LOOK_DRAWS``], [B, 1] and [B, 1] stand for."""
    events, factors, order, sigma, channels, degrees = draws.split([_EVENTS, 4, 4, 1, 3, 1], dim=1)
    likely = [config.jitter, config.grayscale, config.blur, config.solarize, config.invert, config.shuffle_channels]
    jitter, grayscale, blur, solarize, invert, shuffle = (events < torch.tensor(likely)).unbind(dim=1)
    strength = torch.tensor([config.brightness, config.contrast, config.saturation, config.hue])
    order = order.argsort(dim=1, stable=True)
    low, high = config.blur_sigma
    dark, bright = config.solarize_threshold
    return Look(
        order=order.masked_fill(~jitter[:, None] | (strength == 0)[order], colour.NOTHING),
        factors=torch.maximum(_NEUTRAL + strength * (2 * factors - 1), _LEAST),
        grayscale=grayscale,
        sigma=(low + (high - low) * sigma[:, 0]) * blur,
        solarize=solarize,
        threshold=dark + (bright - dark) * threshold[:, 0],
        equalize=equalize[:, 0] < config.equalize,
        invert=invert,
        channels=torch.where(shuffle[:, None], channels.argsort(dim=1, stable=True), torch.arange(3)),
        degrees=config.rotate * (2 * degrees[:, 0] - 1),
    )


def develop_(images: Tensor, look: Look) -> Tensor:
    """Gives float images [B, 3, H, W] in [0, 1] their looks, in place; only the samples concerned are computed."""
    _change_(images, look.degrees != 0, lambda some, rows: geometry.rotate(some, look.degrees[rows]))
    colour.color_jitter_(images, look.factors, look.order)
    _change_(images, look.grayscale, lambda some, _: colour.grayscale(some))
    _change_(images, look.sigma > 0, lambda some, rows: gaussian_blur(some, look.sigma[rows]))
    _change_(images, look.solarize, lambda some, rows: colour.solarize(some, look.threshold[rows]))
    _change_(images, look.equalize, lambda some, _: colour.equalize(some))
    _change_(images, look.invert, lambda some, _: colour.invert(some))
    moved = (look.channels != torch.arange(3)).any(dim=1)
    _change_(images, moved, lambda some, rows: colour.shuffle_channels(some, look.channels[rows]))
    return images


def _change_(images: Tensor, chosen: Tensor, change: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Replaces the images where ``chosen`` bool [B] is set by ``change(those images, their numbers)``."""
    rows = chosen.nonzero()[:, 0]
    if len(rows) == len(images):
        images.copy_(change(images, rows))
    elif len(rows):
        there = rows.to(images.device)
        images.index_copy_(0, there, change(images.index_select(0, there), rows))
