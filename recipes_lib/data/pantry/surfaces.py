# SPDX-License-Identifier: Apache-2.0
"""The appearance of surfaces: painted patterns, tables and walls, and the reflection of light by materials.

Colours here are linear light, as lists of three tensors (red, green, blue) with one value per point. Edges of patterns
are blurred over the width of a pixel, so that they do not flicker at small sizes. Arithmetic is exactly rounded, see
``shapes``.
"""

import torch
from torch import Tensor

from recipes_lib.data.pantry.factors import BACKGROUNDS, MATERIALS, PATTERNS
from recipes_lib.data.pantry.marching import Points, less

Colour = list[Tensor]


def fraction(x: Tensor) -> Tensor:
    """The fractional part, in [0, 1)."""
    return x - x.floor()


def _wave(x: Tensor) -> Tensor:
    """A triangle wave of period 1: 0 at whole numbers, 1 halfway between them."""
    return 1 - (2 * fraction(x) - 1).abs()


def _smooth(x: Tensor) -> Tensor:
    """A smooth step that maps [0, 1] to [0, 1] with slope 0 at both ends."""
    return x * x * (3 - 2 * x)


def _edge(x: Tensor, width: Tensor | float) -> Tensor:
    """A linear step from 0 to 1 over ``width``, with 1/2 at 0."""
    return (x / width + 0.5).clamp(0, 1)


def _turn(x: Tensor, z: Tensor) -> Tensor:
    """The angle about the y axis in full turns, in [-0.5, 0.5], by a polynomial within 0.0001 of the arc tangent."""
    flat, steep = x.abs().minimum(z.abs()), x.abs().maximum(z.abs()).clamp_min(1e-9)
    m = flat / steep
    q = m * m
    angle = m * (0.15913 + q * (-0.052568 + q * (0.02867 + q * (-0.013549 + q * 0.003316))))
    angle = angle + less(x.abs(), z.abs()) * (0.25 - 2 * angle)
    angle = angle + less(x, 0.0) * (0.5 - 2 * angle)
    return angle * (1 - 2 * less(z, 0.0))


def pattern_share(kind: Tensor, owner: Tensor, points: Points, along: str, width: Tensor) -> Tensor:
    """The share of the pattern's colour at points of the body: [points] in [0, 1].

    ``kind``: int64 [objects], positions in ``PATTERNS``; ``owner``: each point's object, a row of ``kind``; ``along``:
    an entry of ``shapes.ALONG``; ``width``: the width of a pixel at the point.
    """
    x, y, z = points
    match along:
        case "x":
            height, turn = x, _turn(y - 0.2, z)
        case "r":
            height, turn = (x * x + z * z).sqrt(), _turn(x, z)
        case _:
            height, turn = y, _turn(x, z)
    soft = (4 * width).clamp_min(0.06)
    rows, columns = 3.5 * height, 10 * turn
    band, stripe = _wave(rows) - 0.5, _wave(columns) - 0.5
    share = torch.zeros_like(height)
    for pattern in set(kind.tolist()) - {PATTERNS.index("plain")}:
        match PATTERNS[pattern]:
            case "bands":
                inside = _edge(band, soft)
            case "stripes":
                inside = _edge(stripe, soft)
            case "checks":
                inside = _edge(4 * band * stripe, 2 * soft)
            case "dots":
                shift = 0.5 * (rows.floor() - 2 * (rows / 2).floor())  # shifts every other row by half a period
                u, v = fraction(rows) - 0.5, fraction(columns + shift) - 0.5
                inside = _edge(0.3 - (u * u + v * v).sqrt(), soft)
        share = share + inside * (kind == pattern).float().index_select(0, owner)
    return share


def table(kind: str, x: Tensor, z: Tensor, width: Tensor) -> tuple[Tensor, Tensor | float]:
    """The tone of the table at points, a factor of its colour, and the share of paler cloth: [points] each."""
    match kind:
        case "wood":
            plank = (z * 1.4).floor()
            tone = 0.78 + 0.3 * fraction(plank * 0.618)
            grain = _wave(z * 4.3 + 0.35 * _wave(x * 0.35 + plank * 0.37) + plank * 0.29)
            seam = _edge((fraction(z * 1.4) - 0.5).abs() - 0.47, 3 * width)
            return (tone + 0.16 * grain) * (1 - 0.55 * seam), 0.0
        case "cloth":
            soft = (6 * width).clamp_min(0.08)
            across, down = _edge(_wave(x * 1.1) - 0.5, soft), _edge(_wave(z * 1.1) - 0.5, soft)
            return 1.0 + 0 * x, 0.85 - 0.425 * (across + down)
        case "marble":
            bent = x * 0.6 + z * 0.4 + 0.8 * _smooth(_wave(z * 0.31 + 0.2)) + 0.4 * _smooth(_wave(x * 0.7 - z * 0.37))
            vein = _smooth(_wave(bent)) * _smooth(_wave(bent * 1.7 + 0.3 * z + 0.2 * x))
            return 1.05 - 0.45 * (1 - vein.sqrt()) * (1 - vein.sqrt()), 0.0
        case "tiles":
            return 0.95 + 0.1 * _wave(x * 0.21 + 0.3 * z), 0.0
        case "boards":
            return 0.9 + 0.12 * _wave(x * 1.7 + 0.2 * _wave(z * 0.6)), 0.0
        case "worktop":
            return 0.93 + 0.07 * _wave(3.1 * x + 1.7 * z) * _wave(2.3 * x - 2.9 * z), 0.0
    raise ValueError(f"background = {kind!r} is none of {BACKGROUNDS}")


def wall(kind: str, x: Tensor, y: Tensor, width: Tensor) -> Tensor:
    """The tone of the wall at points, a factor of its colour: [points]."""
    match kind:
        case "tiles":
            row = (y * 1.6).floor()
            shift = 0.5 * (row - 2 * (row / 2).floor())
            joint = (fraction(y * 1.6) - 0.5).abs().maximum((fraction(x * 0.9 + shift) - 0.5).abs() - 0.02)
            tone = 0.93 + 0.12 * fraction((x * 0.9 + shift).floor() * 0.618 + row * 0.382)
            return tone * (1 - 0.4 * _edge(joint - 0.455, 3 * width))
        case "boards":
            board = (x * 1.3).floor()
            seam = _edge((fraction(x * 1.3) - 0.5).abs() - 0.46, 3 * width)
            return (0.88 + 0.18 * fraction(board * 0.618)) * (1 - 0.5 * seam)
        case _:
            return 0.94 + 0.06 * (0.4 * y).clamp(0, 1)


# per material: strength of the highlight, its tightness (0 wide, 1 tight), share of mirror, share of glass
_TRAITS = {"matte": (0.03, 0.0, 0.0, 0.0), "glossy": (0.55, 1.0, 0.06, 0.0), "metal": (1.1, 0.7, 0.8, 0.0),
           "glass": (1.0, 1.0, 0.12, 1.0)}  # fmt: skip


def traits(material: Tensor) -> tuple[Tensor, ...]:
    """Highlight, tightness, mirror and glass of each material.  int64 [n] -> four of [n]"""
    table_ = material.new_tensor([_TRAITS[name] for name in MATERIALS], dtype=None).float()
    return table_[material].unbind(-1)


def shade(
    albedo: Colour,
    normal: Points,
    view: Points,
    light: Points,
    light_colour: Colour,
    open_: Tensor,
    material: tuple[Tensor, ...],
) -> tuple[Colour, Tensor]:
    """The light that a surface sends to the camera, and its opacity there; all tensors are [points].

    ``view`` points away from the camera and ``light`` towards the lamp, both of length 1; ``light_colour`` contains the
    lamp's strength. ``open_`` in [0, 1] is 1 if nothing around shades the point. The surroundings are a sky with a
    gradient.

    Source: Blinn's halfway vector.
    """
    highlight, tightness, mirror, glass = material
    lit = normal.dot(light).clamp_min(0) * (0.35 + 0.65 * open_)
    sky = (0.42 + 0.2 * normal.y) * open_
    half = Points(light.x - view.x, light.y - view.y, light.z - view.z).unit()
    shine = half.dot(normal).clamp_min(0)
    for _ in range(3):
        shine = shine * shine  # to the 8th power
    broad, tight = shine, shine * shine * shine * shine
    shine = (broad + (tight * tight - broad) * tightness) * highlight * open_
    facing = -view.dot(normal)
    mirrored = (view.y + 2 * facing * normal.y).clamp(-1, 1)  # height of the mirrored ray
    room = (0.12 + 1.05 * (0.55 * mirrored + 0.42).clamp(0, 1)) * (0.3 + 0.7 * open_)
    rim = 1 - facing.clamp(0, 1)
    rim = rim * rim
    colour = []
    for channel, lamp in zip(albedo, light_colour, strict=True):
        painted = channel * (lamp * lit * 0.95 + sky)
        # a metal tints its reflection, a glaze does not: the share of white rises towards the rim
        polished = room * (channel + (1 - channel) * rim * 0.5)
        colour.append(painted + (polished - painted) * (mirror + (1 - mirror) * 0.3 * rim * mirror) + shine * lamp)
    opacity = 1 - glass * (0.62 - 0.55 * rim - shine.clamp(0, 0.5))
    return colour, opacity.clamp(0, 1)
