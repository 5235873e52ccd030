# SPDX-License-Identifier: Apache-2.0
"""The true factors of pictures of the Pantry, as a struct of arrays.

An image is a function of its factors only. So one asks a causal question by changing one field and rendering again:
``render(fix(factors, style="sketch"), 64)``.
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
"""The fields that hold the position of a name in a list, and that list."""

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
    """The true factors of N images: one tensor per factor, [N] or [N, k]. Angles in degrees, colours sRGB in [0, 1]."""

    label: Tensor
    """Class of the main object: int64 [N], a position in ``CLASSES``."""
    instance: Tensor
    """Shape parameters of the main object: [N, 4] in [0, 1]."""
    material: Tensor
    """Material of the main object: int64 [N], a position in ``MATERIALS``."""
    colour: Tensor
    """Colour of the body: [N, 3]."""
    trim_colour: Tensor
    """Colour of handle, lid, stem or leaves: [N, 3]."""
    pattern: Tensor
    """Pattern painted on the body: int64 [N], a position in ``PATTERNS``."""
    pattern_colour: Tensor
    """Colour of the pattern: [N, 3]."""
    azimuth: Tensor
    """Rotation of the main object about its upright axis: [N]."""
    elevation: Tensor
    """Angle of the camera above the table, seen from the object: [N] in [0, 85]."""
    roll: Tensor
    """Rotation of the picture about its centre: [N]."""
    position: Tensor
    """Position of the object's centre in the picture, right and up, in half image sides: [N, 2] in [-1, 1]. It moves
    the camera."""
    size: Tensor
    """About half the extent of the object, in half image sides: [N]."""
    background: Tensor
    """Kind of table and wall: int64 [N], a position in ``BACKGROUNDS``."""
    table_colour: Tensor
    """Colour of the table: [N, 3]."""
    wall_colour: Tensor
    """Colour of the wall: [N, 3]."""
    light_azimuth: Tensor
    """Direction of the light, 0 at the right, 90 behind the camera: [N]."""
    light_elevation: Tensor
    """Angle of the light above the table: [N] in [15, 90]."""
    light_strength: Tensor
    """Strength of the light, 1 is daylight: [N]."""
    light_colour: Tensor
    """Colour of the light: [N, 3]."""
    occluder: Tensor
    """1 if a blurred card covers part of the scene, else 0: int64 [N]."""
    occluder_position: Tensor
    """Centre of the card, right and up, in half image sides: [N, 2]."""
    occluder_size: Tensor
    """Half the extent of the card, in half image sides: [N]."""
    occluder_colour: Tensor
    """Colour of the card: [N, 3]."""
    objects: Tensor
    """Number of objects on the table, with the main one: int64 [N] in 1 to 3."""
    extra_label: Tensor
    """Classes of the second and third object: int64 [N, 2]; without effect for objects beyond ``objects``."""
    extra_azimuth: Tensor
    """Directions of the second and third object from the main one, 0 at its right, 90 behind it: [N, 2]. They are also
    rotated by this angle."""
    extra_hue: Tensor
    """Hues of the second and third object, once around the colour circle: [N, 2] in [0, 1]."""
    style: Tensor
    """Look of the whole picture: int64 [N], a position in ``STYLES``."""

    def __len__(self) -> int:
        return len(self.label)

    def select(self, indices: Tensor) -> "Factors":
        """The factors of the images at ``indices`` (int64 [M]), in that order."""
        return Factors(**{name: value[indices] for name, value in self.to_dict().items()})

    def to_dict(self) -> dict[str, Tensor]:
        """The factors as a dict: field name -> tensor."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def check(self) -> None:
        """Raises ``ValueError`` with one line per field that has a wrong length or a value outside its range."""
        lines = []
        for name, value in self.to_dict().items():
            low, high = RANGES[name]
            if len(value) != len(self):
                lines.append(f"factors.{name} has {len(value)} rows; label has {len(self)}. Give one row per image.")
            elif not bool(((value >= low) & (value <= high)).all()):  # comparisons with NaN are False
                bad = value[~((value >= low) & (value <= high))][0].item()
                allowed = f" ({', '.join(NAMES[name])})" if name in NAMES else ""
                lines.append(f"factors.{name} holds {bad:g}: use values from {low:g} to {high:g}{allowed}.")
        if lines:
            raise ValueError("\n".join(lines))


def index_of(field: str, name: str) -> int:
    """The position of a class, material, pattern, background or style by its name.

    Raises: ``ValueError`` with the nearest name that exists.
    """
    if field not in NAMES:
        raise ValueError(f"factors.{field} = {name!r}: this factor takes numbers.")
    if name not in NAMES[field]:
        raise ValueError(f"factors.{field} = {name!r} is not known. {nearest(name, NAMES[field])}")
    return NAMES[field].index(name)


def fix(factors: Factors, **values: str | float | Sequence[float] | Tensor) -> Factors:
    """Sets fields of ``factors`` to one value for all images, or to one per image: ``fix(f, label="mug", roll=0)``.

    A name stands for its position; a number or a row is repeated for every image.

    Raises: ``ValueError`` for an unknown field or name, or a value out of range.
    """
    return dataclasses.replace(factors, **{name: _like(factors, name, value) for name, value in values.items()})


def correlate(
    factors: Factors, field: str, cause: str, table: Sequence, *, share: float = 1.0, seed: int = 0, start: int = 0
) -> Factors:
    """Ties ``field`` to another field ``cause``: in the share ``share`` of the images it becomes ``table[cause]``.

    ``cause`` is a field of names (``label``, ``background``, ...) or a count. ``table`` has a name, number or row for
    each of its values. ``start`` is the position of the first image in the data set, from which it is drawn whether an
    image is tied.
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
    """Converts ``value`` to a tensor of the field's type with one row per image, and checks its range."""
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
