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
        return Points(*(p + distance * d for p, d in zip(self, direction, strict=True)))

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

    def take(self, indices: Tensor) -> "Points":
        """Some of them, flattened."""
        return Points(*(value.reshape(-1)[indices] for value in self))


def cos_sin(degrees: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine as float32, computed in float64 so that the batch's shape cannot move their last bit."""
    radians = torch.deg2rad(degrees.double())
    return radians.cos().float(), radians.sin().float()


def camera(elevation: Tensor, roll: Tensor, position: Tensor, target: Tensor, side: int) -> tuple[Points, Points]:
    """Eye and rays of square pictures of ``side`` x ``side`` samples.

    Shapes: ``elevation``, ``roll`` (degrees) and ``target`` (height the camera looks at) [B], ``position`` [B, 2]
    -> eyes [B, 1] each, unit directions [B, side * side] each.
    """
    steps = (2 * torch.arange(side, device=roll.device, dtype=torch.float32) + 1) / side - 1
    across = steps[None, None, :] - position[:, 0, None, None]  # [B, 1, side]
    upward = -steps[None, :, None] - position[:, 1, None, None]  # [B, side, 1], first row on top
    cosine, sine = (value[:, None, None] for value in cos_sin(roll))
    u = (cosine * across + sine * upward).flatten(1)  # [B, side * side]
    v = (cosine * upward - sine * across).flatten(1)
    cosine, sine = (value[:, None] for value in cos_sin(elevation))
    focal = CAMERA_DISTANCE
    directions = Points(u, v * cosine - focal * sine, -v * sine - focal * cosine).unit()
    eyes = Points(torch.zeros_like(cosine), target[:, None] + focal * sine, focal * cosine)
    return eyes, directions


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
        # a ray parallel to a side: its inverse is huge, not infinite, so that 0 * inverse is not nan
        inverse = 1 / torch.where(d.abs() < 1e-8, 1e-8, d)
        one, two = (start - o) * inverse, (end - o) * inverse
        near = one.minimum(two) if near is None else near.maximum(one.minimum(two))
        far = one.maximum(two) if far is None else far.minimum(one.maximum(two))
    return near.clamp_min(0), far


Distance = Callable[[Points, tuple[Tensor, ...]], Tensor]


def march(
    distance: Distance,
    instance: tuple[Tensor, ...],
    origin: Points,
    direction: Points,
    near: Tensor,
    far: Tensor,
    cone: Tensor,
    steps: int,
) -> tuple[Tensor, Tensor]:
    """Follows each ray by the distance that is surely free, and tells how closely it passed the surface.

    ``cone`` is the width of a ray per unit of length: a pixel's for a picture, the light's for a soft shadow.
    Returns distance along the ray and clearance, in widths of the ray there: below 0.1 it is a hit, above 1 a miss,
    between them the surface covers part of the ray. Shapes: all [rays].
    """
    best_t, best = near.clone(), torch.full_like(near, 2.0)
    active = torch.arange(len(near), device=near.device)
    t, least_t, least = near, near, best
    for step in range(1, steps + 1):
        gap = distance(origin.along(direction, t), instance)
        clearance = gap / (cone * t)
        closer = clearance < least
        least, least_t = torch.where(closer, clearance, least), torch.where(closer, t, least_t)
        t = t + gap
        if step % 4 == 0 or step == steps:  # finished rays leave; doing so at every step costs more than it saves
            best[active], best_t[active] = least, least_t
            keep = ((least > 0.1) & (t < far)).nonzero()[:, 0]
            if not len(keep):
                break
            active, t, least, least_t, far, cone = (v[keep] for v in (active, t, least, least_t, far, cone))
            origin, direction = origin.take(keep), direction.take(keep)
            instance = tuple(value[keep] for value in instance)
    return best_t, best


def normals(distance: Distance, instance: tuple[Tensor, ...], points: Points, step: float = 2e-3) -> Points:
    """Unit normals of the surface through ``points``: the distance's slope over the corners of a tetrahedron."""
    x, y, z = points
    first = distance(Points(x + step, y - step, z - step), instance)
    second = distance(Points(x - step, y - step, z + step), instance)
    third = distance(Points(x - step, y + step, z - step), instance)
    fourth = distance(Points(x + step, y + step, z + step), instance)
    slope = Points(first - second - third + fourth, third + fourth - first - second, second - first - third + fourth)
    length = slope.dot(slope).sqrt().clamp_min(1e-9)  # inside a fold all corners may be equally far
    return Points(slope.x / length, slope.y / length, slope.z / length)
