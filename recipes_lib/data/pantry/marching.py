# SPDX-License-Identifier: Apache-2.0
"""Rays: where the camera looks, what they hit, and how squarely.

Everything is held as separate contiguous x, y and z, one float a ray, which is the fastest form for plain torch on a
CPU. Angles become sines in float64 once an image; a ray sees only exactly rounded arithmetic (see ``shapes``).
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

CAMERA_DISTANCE = 5.0
"""From the object's centre, and the focal length in half image sides, so that there 1 unit is half the image."""


class Points(NamedTuple):
    """Points or directions: three tensors of one shape."""

    x: Tensor
    y: Tensor
    z: Tensor

    def along(self, direction: "Points", distance: Tensor) -> "Points":
        """Where one gets from here after ``distance`` in ``direction``."""
        return Points(*((distance * d).add_(p) for p, d in zip(self, direction, strict=True)))

    def dot(self, other: "Points") -> Tensor:
        """Scalar product."""
        return self.x * other.x + self.y * other.y + self.z * other.z

    def unit(self) -> "Points":
        """Scaled to length 1."""
        scale = 1 / self.dot(self).sqrt()
        return Points(self.x * scale, self.y * scale, self.z * scale)

    def turned(self, cosine: Tensor, sine: Tensor) -> "Points":
        """Seen from a frame that is turned about the y axis."""
        return Points(cosine * self.x - sine * self.z, self.y, sine * self.x + cosine * self.z)

    def rows(self, indices: Tensor) -> "Points":
        """Some of the rows of [n, ...]."""
        return Points(*(value.index_select(0, indices) for value in self))

    def take(self, indices: Tensor) -> "Points":
        """Some of them, flattened."""
        return Points(*(value.reshape(-1).index_select(0, indices) for value in self))


def less(a: Tensor, b: Tensor | float) -> Tensor:
    """1.0 where ``a < b``, else 0.0. Products with it are many times faster than ``torch.where`` on a CPU."""
    return torch.lt(a, b, out=torch.empty_like(a))


def split(places: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Row and column of places in rows of ``width``: int64. Floats divide ten times faster, and below 2^53 exactly."""
    row = (places.double() / width).long()
    return row, places - row * width


def cos_sin(degrees: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine as float32, computed in float64 so that the batch's shape cannot move their last bit."""
    radians = torch.deg2rad(degrees.double())
    return radians.cos().float(), radians.sin().float()


class Camera(NamedTuple):
    """Where pictures are taken from, and which way is up: a row per image (or, after ``take``, a ray)."""

    eye: Points
    position: tuple[Tensor, Tensor]
    roll: tuple[Tensor, Tensor]
    """Cosine and sine, as is ``elevation``."""
    elevation: tuple[Tensor, Tensor]

    @classmethod
    def of(cls, elevation: Tensor, roll: Tensor, position: Tensor, target: Tensor) -> "Camera":
        """From angles in degrees, and the height that the camera looks at: [B], ``position`` [B, 2]."""
        cosine, sine = cos_sin(elevation)
        eye = Points(torch.zeros_like(cosine), target + CAMERA_DISTANCE * sine, CAMERA_DISTANCE * cosine)
        return cls(eye, (position[:, 0], position[:, 1]), cos_sin(roll), (cosine, sine))

    def take(self, rows: Tensor) -> "Camera":
        """Some of them: ``rows`` int64 [n]."""
        position, roll, elevation = (
            tuple(value.index_select(0, rows) for value in pair) for pair in (self.position, self.roll, self.elevation)
        )
        return Camera(self.eye.take(rows), position, roll, elevation)

    def rays(self, across: Tensor, upward: Tensor, rows: Tensor | None = None) -> Points:
        """Unit directions through places of the picture, in half sides right and up of its middle.

        With ``rows`` int64 [n] a ray each, [n]; without it every place for every image, [B, places].
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
    """Centres of a picture's pixels, right and up of its middle in half sides: two [size * size], top row first."""
    steps = (2 * torch.arange(size, device=device, dtype=torch.float32) + 1) / size - 1
    return steps.repeat(size), -steps.repeat_interleave(size)


def box_span(
    origin: Points, direction: Points, bounds: tuple[float, float, float, float, float], margin: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Distances at which a ray enters and leaves a box: it misses where the second is below the first.

    ``bounds`` are those of ``shapes.BOUNDS``, widened sideways and upwards by ``margin``.
    """
    left, right, deep, low, high = bounds
    near = far = None
    for o, d, start, end in (
        (origin.x, direction.x, left - margin, right + margin),
        (origin.y, direction.y, low - margin, high + margin),
        (origin.z, direction.z, -deep - margin, deep + margin),
    ):
        inverse = d.reciprocal()  # infinite for a ray parallel to this side, and right then too
        one, two = (start - o) * inverse, (end - o) * inverse
        near = one.minimum(two) if near is None else near.maximum(one.minimum(two))
        far = one.maximum(two) if far is None else far.minimum(one.maximum(two))
    return near.clamp_min(0), far


Distance = Callable[[Points, tuple[Tensor, ...]], Tensor]


HIT = 0.3
"""Clearance, in widths of the ray, from which a ray counts as having hit."""


class Passage(NamedTuple):
    """How rays fared; all [rays]."""

    distance: Tensor
    """Along the ray, to where it came closest to the surface."""
    clearance: Tensor
    """Room left there, in widths of the ray: below ``HIT`` a hit, above 1 a miss, between them partly covered."""
    start: Tensor
    """Up to this distance the whole width of the ray is free."""


def march(
    surface: Distance,
    instance: tuple[Tensor, ...],
    origin: Points,
    direction: Points,
    span: tuple[Tensor, Tensor],
    width: float,
    steps: int,
) -> Passage:
    """Follows each ray by the distance that is surely free, and tells how closely it passed the surface.

    ``span`` holds the distances from which and up to which a ray is followed. ``width`` is its radius per unit of
    length: half a pixel's diagonal for a picture, the lamp's for a soft shadow.
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
        if step % 3 and step < steps:  # finished rays leave at every third step: oftener costs more than it saves
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
    """Unit normals at ``points``, where the distance is ``here``: how it changes along each axis."""
    step = 2e-3
    x, y, z = points
    slope = Points(
        surface(Points(x + step, y, z), instance) - here,
        surface(Points(x, y + step, z), instance) - here,
        surface(Points(x, y, z + step), instance) - here,
    )
    length = slope.dot(slope).sqrt().clamp_min(1e-9)  # in a fold no direction may lead away
    return Points(slope.x / length, slope.y / length, slope.z / length)
