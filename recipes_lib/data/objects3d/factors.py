# SPDX-License-Identifier: Apache-2.0
"""The true factors of images of 3-D objects, as a struct of arrays. An image is a function of its factors only."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from recipes_lib.errors import nearest
from recipes_lib.randomness import sample_keys, uniform

MESHES = 1000
"""Number of meshes."""
BACKGROUNDS = ("plain", "fade", "stripes", "checks", "clouds")

_ANGLE, _SHARE = (-360.0, 360.0), (0.0, 1.0)
RANGES: dict[str, tuple[float, float]] = {
    "mesh": (0, MESHES - 1),
    "stretch": (0.5, 2.0),
    "colour": _SHARE,
    "azimuth": _ANGLE,
    "elevation": _ANGLE,
    "roll": _ANGLE,
    "position": (-1.0, 1.0),
    "size": (0.1, 1.5),
    "background": (0, len(BACKGROUNDS) - 1),
    "background_colours": _SHARE,
    "background_layout": _SHARE,
    "light_azimuth": _ANGLE,
    "light_elevation": (-90.0, 90.0),
    "light_colour": _SHARE,
}
"""Smallest and largest value of every field, both allowed."""


@dataclass(frozen=True)
class Factors:
    """The true factors of N images: one tensor per factor, [N] or [N, k]. Angles in degrees, colours sRGB in [0, 1]."""

    mesh: Tensor
    """The object's shape: int64 [N] in [0, 1000)."""
    stretch: Tensor
    """Factors by which the mesh is stretched along its own axes: [N, 3]. With ``colour``, they make the instance."""
    colour: Tensor
    """Colour of the object: [N, 3]."""
    azimuth: Tensor
    """Rotation of the object about its own upright axis: [N]."""
    elevation: Tensor
    """Tilt of the object towards the camera, after the azimuth: [N]. At 90 it is seen from above."""
    roll: Tensor
    """Rotation of the object in the image plane, anticlockwise, after the other two: [N]."""
    position: Tensor
    """The object's centre, right and up, in half image sides: [N, 2]. It shows no other side of the object."""
    size: Tensor
    """Radius of the smallest sphere about the object's centre that holds it, in half image sides: [N]."""
    background: Tensor
    """Kind of background: int64 [N], a position in ``BACKGROUNDS``."""
    background_colours: Tensor
    """The background's two colours: [N, 6]. ``plain`` shows the first only."""
    background_layout: Tensor
    """Direction, scale and shift of the background's pattern, as shares of their ranges: [N, 3]."""
    light_azimuth: Tensor
    """Direction of the light, relative to the camera, 0 at the right, 90 behind the camera: [N]."""
    light_elevation: Tensor
    """Angle of the light above the camera's horizon: [N]."""
    light_colour: Tensor
    """Factors by which the light multiplies the whole image, the background too: [N, 3]."""

    def __len__(self) -> int:
        return len(self.mesh)

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
                lines.append(f"factors.{name} has {len(value)} rows; mesh has {len(self)}. Give one row per image.")
            elif not bool(((value >= low) & (value <= high)).all()):  # comparisons with NaN are False
                bad = value[~((value >= low) & (value <= high))][0].item()
                lines.append(f"factors.{name} holds {bad:g}: use values from {low:g} to {high:g}.")
        if lines:
            raise ValueError("\n".join(lines))


def canonical(
    mesh: Sequence[int] | Tensor, *, seed: int = 0, instance: Sequence[int] | Tensor | None = None
) -> Factors:
    """The canonical view of one instance per row: seen a little from above, centred, before grey, in white light.

    Shapes: ``mesh`` int64 [N]; ``instance`` int64 [N], the number of an instance of its mesh (None: 0 for all). Shape
    (stretched by up to 1.15) and colour of an instance depend on (seed, mesh, instance) only.

    Raises: ``ValueError`` for a mesh that does not exist, or a different number of instances.
    """
    mesh = torch.as_tensor(mesh, dtype=torch.int64)
    instance = torch.zeros_like(mesh) if instance is None else torch.as_tensor(instance, dtype=torch.int64)
    if instance.shape != mesh.shape:
        raise ValueError(f"{len(instance)} instances for {len(mesh)} meshes: give one of each per image.")
    keys = sample_keys(seed, 0, instance * MESHES + mesh)
    zero = torch.zeros(len(mesh))
    found = Factors(
        mesh=mesh,
        stretch=1.15 ** (2 * uniform(keys, "objects stretch", 3) - 1),
        colour=_saturated(uniform(keys, "objects colour", 3)),
        azimuth=zero + 35,
        elevation=zero + 25,
        roll=zero,
        position=torch.zeros(len(mesh), 2),
        size=zero + 0.75,
        background=torch.zeros_like(mesh),
        background_colours=torch.full((len(mesh), 6), 0.75),
        background_layout=torch.zeros(len(mesh), 3),
        light_azimuth=zero + 60,
        light_elevation=zero + 45,
        light_colour=torch.ones(len(mesh), 3),
    )
    found.check()
    return found


def fix(factors: Factors, **values: float | Sequence[float] | Tensor | str) -> Factors:
    """Sets fields of ``factors`` to one value for all images, or to one per image: ``fix(f, roll=0)``.

    A number or a row is repeated for every image; a background may be given by its name.

    Raises: ``ValueError`` for an unknown field or name, or a value out of range.
    """
    new = dataclasses.replace(factors, **{name: _like(factors, name, value) for name, value in values.items()})
    new.check()
    return new


def _like(factors: Factors, field: str, value: float | Sequence[float] | Tensor | str) -> Tensor:
    """Converts ``value`` to a tensor of the field's type with one row per image."""
    if field not in RANGES:
        raise ValueError(f"There is no factor {field!r}. {nearest(field, RANGES)}")
    if isinstance(value, str):
        if field != "background" or value not in BACKGROUNDS:
            raise ValueError(f"factors.{field} = {value!r} is not known. Backgrounds are {', '.join(BACKGROUNDS)}.")
        value = BACKGROUNDS.index(value)
    old = getattr(factors, field)
    new = torch.as_tensor(value, dtype=old.dtype)
    if new.shape != old.shape:
        if new.shape not in ((), old.shape[1:]):
            raise ValueError(
                f"factors.{field} has shape {list(new.shape)}: use one value for all images or {list(old.shape)}."
            )
        new = new.expand(old.shape).clone()
    return new


def _saturated(draws: Tensor) -> Tensor:
    """A clearly coloured surface from three uniform numbers, never close to a grey: [N, 3] -> [N, 3]."""
    hue, saturation, value = draws[:, 0], 0.5 + 0.4 * draws[:, 1], 0.55 + 0.4 * draws[:, 2]
    wheel = (hue[:, None] * 6 + torch.tensor([0.0, 4.0, 2.0])) % 6
    pure = ((wheel - 3).abs() - 1).clamp(0, 1)  # [N, 3]: the hue at full saturation
    return value[:, None] * (1 - saturation[:, None] * (1 - pure))
