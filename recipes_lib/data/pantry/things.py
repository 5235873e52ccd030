# SPDX-License-Identifier: Apache-2.0
"""The contents of pictures: their stage (camera and lamp, one row per image) and objects (one row per object)."""

from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor

from recipes_lib.data.pantry.factors import CLASSES, MATERIALS, Factors
from recipes_lib.data.pantry.marching import Camera, Points, cos_sin, places
from recipes_lib.data.pantry.shapes import BOUNDS

_EXTRA_SIZE, _EXTRA_AWAY = 0.62, 1.35  # size and distance of further objects, in sizes of the main object


class Stage(NamedTuple):
    """The camera and lamp of N pictures, and the pictures' side in pixels."""

    camera: Camera
    light: Points
    """Unit directions towards the lamp: [N]."""
    lamp: tuple[Tensor, ...]
    """Strength of the lamp in each colour: three [N]."""
    ray: Points
    """Unit directions through the centres of the pixels: [N, size * size]."""
    size: int
    """Side of the pictures in pixels."""

    @classmethod
    def of(cls, factors: Factors, size: int) -> "Stage":
        """The stage of ``factors``; the camera looks at a point a little below the centre of the main object."""
        heights = torch.tensor([BOUNDS[name][4] for name in CLASSES], device=factors.size.device)
        target = 0.46 * factors.size * heights[factors.label]
        (cosine, sine), (cos_up, sin_up) = cos_sin(factors.light_azimuth), cos_sin(factors.light_elevation)
        camera = Camera.of(factors.elevation, factors.roll, factors.position, target)
        return cls(
            camera,
            Points(cos_up * cosine, sin_up, cos_up * sine),
            (factors.light_strength[:, None] * factors.light_colour).unbind(1),
            camera.rays(*places(size, target.device)),
            size,
        )


@dataclass(frozen=True)
class Things:
    """M objects, with the image of each; fields that also exist in ``Factors`` have the same meaning."""

    image: Tensor
    """int64 [M]: the object's image, a row of ``Factors``."""
    layer: Tensor
    """int64 [M]: 0 for the farthest object of its image, which is painted first."""
    label: Tensor
    size: Tensor
    x: Tensor
    """Position on the table, to the right: [M]."""
    z: Tensor
    """Position on the table, towards the camera: [M]."""
    azimuth: Tensor
    instance: Tensor
    material: Tensor
    colour: Tensor
    trim_colour: Tensor
    pattern: Tensor
    pattern_colour: Tensor

    def take(self, rows: Tensor) -> "Things":
        """The objects at ``rows`` (int64 [m])."""
        return Things(**{name: value[rows] for name, value in vars(self).items()})

    def points(self, points: Points, rows: Tensor | None = None) -> Points:
        """Converts points from the picture's space to the objects' own coordinates, whose unit is the object's size.

        With ``rows`` int64 [n], the objects of n points, the points are [n]; without it they are [M, ...], one row per
        object.
        """
        scale, x, z = _each(points.y, rows, 1 / self.size, self.x, self.z)
        return self.directions(Points((points.x - x) * scale, points.y * scale, (points.z - z) * scale), rows)

    def directions(self, directions: Points, rows: Tensor | None = None) -> Points:
        """Converts directions from the picture's space to the objects' own coordinates; ``rows`` as for ``points``."""
        return directions.turned(*_each(directions.y, rows, *cos_sin(self.azimuth)))

    def shapes(self, rows: Tensor) -> tuple[Tensor, ...]:
        """The shape parameters of the objects at ``rows`` (int64 [n]): four contiguous tensors [n]."""
        return self.instance.mT.contiguous().index_select(1, rows).unbind(0)


def _each(like: Tensor, rows: Tensor | None, *values: Tensor) -> tuple[Tensor, ...]:
    """Values [M], gathered by ``rows``, or reshaped so that they broadcast with ``like`` [M, ...]."""
    if rows is not None:
        return tuple(value.index_select(0, rows) for value in values)
    return tuple(value.view(-1, *[1] * (like.ndim - 1)) for value in values)


def things_of(factors: Factors) -> Things:
    """All objects of the images, the main ones first."""
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
    """The fields of further objects, which are glossy, without a pattern and of average shape."""
    colour = 0.35 + 0.45 * hue_colour(factors.extra_hue[:, slot])
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
    """The pure colour of a hue, once around the colour circle.  [...] in [0, 1] -> [..., 3]"""
    turn = hue[..., None] + torch.tensor([0.0, 2 / 3, 1 / 3], device=hue.device)
    return ((6 * (turn - turn.floor()) - 3).abs() - 1).clamp(0, 1)
