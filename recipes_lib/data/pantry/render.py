# SPDX-License-Identifier: Apache-2.0
"""Renders factors to pictures: shadows and objects, then tables and walls, then all layers from far to near.

The work is split into batches of one kind (one class or one background), so that a batch uses one formula. Only rays
through an object's bounding box are followed. A pixel has one ray, and four more if an object's edge crosses it. Light
is linear until ``looks.develop``.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from recipes_lib.data.pantry import ground, looks, painting
from recipes_lib.data.pantry.factors import BACKGROUNDS, CLASSES, RANGES, Factors
from recipes_lib.data.pantry.things import Stage, things_of

VERSION = 3
"""The renderer's version. Raise it if the image of the same factors changes: cached pictures are then made again."""

SMALLEST = 8
_BATCH = (
    2**18
)  # pixels per batch: with fewer, the overhead of calls outweighs the better use of the cache (benchmarks/pantry.py)
_PAGE = 2**21  # pixels of the pictures that are rendered together: two hundred megabytes


@torch.no_grad()
def render(factors: Factors, size: int, chunk: int | None = None) -> Tensor:
    """Renders the pictures of ``factors``: uint8 [N, 3, size, size] on their device.

    ``chunk`` is the number of pictures whose rays are followed at once (None: as many as were fastest); it changes the
    time, never the picture.

    Raises: ``ValueError`` for factors out of range, a size below 8 or a chunk below 1.
    """
    if size < SMALLEST:
        raise ValueError(f"size = {size} is not allowed: use a side of at least {SMALLEST} pixels.")
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk = {chunk} is not allowed: use at least 1 picture.")
    factors.check()
    chunk = chunk or max(1, _BATCH // (size * size))
    page = max(chunk, _PAGE // (size * size))
    pictures = torch.empty(len(factors), 3, size, size, dtype=torch.uint8, device=factors.label.device)
    for rows in torch.arange(len(factors), device=pictures.device).split(page):
        pictures[rows] = _page(factors.select(rows), size, chunk)
    return pictures


@torch.no_grad()
def masks(factors: Factors, size: int) -> Tensor:
    """Says for each pixel what is seen there: int64 [N, size, size], 1 + an object's class, or 0 for all that is no object.

    A pixel belongs to what covers the largest share of it; the occluding card is no object, and a glass is one although
    the table shows through it. Shadows, colours and style change no mask.

    Raises: as :func:`render`.
    """
    if size < SMALLEST:
        raise ValueError(f"size = {size} is not allowed: use a side of at least {SMALLEST} pixels.")
    factors.check()
    found = torch.empty(len(factors), size, size, dtype=torch.int64, device=factors.label.device)
    for rows in torch.arange(len(factors), device=found.device).split(max(1, _BATCH // (size * size))):
        found[rows] = _masks(factors.select(rows), size)
    return found


def _masks(factors: Factors, size: int) -> Tensor:
    stage, things = Stage.of(factors, size), things_of(factors)
    everything = torch.arange(len(things.image), device=factors.size.device)
    share = torch.empty(len(everything), size * size, device=factors.size.device)
    for rows, name in _batches(things.label, everything, CLASSES, len(everything)):
        _keep([share], rows, [painting.cover(stage, things.take(rows), name)])
    seen = torch.zeros(len(factors), 1 + len(CLASSES), size * size, device=factors.size.device)
    seen[:, 0] = 1  # the backdrop, until something lies before it
    for layer in range(RANGES["objects"][1]):  # from the far object to the near one
        rows = (things.layer == layer).nonzero()[:, 0]
        images, part = things.image[rows], share[rows]
        seen[images] *= 1 - part[:, None]
        seen[images, 1 + things.label[rows]] += part
    hidden = (factors.occluder[:, None] * looks.card_share(factors, size).flatten(1))[:, None]
    seen *= 1 - hidden
    seen[:, :1] += hidden
    return seen.argmax(dim=1).view(-1, size, size)


def _page(factors: Factors, size: int, chunk: int) -> Tensor:
    stage, things = Stage.of(factors, size), things_of(factors)
    everything = torch.arange(len(things.image), device=factors.size.device)
    batches = list(_batches(things.label, everything, CLASSES, chunk))
    # all objects of a class together, from all images and layers: a small batch takes almost as long as a large one
    shade = [torch.empty(len(everything), size * size, device=factors.size.device) for _ in range(2)]
    paint = [torch.empty_like(shade[0]) for _ in range(4)]
    for rows, name in batches:
        _keep(shade, rows, ground.cast_shadows(stage, things.take(rows), name))
        cover, colour = painting.paint(stage, things.take(rows), name)
        _keep(paint, rows, (cover, *colour))
    layers = [(things.layer == layer).nonzero()[:, 0] for layer in range(RANGES["objects"][1])]
    light = [torch.ones(len(factors), size * size, device=factors.size.device) for _ in range(2)]
    for rows in layers:
        for whole, part in zip(light, shade, strict=True):
            whole[things.image[rows]] *= part.index_select(0, rows)
    canvas = _backdrop(factors, stage, light, chunk)
    for rows in layers:  # from the far object to the near one
        images, cover = things.image[rows], paint[0].index_select(0, rows)
        for whole, part in zip(canvas, paint[1:], strict=True):
            below = whole.index_select(0, images)
            whole.index_copy_(0, images, below + (part.index_select(0, rows) - below * cover))
    return looks.develop(canvas, factors, size)


def _backdrop(factors: Factors, stage: Stage, light: list[Tensor], chunk: int) -> list[Tensor]:
    """Renders tables and walls of all images under ``light`` (lamp and sky): three of [images, size * size]."""
    canvas = [torch.empty_like(light[0]) for _ in range(3)]
    everyone = torch.arange(len(factors), device=factors.size.device)
    for rows, kind in _batches(factors.background, everyone, BACKGROUNDS, chunk):
        colours = factors.table_colour[rows], factors.wall_colour[rows]
        _keep(canvas, rows, ground.backdrop(stage, rows, kind, colours, (light[0][rows], light[1][rows])))
    return canvas


def _keep(wholes: list[Tensor], rows: Tensor, parts: Sequence[Tensor]) -> None:
    for whole, part in zip(wholes, parts, strict=True):
        whole.index_copy_(0, rows, part)


def _batches(kinds: Tensor, rows: Tensor, names: tuple[str, ...], chunk: int) -> Iterator[tuple[Tensor, str]]:
    """Yields ``rows`` in batches of up to ``chunk`` rows of equal kind, with the kind's name."""
    for position, name in enumerate(names):
        for batch in rows[kinds[rows] == position].split(chunk):
            if len(batch):
                yield batch, name
