# SPDX-License-Identifier: Apache-2.0
"""The objects that stand on the tables of some images: one row an object, instead of one row an image."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from recipes_lib.data.pantry.factors import MATERIALS, Factors
from recipes_lib.data.pantry.marching import Points, cos_sin

_EXTRA_SIZE, _EXTRA_AWAY = 0.62, 1.35  # of further objects: share of the main one's size, distance in its sizes


@dataclass(frozen=True)
class Things:
    """Objects, each with the position of its image; the fields that ``Factors`` has too mean the same."""

    image: Tensor
    """int64 [M], the row of ``Factors`` that it belongs to."""
    layer: Tensor
    """int64 [M]: 0 for the farthest object of its image, which is painted first."""
    label: Tensor
    size: Tensor
    x: Tensor
    """Place on the table, to the right: [M]."""
    z: Tensor
    """Place on the table, towards the camera: [M]."""
    azimuth: Tensor
    instance: Tensor
    material: Tensor
    colour: Tensor
    trim_colour: Tensor
    pattern: Tensor
    pattern_colour: Tensor

    def take(self, rows: Tensor) -> "Things":
        """Some of the objects: ``rows`` int64 [m]."""
        return Things(**{name: value[rows] for name, value in vars(self).items()})

    def seen_from(self, points: Points, *, directions: bool = False) -> Points:
        """Points (or directions) of the picture's space in each object's own: [M, n] or [M, 1] each."""
        if not directions:
            scale = 1 / self.size[:, None]
            points = Points(
                (points.x - self.x[:, None]) * scale, points.y * scale, (points.z - self.z[:, None]) * scale
            )
        cosine, sine = cos_sin(self.azimuth)
        return points.turned(cosine[:, None], sine[:, None])


def things_of(factors: Factors) -> Things:
    """All objects of some images, the main ones first."""
    zero = torch.zeros_like(factors.size)
    cosine, sine = cos_sin(factors.extra_azimuth)
    away = _EXTRA_AWAY * factors.size[:, None]
    x = torch.cat([zero[:, None], away * cosine], 1)  # [N, 3]
    z = torch.cat([zero[:, None], -away * sine], 1)
    slots = torch.arange(3, device=z.device)
    there = slots < factors.objects[:, None]
    layer = z.masked_fill(~there, torch.inf).argsort(dim=1, stable=True).argsort(dim=1)
    parts = []
    for slot in range(3):
        rows = there[:, slot].nonzero()[:, 0]
        looks = _main(factors) if slot == 0 else _extra(factors.select(rows), slot - 1)
        parts.append(Things(image=rows, layer=layer[rows, slot], x=x[rows, slot], z=z[rows, slot], **looks))
    return Things(**{field.name: torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Things)})


def _main(factors: Factors) -> dict[str, Tensor]:
    names = ("label", "size", "azimuth", "instance", "material", "colour", "trim_colour", "pattern", "pattern_colour")
    return {name: getattr(factors, name) for name in names}


def _extra(factors: Factors, slot: int) -> dict[str, Tensor]:
    """A further object: a glazed, plain one of average shape."""
    colour = 0.2 + 0.65 * hue_colour(factors.extra_hue[:, slot])
    return {
        "label": factors.extra_label[:, slot],
        "size": _EXTRA_SIZE * factors.size,
        "azimuth": factors.extra_azimuth[:, slot],
        "instance": torch.full_like(factors.instance, 0.5),
        "material": torch.full_like(factors.label, MATERIALS.index("glossy")),
        "colour": colour,
        "trim_colour": 0.6 * colour,
        "pattern": torch.zeros_like(factors.label),
        "pattern_colour": colour,
    }


def hue_colour(hue: Tensor) -> Tensor:
    """Pure colour of a hue, once around the circle: [...] in [0, 1] -> [..., 3]."""
    turn = hue[..., None] + torch.tensor([0.0, 2 / 3, 1 / 3], device=hue.device)
    return ((6 * (turn - turn.floor()) - 3).abs() - 1).clamp(0, 1)
