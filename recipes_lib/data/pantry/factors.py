# SPDX-License-Identifier: Apache-2.0
"""What a picture of the Pantry is made of: its true factors, as a struct of arrays.

An image is a function of its factors and of nothing else, so a caller asks a causal question by changing one field
and rendering again: ``render(fix(factors, style="sketch"), 64)``.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from recipes_lib.data.pantry.shapes import SHAPES
from recipes_lib.errors import nearest
from recipes_lib.randomness import sample_keys, uniform

CLASSES = tuple(SHAPES)
MATERIALS = ("matte", "glossy", "metal", "glass")
PATTERNS = ("plain", "bands", "stripes", "dots", "checks")
BACKGROUNDS = ("worktop", "wood", "tiles", "cloth", "marble", "boards")
STYLES = ("photo", "poster", "sketch", "dusk")

NAMES: dict[str, tuple[str, ...]] = {
    "label": CLASSES,
    "material": MATERIALS,
    "pattern": PATTERNS,
    "background": BACKGROUNDS,
    "style": STYLES,
    "extra_label": CLASSES,
}
"""Fields that hold the position of a name in a list."""

_ANGLE, _SHARE = (-360.0, 360.0), (0.0, 1.0)
RANGES: dict[str, tuple[float, float]] = {
    **{field: (0, len(names) - 1) for field, names in NAMES.items()},
    "instance": _SHARE,
    "colour": _SHARE,
    "trim_colour": _SHARE,
    "pattern_colour": _SHARE,
    "azimuth": _ANGLE,
    "elevation": (0.0, 85.0),
    "roll": _ANGLE,
    "position": (-1.0, 1.0),
    "size": (0.1, 1.5),
    "table_colour": _SHARE,
    "wall_colour": _SHARE,
    "light_azimuth": _ANGLE,
    "light_elevation": (15.0, 90.0),
    "light_strength": (0.0, 3.0),
    "light_colour": _SHARE,
    "occluder": (0, 1),
    "occluder_position": (-1.0, 1.0),
    "occluder_size": (0.0, 1.0),
    "occluder_colour": _SHARE,
    "objects": (1, 3),
    "extra_azimuth": _ANGLE,
    "extra_hue": _SHARE,
}
"""Smallest and largest value of every field, both allowed."""


@dataclass(frozen=True)
class Factors:
    """The true factors of N images: a tensor a factor, [N] or [N, k]. Angles in degrees, colours sRGB in [0, 1]."""

    label: Tensor
    """Class of the main object: int64 [N], a position in ``CLASSES``."""
    instance: Tensor
    """Shape parameters of the main object: [N, 4] in [0, 1]."""
    material: Tensor
    """int64 [N], a position in ``MATERIALS``."""
    colour: Tensor
    """Of the body: [N, 3]."""
    trim_colour: Tensor
    """Of handle, lid, stem or leaves: [N, 3]."""
    pattern: Tensor
    """Painted on the body: int64 [N], a position in ``PATTERNS``."""
    pattern_colour: Tensor
    """[N, 3]"""
    azimuth: Tensor
    """Turn of the main object about its upright axis: [N]."""
    elevation: Tensor
    """How far the camera stands above the table, seen from the object: [N] in [0, 85]."""
    roll: Tensor
    """Turn of the picture about its centre: [N]."""
    position: Tensor
    """Where the object's centre appears, right and up, in half image sides: [N, 2] in [-1, 1]. Moves the camera."""
    size: Tensor
    """About the half extent of the object, in half image sides: [N]."""
    background: Tensor
    """Kind of table and wall: int64 [N], a position in ``BACKGROUNDS``."""
    table_colour: Tensor
    """[N, 3]"""
    wall_colour: Tensor
    """[N, 3]"""
    light_azimuth: Tensor
    """Where the light stands, 0 at the right, 90 behind the camera: [N]."""
    light_elevation: Tensor
    """How high the light stands: [N] in [15, 90]."""
    light_strength: Tensor
    """1 is daylight: [N]."""
    light_colour: Tensor
    """[N, 3]"""
    occluder: Tensor
    """1 where a blurred card stands before the scene: int64 [N]."""
    occluder_position: Tensor
    """Centre of the card, right and up, in half image sides: [N, 2]."""
    occluder_size: Tensor
    """Half extent of the card, in half image sides: [N]."""
    occluder_colour: Tensor
    """[N, 3]"""
    objects: Tensor
    """How many objects stand on the table, the main one included: int64 [N] in 1 to 3."""
    extra_label: Tensor
    """Classes of the second and third object: int64 [N, 2]; of no effect where ``objects`` is smaller."""
    extra_azimuth: Tensor
    """Where those stand around the main object, 0 at its right, 90 behind it: [N, 2]. Turns them as well."""
    extra_hue: Tensor
    """Hue of those, once around the colour circle: [N, 2] in [0, 1]."""
    style: Tensor
    """Look of the whole picture: int64 [N], a position in ``STYLES``."""

    def __len__(self) -> int:
        return len(self.label)

    def select(self, indices: Tensor) -> "Factors":
        """The factors of some images, in the order of ``indices`` int64 [M]."""
        return Factors(**{name: value[indices] for name, value in self.to_dict().items()})

    def to_dict(self) -> dict[str, Tensor]:
        """Field name to tensor."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def check(self) -> None:
        """Raises ``ValueError`` with a line for every field of a wrong length or with a value outside its range."""
        lines = []
        for name, value in self.to_dict().items():
            low, high = RANGES[name]
            if len(value) != len(self):
                lines.append(f"factors.{name} has {len(value)} rows; label has {len(self)}. Give one row per image.")
            elif not bool(((value >= low) & (value <= high)).all()):  # nan is caught too
                bad = value[~((value >= low) & (value <= high))][0].item()
                allowed = f" ({', '.join(NAMES[name])})" if name in NAMES else ""
                lines.append(f"factors.{name} holds {bad:g}: use values from {low:g} to {high:g}{allowed}.")
        if lines:
            raise ValueError("\n".join(lines))


def index_of(field: str, name: str) -> int:
    """Position of a class, material, pattern, background or style by its name.

    Raises: ``ValueError`` naming the nearest one that exists.
    """
    if field not in NAMES:
        raise ValueError(f"factors.{field} = {name!r}: this factor takes numbers.")
    if name not in NAMES[field]:
        raise ValueError(f"factors.{field} = {name!r} is not known. {nearest(name, NAMES[field])}")
    return NAMES[field].index(name)


def fix(factors: Factors, **values: str | float | Sequence[float] | Tensor) -> Factors:
    """``factors`` with fields set to one value for all images, or to one per row: ``fix(f, label="mug", roll=0)``.

    A name stands for its position; a number or a row is repeated for every image. Raises: ``ValueError`` for an
    unknown field or name, or a value out of range.
    """
    return dataclasses.replace(factors, **{name: _like(factors, name, value) for name, value in values.items()})


def correlate(
    factors: Factors, field: str, cause: str, table: Sequence, *, share: float = 1.0, seed: int = 0, start: int = 0
) -> Factors:
    """``factors`` with ``field`` tied to another one: a share of the images gets ``table[value of cause]``.

    ``cause`` is a field of names (``label``, ``background``, ...) or a count; ``table`` has a name, number or row for
    each of its values; ``start`` is the position of the first image in the data set, for the draw of who is tied.
    """
    _known(cause)
    values = getattr(factors, cause)
    if values.dtype != torch.int64 or values.ndim != 1:
        raise ValueError(f"cause = {cause!r} is no choice among names. Use one of: {', '.join(NAMES)}.")
    low, high = (int(bound) for bound in RANGES[cause])
    if len(table) != high - low + 1:
        raise ValueError(f"table has {len(table)} entries; {cause} takes {high - low + 1} values. Give one for each.")
    if not 0 <= share <= 1:
        raise ValueError(f"share = {share} is not allowed: use a value in [0, 1].")
    rows = torch.cat([_like(factors, field, entry)[:1] for entry in table])
    keys = sample_keys(seed, 0, start + torch.arange(len(factors)))
    tied = uniform(keys, f"pantry {field} by {cause}", 1)[:, 0] < share
    old = getattr(factors, field)
    tied = tied.view(-1, *[1] * (old.ndim - 1))
    return dataclasses.replace(factors, **{field: torch.where(tied, rows[values - low], old)})


def _known(field: str) -> None:
    if field not in RANGES:
        raise ValueError(f"There is no factor {field!r}. {nearest(field, RANGES)}")


def _like(factors: Factors, field: str, value: str | float | Sequence[float] | Tensor) -> Tensor:
    """``value`` as a tensor of the field's type, one row per image, checked."""
    _known(field)
    old = getattr(factors, field)
    if isinstance(value, str):
        value = index_of(field, value)
    new = torch.as_tensor(value, dtype=old.dtype, device=old.device)
    row = list(old.shape[1:])
    if list(new.shape) not in ([], row, list(old.shape)):
        raise ValueError(f"factors.{field} has shape {list(new.shape)}: use {list(old.shape)}, or {row} for all.")
    new = new.expand(old.shape).clone()
    low, high = RANGES[field]
    bad = new[~((new >= low) & (new <= high))]
    if bad.numel():
        raise ValueError(f"factors.{field} holds {bad[0].item():g}: use values from {low:g} to {high:g}.")
    return new
