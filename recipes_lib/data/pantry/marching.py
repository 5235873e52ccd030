# SPDX-License-Identifier: Apache-2.0
"""Rays of the camera: their directions, the points where they hit surfaces, and the surface normals there.

x, y and z are separate contiguous tensors with one float per ray, which is the fastest form for plain torch on a CPU.
Sines and cosines are computed in float64, once per image; the arithmetic per ray is exactly rounded (see ``shapes``).
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

CAMERA_DISTANCE = 5.0
"""Distance of the camera from the object's centre, and also the focal length in half image sides: so at the object's
distance 1 unit is half the image."""


class Points(NamedTuple):
    """Points or directions: three tensors of one shape."""

    x: Tensor
    y: Tensor
    z: Tensor

    def along(self, direction: "Points", distance: Tensor) -> "Points":
        """The points at ``distance`` from these in ``direction``."""
        return Points(*((distance * d).add_(p) for p, d in zip(self, direction, strict=True)))

    def dot(self, other: "Points") -> Tensor:
        """The scalar product with ``other``."""
        return self.x * other.x + self.y * other.y + self.z * other.z

    def unit(self) -> "Points":
        """The directions scaled to length 1."""
        scale = 1 / self.dot(self).sqrt()
        return Points(self.x * scale, self.y * scale, self.z * scale)

    def turned(self, cosine: Tensor, sine: Tensor) -> "Points":
        """The coordinates in a frame that is rotated about the y axis."""
        return Points(cosine * self.x - sine * self.z, self.y, sine * self.x + cosine * self.z)

    def rows(self, indices: Tensor) -> "Points":
        """The rows of [n, ...] at ``indices``."""
        return Points(*(value.index_select(0, indices) for value in self))

    def take(self, indices: Tensor) -> "Points":
        """The points at ``indices`` of the flattened tensors."""
        return Points(*(value.reshape(-1).index_select(0, indices) for value in self))


def less(a: Tensor, b: Tensor | float) -> Tensor:
    """1.0 where ``a < b``, else 0.0; products with it are many times faster than ``torch.where`` on a CPU."""
    return torch.lt(a, b, out=torch.empty_like(a))


def split(places: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The rows and columns (int64) of flat positions in rows of ``width``.

    It divides in float64, which is ten times faster than in int64, and exact below 2^53.
    """
    row = (places.double() / width).long()
    return row, places - row * width


def cos_sin(degrees: Tensor) -> tuple[Tensor, Tensor]:
    """The cosine and sine as float32, computed in float64 so that the batch's shape cannot change their last bit."""
    radians = torch.deg2rad(degrees.double())
    return radians.cos().float(), radians.sin().float()


class Camera(NamedTuple):
    """The position and orientation of the camera, one row per image (or, after ``take``, per ray)."""

    eye: Points
    """Position of the camera."""
    position: tuple[Tensor, Tensor]
    """Position of the object's centre in the picture, right and up, in half image sides."""
    roll: tuple[Tensor, Tensor]
    """Cosine and sine of the roll."""
    elevation: tuple[Tensor, Tensor]
    """Cosine and sine of the elevation."""

    @classmethod
    def of(cls, elevation: Tensor, roll: Tensor, position: Tensor, target: Tensor) -> "Camera":
        """The camera with these angles in degrees, looking at the height ``target``: [B] each, ``position`` [B, 2]."""
        cosine, sine = cos_sin(elevation)
        eye = Points(torch.zeros_like(cosine), target + CAMERA_DISTANCE * sine, CAMERA_DISTANCE * cosine)
        return cls(eye, (position[:, 0], position[:, 1]), cos_sin(roll), (cosine, sine))

    def take(self, rows: Tensor) -> "Camera":
        """The cameras at ``rows`` (int64 [n])."""
        position, roll, elevation = (
            tuple(value.index_select(0, rows) for value in pair) for pair in (self.position, self.roll, self.elevation)
        )
        return Camera(self.eye.take(rows), position, roll, elevation)

    def rays(self, across: Tensor, upward: Tensor, rows: Tensor | None = None) -> Points:
        """The unit directions of rays through positions in the picture, given in half sides right and up of its centre.

        With ``rows`` int64 [n] there is one ray for each row, [n]; without it one for every position and image,
        [B, positions].
        """

        def each(value: Tensor) -> Tensor:
            return value[:, None] if rows is None else value.index_select(0, rows)

        across, upward = across - each(self.position[0]), upward - each(self.position[1])
        cosine, sine = (each(value) for value in self.roll)
        u, v = cosine * across + sine * upward, cosine * upward - sine * across
        cosine, sine = (each(value) for value in self.elevation)
        flat = CAMERA_DISTANCE
        return Points(u, v * cosine - flat * sine, -v * sine - flat * cosine).unit()


def places(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The pixels' centres, right and up of the picture's centre, in half sides: two of [size * size], top row first."""
    steps = (2 * torch.arange(size, device=device, dtype=torch.float32) + 1) / size - 1
    return steps.repeat(size), -steps.repeat_interleave(size)


def box_span(
    origin: Points, direction: Points, bounds: tuple[float, float, float, float, float], margin: float = 0.0
) -> tuple[Tensor, Tensor]:
    """The distances at which a ray enters and leaves a box; the ray misses if the second is below the first.

    ``bounds`` is an entry of ``shapes.BOUNDS``; the box is enlarged by ``margin`` on all sides.
    """
    left, right, deep, low, high = bounds
    near = far = None
    for o, d, start, end in (
        (origin.x, direction.x, left - margin, right + margin),
        (origin.y, direction.y, low - margin, high + margin),
        (origin.z, direction.z, -deep - margin, deep + margin),
    ):
        inverse = d.reciprocal()  # infinite for a ray parallel to this side, which gives the right result too
        one, two = (start - o) * inverse, (end - o) * inverse
        near = one.minimum(two) if near is None else near.maximum(one.minimum(two))
        far = one.maximum(two) if far is None else far.minimum(one.maximum(two))
    return near.clamp_min(0), far


Distance = Callable[[Points, tuple[Tensor, ...]], Tensor]


HIT = 0.3
"""The clearance, in widths of the ray, at or below which a ray counts as a hit."""


class Passage(NamedTuple):
    """The result of following rays; all [rays]."""

    distance: Tensor
    """Distance along the ray to the point where it comes closest to the surface."""
    clearance: Tensor
    """Distance to the surface there, in widths of the ray: below ``HIT`` a hit, above 1 a miss, else partly covered."""
    start: Tensor
    """Distance along the ray up to which its whole width is free."""


def march(
    surface: Distance,
    instance: tuple[Tensor, ...],
    origin: Points,
    direction: Points,
    span: tuple[Tensor, Tensor],
    width: float,
    steps: int,
) -> Passage:
    """Follows each ray in steps of the distance to the surface (sphere tracing), and returns how close it came.

    ``span`` holds the distances between which a ray is followed. ``width`` is the ray's radius per unit of length: half
    a pixel's diagonal for a picture, the lamp's radius for a soft shadow.
    """
    near, far = span
    best_t, best, start = near.clone(), torch.full_like(near, 2.0), near.clone()
    active, t, least_t, least, free = None, near, near, best, near
    for step in range(1, steps + 1):
        gap = surface(origin.along(direction, t), instance)
        clearance = gap / (t * width)
        free = t + less(least, 1.0) * (free - t)
        least_t = least_t + less(clearance, least) * (t - least_t)
        least = clearance.minimum(least)
        t = t + gap
        if step % 3 and step < steps:  # finished rays are removed at every third step: more often costs more time
            continue
        if active is None:
            best_t, best, start = least_t, least, free
        else:
            (
                best_t.index_copy_(0, active, least_t),
                best.index_copy_(0, active, least),
                start.index_copy_(0, active, free),
            )
        keep = ((least > HIT) & (t < far)).nonzero()[:, 0]
        if not len(keep):
            break
        active = keep if active is None else active.index_select(0, keep)
        t, least, least_t, free, far = (v.index_select(0, keep) for v in (t, least, least_t, free, far))
        origin, direction = origin.take(keep), direction.take(keep)
        instance = tuple(value.index_select(0, keep) for value in instance)
    return Passage(best_t, best, start * (1 - width))


def normals(surface: Distance, instance: tuple[Tensor, ...], points: Points, here: Tensor) -> Points:
    """The unit normals at ``points``, by finite differences of the distance, which is ``here`` at the points."""
    step = 2e-3
    x, y, z = points
    slope = Points(
        surface(Points(x + step, y, z), instance) - here,
        surface(Points(x, y + step, z), instance) - here,
        surface(Points(x, y, z + step), instance) - here,
    )
    length = slope.dot(slope).sqrt().clamp_min(1e-9)  # in a fold of the surface the slope may be 0
    return Points(slope.x / length, slope.y / length, slope.z / length)
