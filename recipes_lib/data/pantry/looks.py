# SPDX-License-Identifier: Apache-2.0
"""The last step of rendering: the occluding card, the conversion to pixel values, and the style."""

import torch
from torch import Tensor

from recipes_lib.data.pantry.factors import STYLES, Factors
from recipes_lib.data.pantry.marching import cos_sin
from recipes_lib.data.pantry.surfaces import Colour


def develop(canvas: Colour, factors: Factors, size: int) -> Tensor:
    """Converts three planes of linear light, [images, size * size] each, to pictures uint8 [images, 3, size, size]."""
    light = torch.stack([plane.view(-1, size, size) for plane in canvas], 1)
    _cover(light, factors)
    steps = (2 * torch.arange(size, device=light.device, dtype=torch.float32) + 1) / size - 1
    away = steps[None, :] * steps[None, :] + steps[:, None] * steps[:, None]
    light = light * (1 - 0.12 * away)  # a lens is darker towards its corners
    film = light.clamp(0, 1).sqrt()  # square root: close to the sRGB curve, and exactly rounded
    for position, name in enumerate(STYLES):
        rows = (factors.style == position).nonzero()[:, 0]
        if name != "photo" and len(rows):
            film[rows] = _styled(film[rows], name)
    return (film * 255 + 0.5).to(torch.uint8)


def _cover(light: Tensor, factors: Factors) -> None:
    """Paints a tilted, blurred card over the images with an occluder, in place; ``light`` [images, 3, size, size]."""
    rows = (factors.occluder == 1).nonzero()[:, 0]
    if not len(rows):
        return
    share = card_share(factors.select(rows), light.shape[-1])[:, None]
    colour = factors.occluder_colour[rows, :, None, None]
    light[rows] = light[rows] + (0.7 * colour * colour - light[rows]) * share


def card_share(factors: Factors, side: int) -> Tensor:
    """The share of each pixel that the occluding card hides, if there is one: [images, side, side]."""
    steps = (2 * torch.arange(side, device=factors.size.device, dtype=torch.float32) + 1) / side - 1
    x = steps[None, None, :] - factors.occluder_position[:, 0, None, None]
    y = -steps[None, :, None] - factors.occluder_position[:, 1, None, None]
    half = factors.occluder_size[:, None, None]
    cosine, sine = cos_sin(torch.tensor(20.0, device=factors.size.device))
    across, up = (cosine * x + sine * y).abs() - 0.7 * half, (cosine * y - sine * x).abs() - half
    return (0.5 - across.maximum(up) / 0.16).clamp(0, 1)


def _styled(film: Tensor, style: str) -> Tensor:
    """The pictures [n, 3, size, size] in [0, 1] in the style poster, sketch or dusk."""
    match style:
        case "poster":
            bright = film.amax(1, keepdim=True).clamp_min(1e-3)
            return (film * (((4 * bright).floor() + 0.7) / 4 / bright)).clamp(0, 1)
        case "sketch":
            grey = 0.3 * film[:, 0] + 0.6 * film[:, 1] + 0.1 * film[:, 2]
            reach = max(1, film.shape[-1] // 64)
            padded = torch.nn.functional.pad(grey[:, None], (reach, reach, reach, reach), mode="replicate")[:, 0]
            down = padded[:, 2 * reach :, reach:-reach] - padded[:, : -2 * reach, reach:-reach]
            right = padded[:, reach:-reach, 2 * reach :] - padded[:, reach:-reach, : -2 * reach]
            line = ((down * down + right * right).sqrt() * 3.0 - 0.15).clamp(0, 1)
            paper = torch.tensor([0.98, 0.96, 0.91], device=film.device)[:, None, None]
            return paper * ((0.72 + 0.28 * grey) * (1 - 0.85 * line))[:, None]
        case "dusk":
            tint = torch.tensor([0.55, 0.62, 0.82], device=film.device)[:, None, None]
            return film * film * tint + 0.04
    raise ValueError(f"style = {style!r} is none of {STYLES}")
