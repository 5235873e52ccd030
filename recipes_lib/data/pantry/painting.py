# SPDX-License-Identifier: Apache-2.0
"""Renders objects: which rays hit them, where an edge needs more rays, and the light along each ray."""

from functools import cache

import torch
from torch import Tensor

from recipes_lib.data.pantry import shapes, surfaces
from recipes_lib.data.pantry.marching import (
    CAMERA_DISTANCE,
    HIT,
    Distance,
    Passage,
    Points,
    box_span,
    less,
    march,
    normals,
    split,
)
from recipes_lib.data.pantry.surfaces import Colour
from recipes_lib.data.pantry.things import Stage, Things

_STEPS, _FINE_STEPS = 24, 12
_JUMP = 3.0  # difference in depth of neighbouring pixels, in widths of a pixel, from which an edge is assumed


@cache
def surface_of(name: str) -> Distance:
    """The distance function of a class's objects: the distance to the body or the trim, whichever is nearer."""
    shape = shapes.SHAPES[name]

    def surface(points: Points, instance: tuple[Tensor, ...]) -> Tensor:
        body, trim = shape(*points, instance)
        return body.minimum(trim)

    return surface


def paint(stage: Stage, batch: Things, name: str) -> tuple[Tensor, Colour]:
    """Renders objects of one class: the share of each pixel that they cover, and their light.

    Shapes: -> share [objects, size * size], and for each colour light [objects, size * size], already multiplied by the
    share.
    """
    owner, pixel, ray, distance, share = _hits(stage, batch, name)
    colour, opacity = _lit(stage, batch, name, owner, ray, distance)
    share = share * opacity
    return _gathered(stage, batch, owner, pixel, share), [
        _gathered(stage, batch, owner, pixel, channel * share) for channel in colour
    ]


def cover(stage: Stage, batch: Things, name: str) -> Tensor:
    """The share of each pixel in which objects of one class lie, were they alone; glass counts as all else does.

    Shapes: -> [objects, size * size].
    """
    owner, pixel, _, _, share = _hits(stage, batch, name)
    return _gathered(stage, batch, owner, pixel, share)


def _gathered(stage: Stage, batch: Things, owner: Tensor, pixel: Tensor, values: Tensor) -> Tensor:
    """The sum of the rays' values in each pixel of each object: [objects, size * size]."""
    area = stage.size * stage.size
    planes = torch.zeros(len(batch.image) * area, device=values.device)
    return planes.index_add_(0, owner * area + pixel, values).view(-1, area)


def _hits(stage: Stage, batch: Things, name: str) -> tuple[Tensor, Tensor, Points, Tensor, Tensor]:
    """All rays that hit objects of one class: rows, pixels, directions, distances and shares of a pixel."""
    side = stage.size
    owner, pixel, ray, passage = _followed(stage, batch, name)
    rough = _edges(owner, pixel, passage, len(batch.image), side)
    smooth = (~rough & (passage.clearance <= HIT)).nonzero()[:, 0]
    rough = rough.nonzero()[:, 0]
    fine = _finer(stage, batch, name, *(value.index_select(0, rough) for value in (owner, pixel, passage.start)))
    owner, pixel, distance = (value.index_select(0, smooth) for value in (owner, pixel, passage.distance))
    share = torch.cat([torch.ones_like(distance), fine[4]])
    owner, pixel, distance = torch.cat([owner, fine[0]]), torch.cat([pixel, fine[1]]), torch.cat([distance, fine[3]])
    ray = Points(*(torch.cat(pair) for pair in zip(ray.take(smooth), fine[2], strict=True)))
    return owner, pixel, ray, distance, share


def _followed(stage: Stage, batch: Things, name: str) -> tuple[Tensor, Tensor, Points, Passage]:
    """Follows a ray through each pixel's centre; for those that touch an object returns row, pixel, ray and result.

    The row is that of the object in ``batch``.
    """
    area = stage.size * stage.size
    eye = batch.points(stage.camera.eye.rows(batch.image))
    ray = batch.directions(stage.ray.rows(batch.image))
    near, far = box_span(Points(*(value[:, None] for value in eye)), ray, shapes.BOUNDS[name])
    through = (near < far).view(-1).nonzero()[:, 0]
    owner, pixel = split(through, area)
    ray = ray.take(through)
    span = near.view(-1).index_select(0, through), far.view(-1).index_select(0, through)
    width = 2**0.5 / (stage.size * CAMERA_DISTANCE)
    passage = march(surface_of(name), batch.shapes(owner), eye.rows(owner), ray, span, width, _STEPS)
    touching = (passage.clearance < 1).nonzero()[:, 0]
    passage = Passage(*(value.index_select(0, touching) for value in passage))
    owner, pixel = owner.index_select(0, touching), pixel.index_select(0, touching)
    return owner, pixel, ray.take(touching), passage


def _edges(owner: Tensor, pixel: Tensor, passage: Passage, count: int, side: int) -> Tensor:
    """Whether an edge may cross each pixel: it is partly covered, or a neighbour is much nearer or farther."""
    hit = passage.clearance <= HIT
    depth = torch.full((count, side + 2, side + 2), 1e3, device=hit.device)
    row, column = (place + 1 for place in split(pixel, side))
    depth[owner, row, column] = torch.where(hit, passage.distance, 1e3)
    flat, stride = depth.view(-1), side + 2
    place = (owner * stride + row) * stride + column
    step = torch.zeros_like(passage.distance)
    for offset in (-1, 1, -stride, stride):
        step = step.maximum((flat.index_select(0, place + offset) - passage.distance).abs())
    pixel_width = passage.distance * (2 / (side * CAMERA_DISTANCE))
    return ~hit | (step > _JUMP * pixel_width)


def _finer(
    stage: Stage, batch: Things, name: str, owner: Tensor, pixel: Tensor, start: Tensor
) -> tuple[Tensor, Tensor, Points, Tensor, Tensor]:
    """Follows four rays through each given pixel; returns rows, pixels, directions, distances and shares of a pixel."""
    side = stage.size
    owner, pixel, start = owner.repeat(4), pixel.repeat(4), start.repeat(4)
    quarter = torch.arange(4, device=owner.device).repeat_interleave(len(owner) // 4)
    row, column = split(pixel, side)
    across = (2 * column + 0.5 + quarter % 2).float() / side - 1
    upward = 1 - (2 * row + 0.5 + quarter // 2).float() / side
    ray = batch.directions(stage.camera.rays(across, upward, batch.image.index_select(0, owner)), owner)
    eye = batch.points(stage.camera.eye.rows(batch.image)).rows(owner)
    span = start, start + 4  # 4 is more than the depth of any object
    passage = march(surface_of(name), batch.shapes(owner), eye, ray, span, 1 / (side * CAMERA_DISTANCE), _FINE_STEPS)
    # the share falls from 1 at clearance HIT to 0 at clearance 1
    share = 0.25 * ((1 - passage.clearance) / (1 - HIT)).clamp(0, 1)
    seen = (share > 0).nonzero()[:, 0]
    owner, pixel, distance, share = (v.index_select(0, seen) for v in (owner, pixel, passage.distance, share))
    return owner, pixel, ray.take(seen), distance, share


def _lit(stage: Stage, batch: Things, name: str, owner: Tensor, ray: Points, distance: Tensor) -> tuple[Colour, Tensor]:
    """The colour and opacity of objects at the points that rays hit; ``owner`` is each ray's row of ``batch``."""
    image = batch.image.index_select(0, owner)
    instance = batch.shapes(owner)
    spot = batch.points(stage.camera.eye.rows(batch.image)).rows(owner).along(ray, distance)
    surface = surface_of(name)
    body, trim = shapes.SHAPES[name](*spot, instance)
    normal = normals(surface, instance, spot, body.minimum(trim))
    # ambient occlusion: the share of the space along the normal that is free
    reach = 0.25
    free = surface(spot.along(normal, torch.full_like(body, reach)), instance) / reach
    open_ = (0.3 + 0.7 * free.clamp(0, 1)) * (0.7 + 1.5 * spot.y).clamp(0.5, 1)  # the table shades an object's foot
    width = distance * (2 / (stage.size * CAMERA_DISTANCE))
    painted = surfaces.pattern_share(batch.pattern, owner, spot, shapes.ALONG.get(name, "y"), width)
    is_trim = less(trim, body)
    painted = painted * (1 - is_trim)
    albedo = []
    for base, paint_colour, trim_colour in zip(
        batch.colour.unbind(1), batch.pattern_colour.unbind(1), batch.trim_colour.unbind(1), strict=True
    ):
        to_paint, to_trim = ((other - base).index_select(0, owner) for other in (paint_colour, trim_colour))
        colour = base.index_select(0, owner) + to_paint * painted + to_trim * is_trim
        albedo.append(colour * colour)
    light = batch.directions(stage.light.rows(batch.image)).rows(owner)
    lamp = [channel.index_select(0, image) for channel in stage.lamp]
    material = tuple(value.index_select(0, owner) for value in surfaces.traits(batch.material))
    return surfaces.shade(albedo, normal, ray, light, lamp, open_, material)
