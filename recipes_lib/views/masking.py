# SPDX-License-Identifier: Apache-2.0
"""Masks: draws the patches that a backbone drops, or whose embedding a mask token replaces.

A *random* mask hides patches, or squares of patches, anywhere in the view. A *block-wise* mask hides rectangles. A
*focal* mask keeps one block of the image. A small crop is the same as a focal mask, so focal views need no indices: see
``ViewsConfig.local_size``.

Masks are drawn per image, from its key: they do not depend on the batch, the rank or the number of processes.

Source: Assran et al., "Masked Siamese Networks for Label-Efficient Learning", ECCV 2022, for :func:`keep_count` and
:func:`random_keep`; the others name theirs.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from recipes_lib.randomness import uniform


def keep_count(patches: int, ratio: float) -> int:
    """The number of ``patches`` that are kept if the share ``ratio`` in [0, 1) is dropped; [CLS] is not a patch.

    It is computed in floats and truncated, as in the official code: ``keep_count(100, 0.9)`` is 9.

    >>> keep_count(196, 0.15), keep_count(196, 0.7)
    (166, 58)

    Raises: ``ValueError`` if the ratio is out of range or no patch would be kept.
    """
    if not 0 <= ratio < 1:
        raise ValueError(f"mask ratio {ratio} is not allowed: use a value in [0, 1)")
    kept = int(patches * (1 - ratio))
    if kept == 0:
        raise ValueError(f"mask ratio {ratio} keeps 0 of {patches} patches: use a smaller ratio")
    return kept


def random_keep(
    patches: int, ratio: float, *, keys: Tensor | None = None, generator: torch.Generator | None = None
) -> Tensor:
    """Draws the indices of the kept patches without replacement, all with the same probability, in random order.

    With ``keys`` int64 [B] (``randomness.sample_keys``): one mask per image, int64 [B, keep], on the keys' device.
    With ``generator``: one mask for the whole batch, int64 [keep], as in the official code.
    Indices count patches from 0 without [CLS]; a backbone that stores [CLS] first adds one.

    Raises: ``ValueError`` unless exactly one of ``keys`` and ``generator`` is given, and for a ratio that
    :func:`keep_count` refuses.
    """
    if (keys is None) == (generator is None):
        raise ValueError("give either keys (a mask for each image) or generator (one mask for the batch)")
    kept = keep_count(patches, ratio)
    if keys is None:
        return torch.randperm(patches, generator=generator, device=generator.device)[:kept]
    return uniform(keys, "random mask", patches).argsort(dim=1, stable=True)[:, :kept]


def hidden_count(grid: int, ratio: float, *, unit: int = 1) -> int:
    """The number of hidden patches of a grid if the share ``ratio`` in [0, 1) of its squares of ``unit`` x ``unit``
    patches is hidden, rounded up.

    >>> hidden_count(14, 0.75), hidden_count(14, 0.6, unit=2)
    (147, 120)

    Raises: ``ValueError`` if units do not tile the grid or if none would be visible.
    """
    if unit < 1 or grid % unit:
        raise ValueError(f"a mask unit of {unit} patches does not tile a grid of {grid} x {grid}: use a divisor.")
    units = (grid // unit) ** 2
    return (units - keep_count(units, ratio)) * unit**2


def random_mask(keys: Tensor, grid: int, ratio: float, *, unit: int = 1) -> Tensor:
    """Hides random squares of ``unit`` x ``unit`` patches: the share ``ratio`` of them, rounded up.

    Shapes: ``keys`` int64 [B] (``randomness.sample_keys``) -> bool [B, grid * grid], row-major, True if hidden.
    Raises: ``ValueError`` as :func:`hidden_count`.
    Source: Xie et al., "SimMIM", arXiv 2111.09886, whose units have 32 x 32 pixels: of 7 x 7 units 30 are hidden at 0.6.
    """
    side, hidden = grid // unit, hidden_count(grid, ratio, unit=unit) // unit**2
    order = uniform(keys, "random mask", side**2).argsort(dim=1, stable=True)
    units = torch.zeros_like(order, dtype=torch.bool).scatter(1, order[:, :hidden], True)
    units = units.view(-1, side, side)
    return units.repeat_interleave(unit, dim=1).repeat_interleave(unit, dim=2).flatten(1)


def places(mask: Tensor) -> Tensor:
    """The numbers of the hidden patches; all images must have equally many.  bool [B, N] -> int64 [B, m]"""
    return mask.nonzero()[:, 1].view(len(mask), -1)


SMALLEST_BLOCK = 16 / 196
"""Smallest block of :func:`block_mask`, as a share of the patches: 16 of BEiT's 14 x 14 patches."""
BLOCK_ASPECT = 0.3
"""Smallest ratio of such a block's height to its width; the largest is its inverse."""


def block_mask(keys: Tensor, grid: int, count: int) -> Tensor:
    """Hides exactly ``count`` patches in blocks, which may overlap: blocks are added until enough patches are hidden.

    The area of a block is uniform between the smallest block and the number of patches that are still missing, its
    aspect log-uniform. Of the last block only as many patches are taken, row by row, as are missing.

    Shapes: ``keys`` int64 [B] (``randomness.sample_keys``) -> bool [B, grid * grid], row-major, True if hidden.
    Raises: ``ValueError`` if none or all patches would be hidden.
    Source: Bao et al., "BEiT", arXiv 2106.08254, Algorithm 1 (16 patches, aspect 0.3).
    Differs: in the official code a block that has too many new patches, or reaches over the whole height or width, is
    drawn again, at most ten times, so that an image may have fewer hidden patches than asked for. Here it is cut, and
    all images have equally many, as the mean of a loss over ranks needs.
    """
    if not 0 < count < grid**2:
        raise ValueError(f"{count} of {grid**2} patches hidden; at least 1 must be hidden and 1 visible.")
    smallest = max(1, round(SMALLEST_BLOCK * grid**2))
    hidden = torch.zeros(len(keys), grid**2, dtype=torch.bool, device=keys.device)
    number = 0
    while (missing := count - hidden.sum(dim=1)).any():  # [B]; an image that has enough takes no more from a block
        draws = uniform(keys, f"mask block {number}", 4)
        area = smallest + draws[:, 0] * (missing - smallest).clamp_min(0)
        aspect = ((2 * draws[:, 1] - 1) * math.log(1 / BLOCK_ASPECT)).exp()
        height, width = ((area * ratio).sqrt().round().long().clamp(1, grid) for ratio in (aspect, 1 / aspect))
        fresh = _block(grid, height, width, draws[:, 2:]) & ~hidden
        hidden |= fresh & (fresh.cumsum(dim=1) <= missing[:, None])
        number += 1
    return hidden


class Blocks(NamedTuple):
    """What I-JEPA sees and predicts of each image: patch numbers, row-major."""

    context: Tensor
    """int64 [B, n]: the patches that the context encoder sees, in random order."""
    targets: Tensor
    """int64 [B, blocks, m]: the patches of each target block."""


def context_and_targets(
    keys: Tensor,
    step_key: int,
    grid: int,
    *,
    blocks: int,
    target_scale: tuple[float, float],
    target_aspect: tuple[float, float],
    context_scale: tuple[float, float],
) -> Blocks:
    """Draws ``blocks`` target blocks and, from a large square block without them, the patches of the context.

    The sizes of the blocks are drawn once per step, from ``step_key`` (``randomness.step_key``), their places once per
    image, from ``keys`` (``randomness.sample_keys``). Target blocks may overlap.

    Shapes: ``keys`` int64 [B] -> context int64 [B, n] with n = grid^2 - blocks * m, targets int64 [B, blocks, m].
    Raises: ``ValueError`` if target blocks may be so large that nothing is left for the context.
    Source: Assran et al., "I-JEPA", arXiv 2301.08243, section 3; ``facebookresearch/ijepa``, ``src/masks/multiblock.py``.
    Differs: the number of patches of a context block that no target covers differs between images. The official code
    cuts all images to the fewest of the batch, and always cuts the last rows; so an image's context depends on the
    batch and the rank. Here n is what is left if no two target blocks overlap, for all images: patches of the context
    block are taken in random order, and patches outside of it, but of no target, only if these are too few. On 14 x 14
    patches n is 31 % of the patches on average (the official code with 128 images: 26 %). Also, the official code draws
    a block's scale and aspect from one number and never places a block in the last row or column; here they are
    independent, as in the paper, and all places are equally likely.
    """
    refuse_no_context(grid, blocks, target_scale, target_aspect)
    draws = uniform(torch.tensor([step_key]), "block sizes", 3)[0].tolist()
    area, aspect, context_area = (
        low + draw * (high - low)
        for draw, (low, high) in zip(draws, (target_scale, target_aspect, context_scale), strict=True)
    )
    height, width = _sides(grid, area, aspect)
    side = _sides(grid, context_area, 1.0)[0]
    places = uniform(keys, "block places", 2 * (blocks + 1)).view(-1, blocks + 1, 2)  # [B, blocks + 1, 2]
    each = torch.ones_like(keys)
    covered = torch.stack([_block(grid, each * height, each * width, places[:, i]) for i in range(blocks)], dim=1)
    outside = ~_block(grid, each * side, each * side, places[:, blocks])
    # a number in [0, 1) inside of the context block, in [1, 2) outside of it, and from 2 on in a target
    rank = uniform(keys, "context order", grid**2) + outside.float() + 2 * covered.any(dim=1).float()
    size = height * width
    return Blocks(
        context=rank.argsort(dim=1, stable=True)[:, : grid**2 - blocks * size],
        targets=covered.nonzero()[:, 2].view(-1, blocks, size),
    )


def refuse_no_context(grid: int, blocks: int, scale: tuple[float, float], aspect: tuple[float, float]) -> None:
    """Raises ``ValueError`` if target blocks may be so large that no patch is left for the context."""
    low, high = aspect
    sides = [_sides(grid, scale[1], low + step / 1000 * (high - low)) for step in range(1001)]
    largest = max(height * width for height, width in sides)
    if blocks * largest >= grid**2:
        raise ValueError(
            f"{blocks} target blocks of up to {largest} patches may cover all {grid**2} patches: use fewer or smaller "
            "target blocks."
        )


def _sides(grid: int, area: float, aspect: float) -> tuple[int, int]:
    """Height and width in patches of a block with the share ``area`` of the patches and height / width ``aspect``.

    The area is cut to whole patches before its sides are rounded, as in the official code.
    """
    height, width = (round(math.sqrt(int(area * grid**2) * ratio)) for ratio in (aspect, 1 / aspect))
    return min(max(height, 1), grid), min(max(width, 1), grid)


def _block(grid: int, height: Tensor, width: Tensor, place: Tensor) -> Tensor:
    """The patches of one block per image; ``place`` in [0, 1) chooses among all its rows and columns.

    Shapes: ``height`` and ``width`` int64 [B], ``place`` [B, 2] -> bool [B, grid * grid].
    """
    line = torch.arange(grid, device=place.device)
    first = (place * (grid + 1 - torch.stack([height, width], dim=1))).long()  # [B, 2]
    rows, columns = (
        (line >= start[:, None]) & (line < (start + side)[:, None])
        for start, side in zip(first.unbind(dim=1), (height, width), strict=True)
    )
    return (rows[:, :, None] & columns[:, None, :]).flatten(1)
