# SPDX-License-Identifier: Apache-2.0
"""From factors to pictures: shadows, then tables and walls, then objects from the far one to the near one.

The work is split into batches of equal kind (one class, one background), so that a batch runs one formula, and small
enough for the processor's cache. Of an object's rays only those through its box are followed. Every picture is
rendered with 2 x 2 rays a pixel, in linear light; shadows, which are soft, with one.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from recipes_lib.data.pantry import looks, shapes, surfaces
from recipes_lib.data.pantry.factors import BACKGROUNDS, CLASSES, Factors
from recipes_lib.data.pantry.marching import (
    CAMERA_DISTANCE,
    Distance,
    Points,
    box_span,
    camera,
    cos_sin,
    march,
    normals,
)
from recipes_lib.data.pantry.surfaces import Colour
from recipes_lib.data.pantry.things import Things, things_of

VERSION = 1
"""Rises when an image of the same factors changes: pictures cached by another version are rendered again."""

SMALLEST = 8
_WALL = 2.3  # distance of the wall behind the object
_RAYS = 65_536  # of one batch: its dozen arrays of floats then fit a second-level cache
_SOFT = 0.16  # width of the light per unit of distance: how blurred shadows are


@torch.no_grad()
def render(factors: Factors, size: int, chunk: int | None = None) -> Tensor:
    """The pictures of ``factors``: uint8 [N, 3, size, size] on their device.

    ``chunk`` is how many pictures' rays are followed at once (none: as many as fit the cache); it changes the time,
    never the picture. Raises: ``ValueError`` for factors out of range, a size below 8 or a chunk below 1.
    """
    if size < SMALLEST:
        raise ValueError(f"size = {size} is not allowed: use a side of at least {SMALLEST} pixels.")
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk = {chunk} is not allowed: use at least 1 picture.")
    factors.check()
    chunk = chunk or max(1, _RAYS // (4 * size * size))
    page = max(chunk, 2**21 // (4 * size * size))  # pictures in work together: some fifty megabytes
    pictures = torch.empty(len(factors), 3, size, size, dtype=torch.uint8, device=factors.label.device)
    for rows in torch.arange(len(factors), device=pictures.device).split(page):
        pictures[rows] = _page(factors.select(rows), size, chunk)
    return pictures


def _page(factors: Factors, size: int, chunk: int) -> Tensor:
    things = things_of(factors)
    canvas = _backdrop(factors, _shadows(factors, things, size, chunk), size, chunk)
    for batch, name in _objects(things, chunk):
        _draw(canvas, factors, batch, name, 2 * size)
    return looks.develop(canvas, factors, size)


def _batches(kinds: Tensor, rows: Tensor, names: tuple[str, ...], chunk: int) -> Iterator[tuple[Tensor, str]]:
    """``rows`` in batches of up to ``chunk`` whose ``kinds`` are equal, with the kind's name."""
    for position, name in enumerate(names):
        for batch in rows[kinds[rows] == position].split(chunk):
            if len(batch):
                yield batch, name


def _objects(things: Things, chunk: int) -> Iterator[tuple[Things, str]]:
    """Objects of one class in batches, far layers first; a batch has at most one object of an image."""
    for layer in range(int(things.layer.max()) + 1):
        for rows, name in _batches(things.label, (things.layer == layer).nonzero()[:, 0], CLASSES, chunk):
            yield things.take(rows), name


def _camera(factors: Factors, rows: Tensor, side: int) -> tuple[Points, Points]:
    heights = torch.tensor([shapes.BOUNDS[name][4] for name in CLASSES], device=rows.device)
    target = 0.46 * factors.size[rows] * heights[factors.label[rows]]
    return camera(factors.elevation[rows], factors.roll[rows], factors.position[rows], target, side)


def _light(factors: Factors, rows: Tensor) -> Points:
    """Unit direction towards the lamp: [rows, 1] each."""
    cos_up, sin_up = cos_sin(factors.light_elevation[rows, None])
    cosine, sine = cos_sin(factors.light_azimuth[rows, None])
    return Points(cos_up * cosine, sin_up, cos_up * sine)


def _lamp(factors: Factors) -> Tensor:
    return factors.light_strength[:, None] * factors.light_colour


def _surface(name: str) -> Distance:
    """Distance to an object of a class: to its body or its trim, whichever is nearer."""
    shape = shapes.SHAPES[name]

    def distance(points: Points, instance: tuple[Tensor, ...]) -> Tensor:
        body, trim = shape(*points, instance)
        return body.minimum(trim)

    return distance


def _ground(eye: Points, ray: Points) -> tuple[Tensor, Tensor]:
    """Distance to the table, or to the wall where that comes first, and whether it is the table."""
    down = -eye.y / ray.y.clamp_max(-1e-6)
    back = (-_WALL - eye.z) / ray.z.clamp_max(-1e-6)
    is_table = (ray.y < 0) & (down < back)
    return torch.where(is_table, down, back), is_table


def _shadows(factors: Factors, things: Things, size: int, chunk: int) -> tuple[Tensor, Tensor]:
    """How much of the lamp, and of the sky, reaches the table in each pixel: two [images, size * size]."""
    lamp = torch.ones(len(factors), size * size, device=factors.size.device)
    sky = torch.ones_like(lamp)
    margin = 0.3
    for batch, name in _objects(things, 4 * chunk):
        eye, ray = _camera(factors, batch.image, size)
        distance, is_table = _ground(eye, ray)
        spot = batch.seen_from(eye.along(ray, distance))
        light = batch.seen_from(_light(factors, batch.image), directions=True)
        near, far = box_span(spot, light, shapes.BOUNDS[name], margin)
        hit = ((near < far) & is_table).flatten().nonzero()[:, 0]
        if not len(hit):
            continue
        owner = hit // (size * size)
        instance = batch.instance[owner].unbind(1)
        surface, spot, light = _surface(name), spot.take(hit), Points(*(value[owner, 0] for value in light))
        gap = surface(spot, instance)
        reach = torch.full_like(gap, _SOFT)
        _, clear = march(surface, instance, spot, light, near.view(-1)[hit] + 0.03, far.view(-1)[hit], reach, 16)
        pixel = batch.image[owner] * (size * size) + hit % (size * size)
        soft = clear.clamp(0, 1)
        lamp.view(-1)[pixel] *= soft * soft * (3 - 2 * soft)
        close = 1 - gap.clamp(0, margin) / margin
        sky.view(-1)[pixel] *= 1 - 0.6 * close * close
    return lamp, sky


def _backdrop(factors: Factors, shadows: tuple[Tensor, Tensor], size: int, chunk: int) -> Colour:
    """Tables and walls: three [images * rays], linear light."""
    side = 2 * size
    canvas = [torch.empty(len(factors), side * side, device=factors.size.device) for _ in range(3)]
    everyone = torch.arange(len(factors), device=factors.size.device)
    for rows, kind in _batches(factors.background, everyone, BACKGROUNDS, chunk):
        eye, ray = _camera(factors, rows, side)
        distance, is_table = _ground(eye, ray)
        spot = eye.along(ray, distance)
        width = distance * (2 / (side * CAMERA_DISTANCE))
        flat = width / ray.y.abs().clamp_min(0.05)  # a pixel covers more of a table seen at a shallow angle
        tone, paler = surfaces.table(kind, spot.x, spot.z, flat)
        wall_tone = surfaces.wall(kind, spot.x, spot.y, width)
        lamp, sky = (_enlarge(value[rows], size) for value in shadows)
        light = _light(factors, rows)
        on_table = light.y * lamp * 0.95
        on_wall = 0.3 + 0.55 * light.z.clamp_min(0) + 0 * spot.z
        corner = (0.6 + 0.5 * (spot.y / 0.8)).clamp(0.6, 1) * is_table.logical_not() + is_table * sky
        for channel in range(3):
            colour = factors.table_colour[rows, channel, None]
            board = colour * colour * tone
            board = board + (0.9 - board) * paler
            paint = factors.wall_colour[rows, channel, None]
            strength = _lamp(factors)[rows, channel, None]
            table_light = board * (strength * on_table + 0.5 * sky)
            wall_light = paint * paint * wall_tone * (strength * on_wall + 0.35) * corner
            canvas[channel][rows] = torch.where(is_table, table_light, wall_light)
    return [channel.view(-1) for channel in canvas]


def _enlarge(values: Tensor, size: int) -> Tensor:
    """Each pixel's value for its 2 x 2 rays: [n, size * size] -> [n, 4 * size * size]."""
    return values.view(-1, size, 1, size, 1).expand(-1, size, 2, size, 2).reshape(len(values), -1)


def _draw(canvas: Colour, factors: Factors, batch: Things, name: str, side: int) -> None:
    """Paints objects of one class over the canvas."""
    surface = _surface(name)
    eye, ray = _camera(factors, batch.image, side)
    eye, ray = batch.seen_from(eye), batch.seen_from(ray, directions=True)
    near, far = box_span(eye, ray, shapes.BOUNDS[name])
    hit = (near < far).flatten().nonzero()[:, 0]
    if not len(hit):
        return
    owner = hit // (side * side)
    cone = torch.full_like(near, 2 / (side * CAMERA_DISTANCE)).view(-1)[hit]
    eye, ray = Points(*(value[owner, 0] for value in eye)), ray.take(hit)
    instance = batch.instance[owner].unbind(1)
    distance, clear = march(surface, instance, eye, ray, near.view(-1)[hit], far.view(-1)[hit], cone, 32)
    seen = (clear < 1).nonzero()[:, 0]
    if not len(seen):
        return
    distance, clear, hit, owner = distance[seen], clear[seen], hit[seen], owner[seen]
    eye, ray = eye.take(seen), ray.take(seen)
    spot = eye.along(ray, distance)
    instance = tuple(value[seen] for value in instance)
    colour, opacity = _shaded(factors, batch, name, owner, spot, ray, instance, distance * cone[seen])
    cover = ((1 - clear) / 0.9).clamp(0, 1) * opacity
    place = batch.image[owner] * (side * side) + hit % (side * side)
    for plane, channel in zip(canvas, colour, strict=True):
        behind = plane[place]
        plane[place] = behind + (channel - behind) * cover


def _shaded(
    factors: Factors, batch: Things, name: str, owner: Tensor, spot: Points, ray: Points, instance: tuple, width: Tensor
) -> tuple[Colour, Tensor]:
    """Colour and opacity of the objects at points of their surface; ``owner`` is each point's row of ``batch``."""
    surface = _surface(name)
    normal = normals(surface, instance, spot)
    body, trim = shapes.SHAPES[name](*spot, instance)
    is_trim = trim < body
    open_ = torch.ones_like(body)
    for reach, weight in ((0.1, 0.5), (0.35, 0.5)):  # ambient occlusion: is there free space along the normal?
        free = surface(spot.along(normal, torch.full_like(body, reach)), instance) / reach
        open_ = open_ * (1 - weight + weight * free.clamp(0, 1))
    open_ = open_ * (0.7 + 1.5 * spot.y).clamp(0.5, 1)  # the table takes some of the sky near the foot
    painted = surfaces.pattern_share(batch.pattern[owner], spot, shapes.ALONG.get(name, "y"), width)
    light = batch.seen_from(_light(factors, batch.image), directions=True)
    light = Points(*(value[owner, 0] for value in light))
    lamp, albedo = [], []
    for channel in range(3):
        ground, paint, trim_colour = (
            value[owner, channel] for value in (batch.colour, batch.pattern_colour, batch.trim_colour)
        )
        colour = torch.where(is_trim, trim_colour, ground + (paint - ground) * painted)
        albedo.append(colour * colour)
        lamp.append(_lamp(factors)[batch.image, channel][owner])
    material = tuple(value[owner] for value in surfaces.traits(batch.material))
    return surfaces.shade(albedo, normal, ray, light, lamp, open_, material)
