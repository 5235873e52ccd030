# SPDX-License-Identifier: Apache-2.0
"""The look of a view: draws which operations change the pixels of each sample and how strongly, and applies them.

The order of the operations is that of torchvision's usual pipeline: (rotate,) jitter, greyscale, blur, solarise,
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
    """The parameters of the pixel operations for each sample of one view.

    All tensors are on the CPU, because they decide what is computed.
    """

    order: Tensor
    """int64 [B, 4]: the order of the jitter operations, as :func:`colour.color_jitter` takes it."""
    factors: Tensor
    """float [B, 4]: factors of brightness, contrast and saturation, and the shift of the hue."""
    grayscale: Tensor
    """bool [B]: whether the image becomes grey."""
    sigma: Tensor
    """float [B]: the blur's standard deviation in pixels; 0 means no blur."""
    solarize: Tensor
    """bool [B]: whether the image is solarised."""
    threshold: Tensor
    """float [B], in [0, 1]: the value from which on solarising inverts."""
    equalize: Tensor
    """bool [B]: whether the histogram is equalised."""
    invert: Tensor
    """bool [B]: whether the image is inverted."""
    channels: Tensor
    """int64 [B, 3]: the order of red, green and blue."""
    degrees: Tensor
    """float [B]: the rotation, counter-clockwise, in degrees."""

    def split(self, parts: list[Tensor]) -> list["Look"]:
        """Splits the look: one look for each of ``parts``, which are int64 tensors of sample numbers."""
        together, sizes = torch.cat(parts), [len(part) for part in parts]
        fields = {name: values[together].split(sizes) for name, values in vars(self).items()}
        return [Look(**dict(zip(fields, values, strict=True))) for values in zip(*fields.values(), strict=True)]


_EVENTS = 6
LOOK_DRAWS = _EVENTS + 4 + 4 + 1 + 3 + 1
"""Uniform random numbers per look: 6 for which operations happen, 4 for the factors, 4 for the order, 1 for sigma, 3
for the channels, 1 for the rotation. Equalising and the solarisation threshold were added later and draw their own, so
that the numbers of older runs stay the same."""

_NEUTRAL = torch.tensor([1.0, 1.0, 1.0, 0.0])
_LEAST = torch.tensor([0.0, 0.0, 0.0, -0.5])


def look_from(config: ViewsConfig, draws: Tensor, equalize: Tensor, threshold: Tensor) -> Look:
    """Computes the looks from uniform random numbers in [0, 1).

    Shapes: ``draws`` [B, ``LOOK_DRAWS``], ``equalize`` and ``threshold`` [B, 1].
    """
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
    """Applies the looks to float images [B, 3, H, W] in [0, 1], in place; each operation runs on its samples only."""
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
    """Replaces, in place, the images where ``chosen`` (bool [B]) is set by ``change(those images, their numbers)``."""
    rows = chosen.nonzero()[:, 0]
    if len(rows) == len(images):
        images.copy_(change(images, rows))
    elif len(rows):
        there = rows.to(images.device)
        images.index_copy_(0, there, change(images.index_select(0, there), rows))
