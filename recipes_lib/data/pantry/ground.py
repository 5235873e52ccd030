# SPDX-License-Identifier: Apache-2.0
"""Renders the table and wall of a picture, and the shadows that objects cast on the table."""

import torch
from torch import Tensor

from recipes_lib.data.pantry import shapes, surfaces
from recipes_lib.data.pantry.marching import CAMERA_DISTANCE, HIT, Points, box_span, march, split
from recipes_lib.data.pantry.painting import surface_of
from recipes_lib.data.pantry.surfaces import Colour
from recipes_lib.data.pantry.things import Stage, Things

_WALL = 2.3  # distance of the wall behind the main object
_SOFT = 0.16  # width of the lamp per unit of distance, which blurs shadows
_STEPS = 9  # steps of a ray from the table to the lamp
_MARGIN = 0.3  # distance, in sizes of an object, up to which it shades the table from the sky


def _view(stage: Stage, images: Tensor) -> tuple[Points, Points, Tensor, Tensor]:
    """The camera's position [n, 1], the rays, and their distances to the table and the wall: [n, size * size] each."""
    ray = stage.ray.rows(images)
    eye = Points(*(value[:, None] for value in stage.camera.eye.rows(images)))
    down = -eye.y / ray.y.clamp_max(-1e-3)  # for rays that do not go down, a point far behind the wall
    back = (-_WALL - eye.z) / ray.z.clamp_max(-1e-3)
    return eye, ray, down, back


def cast_shadows(stage: Stage, batch: Things, name: str) -> tuple[Tensor, Tensor]:
    """The shares of the lamp's and of the sky's light that still reach the table past objects of one class.

    Shapes: -> two of [objects, size * size] in [0, 1].
    """
    area = stage.size * stage.size
    eye, ray, down, back = _view(stage, batch.image)
    table = (down < back).view(-1).nonzero()[:, 0]  # pixels that show the table
    owner = split(table, area)[0]  # the row of ``batch`` of each of them
    eye = batch.points(stage.camera.eye.rows(batch.image)).rows(owner)
    ray = batch.directions(ray.take(table), owner)
    scale = (1 / batch.size).index_select(0, owner)
    spot = eye.along(ray, down.view(-1).index_select(0, table) * scale)
    light = batch.directions(stage.light.rows(batch.image)).rows(owner)
    near, far = box_span(spot, light, shapes.BOUNDS[name], _MARGIN)
    through = (near < far).nonzero()[:, 0]
    table, owner = table.index_select(0, through), owner.index_select(0, through)
    spot, light = spot.take(through), light.take(through)
    near, far = near.index_select(0, through) + 0.03, far.index_select(0, through)
    instance = batch.shapes(owner)
    surface = surface_of(name)
    clear = march(surface, instance, spot, light, (near, far), _SOFT, _STEPS).clearance
    clear = ((clear - HIT) / (1 - HIT)).clamp(0, 1)
    close = 1 - surface(spot, instance).clamp(0, _MARGIN) / _MARGIN
    lamp, sky = (torch.ones(len(batch.image) * area, device=clear.device) for _ in range(2))
    lamp[table] = clear * clear * (3 - 2 * clear)
    sky[table] = 1 - 0.6 * close * close
    return lamp.view(-1, area), sky.view(-1, area)


def backdrop(
    stage: Stage, rows: Tensor, kind: str, colours: tuple[Tensor, Tensor], shade: tuple[Tensor, Tensor]
) -> Colour:
    """Renders tables and walls of the images at ``rows``, all of one kind: three of [rows, size * size], linear light.

    ``colours`` are those of table and wall, sRGB [rows, 3]; ``shade`` holds the results of ``cast_shadows`` for these
    rows.
    """
    eye, ray, down, back = _view(stage, rows)
    lamp, sky = shade
    pixel = 2 / (stage.size * CAMERA_DISTANCE)
    spot, width = eye.along(ray, down), down * pixel / ray.y.abs().clamp_min(0.05)
    tone, cloth = surfaces.table(kind, spot.x, spot.z, width)
    high = eye.y + ray.y * back
    wall_tone = surfaces.wall(kind, eye.x + ray.x * back, high, back * pixel)
    is_table = (0.5 - high / (back * pixel)).clamp(0, 1)  # a pixel on the line between table and wall shows both
    light = Points(*(value.index_select(0, rows)[:, None] for value in stage.light))
    corner = (0.6 + 0.5 * high).clamp(0.6, 1)  # less light of the sky reaches the foot of the wall
    planes = []
    for channel in range(3):
        table_colour, wall_colour = (value[:, channel, None] for value in colours)
        strength = stage.lamp[channel].index_select(0, rows)[:, None]
        board = table_colour * table_colour * tone
        board = (board + (0.9 - board) * cloth) * (strength * light.y * 0.95 * lamp + 0.5 * sky)
        paint = wall_colour * wall_colour * wall_tone * corner
        paint = paint * (strength * (0.3 + 0.55 * light.z.clamp_min(0)) + 0.35)
        planes.append(paint + (board - paint) * is_table)
    return planes
