# SPDX-License-Identifier: Apache-2.0
"""From factors to pictures: shadows, then tables and walls, then objects from the far one to the near one.

The work is split into batches of equal kind (one class, one background), so that a batch runs one formula, and small
enough for the processor's cache. Of an object's rays only those through its box are followed. A pixel has one ray,
and four more where the object's edge runs through it; everything is in linear light until ``looks.develop``.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from recipes_lib.data.pantry import ground, looks, painting
from recipes_lib.data.pantry.factors import BACKGROUNDS, CLASSES, RANGES, Factors
from recipes_lib.data.pantry.things import Stage, Things, things_of

VERSION = 3
"""Rises when an image of the same factors changes: pictures cached by another version are rendered again."""

SMALLEST = 8
_BATCH = 2**17  # pixels of one batch: its dozen arrays of floats then fit a second-level cache
_PAGE = 2**21  # pixels of the pictures in work together: a few tens of megabytes


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
    chunk = chunk or max(1, _BATCH // (size * size))
    page = max(chunk, _PAGE // (size * size))
    pictures = torch.empty(len(factors), 3, size, size, dtype=torch.uint8, device=factors.label.device)
    for rows in torch.arange(len(factors), device=pictures.device).split(page):
        pictures[rows] = _page(factors.select(rows), size, chunk)
    return pictures


def _page(factors: Factors, size: int, chunk: int) -> Tensor:
    stage, things = Stage.of(factors, size), things_of(factors)
    everyone = torch.arange(len(factors), device=factors.size.device)
    lamp, sky = (torch.ones(len(factors), size * size, device=factors.size.device) for _ in range(2))
    for batch, name in _objects(things, chunk):
        ground.cast_shadows((lamp, sky), stage, batch, name)
    canvas = [torch.empty_like(lamp) for _ in range(3)]
    for rows, kind in _batches(factors.background, everyone, BACKGROUNDS, chunk):
        colours = factors.table_colour[rows], factors.wall_colour[rows]
        planes = ground.backdrop(stage, rows, kind, colours, (lamp[rows], sky[rows]))
        for whole, part in zip(canvas, planes, strict=True):
            whole[rows] = part
    for batch, name in _objects(things, chunk):
        painting.paint(canvas, stage, batch, name)
    return looks.develop(canvas, factors, size)


def _batches(kinds: Tensor, rows: Tensor, names: tuple[str, ...], chunk: int) -> Iterator[tuple[Tensor, str]]:
    """``rows`` in batches of up to ``chunk`` whose ``kinds`` are equal, with the kind's name."""
    for position, name in enumerate(names):
        for batch in rows[kinds[rows] == position].split(chunk):
            if len(batch):
                yield batch, name


def _objects(things: Things, chunk: int) -> Iterator[tuple[Things, str]]:
    """Objects of one class in batches, far layers first; a batch has at most one object of an image."""
    for layer in range(RANGES["objects"][1]):
        for rows, name in _batches(things.label, (things.layer == layer).nonzero()[:, 0], CLASSES, chunk):
            yield things.take(rows), name
