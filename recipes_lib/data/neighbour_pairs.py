# SPDX-License-Identifier: Apache-2.0
"""Random black-and-white patterns whose class is a matter of neighbouring pixels alone.

Along one axis, rows or columns, neighbouring pixels are mostly equal (or mostly opposite); lines beside each other are
independent. The four classes are the two axes with the two signs. A single pixel says nothing of the class, nor does the
number of white ones: only products of neighbours do. So a network that looks at neighbours has an easy task, and one that
first has to find out which pixels are neighbours has a hard one.
"""

from typing import Literal

import torch

from recipes_lib import randomness
from recipes_lib.data.images import ImageSet

CLASSES = ("rows equal", "rows opposite", "columns equal", "columns opposite")
REDRAWN = 0.15
"""Probability that a pixel is drawn anew instead of following its neighbour."""
CONTRAST = 64
"""Distance of white and of black from the middle grey, 128."""
NOISE = 0.1
"""Standard deviation of the noise of each pixel, in units of ``CONTRAST``."""


def dataset(count: int, *, size: int, seed: int, split: Literal["train", "test"]) -> ImageSet:
    """Makes ``count`` patterns of ``size`` x ``size`` pixels; the classes take turns.

    An image depends only on ``(seed, split, index)``. Factors: ``axis`` [N] (0: rows, 1: columns) and ``opposite`` [N].
    """
    keys = randomness.sample_keys(seed, 0, torch.arange(count))

    def draw(purpose: str, shape: tuple[int, ...]) -> torch.Tensor:
        return randomness.uniform(keys, f"neighbour pairs {split} {purpose}", shape[0] * shape[1]).view(count, *shape)

    labels = torch.arange(count) % len(CLASSES)
    sign = (1 - 2 * (labels % 2)).float()[:, None]  # [N, 1]
    fresh = 1 - 2 * (draw("pixels", (size, size)) < 0.5).float()  # [N, size, size], each 1 or -1
    follows = draw("redrawn", (size, size)) >= REDRAWN
    lines = [fresh[:, 0]]  # each [N, size]: the pixels at one place along the axis
    for place in range(1, size):
        lines.append(torch.where(follows[:, place], sign * lines[-1], fresh[:, place]))
    pattern = torch.stack(lines, dim=1)  # [N, along the axis, beside it]
    pattern = torch.where((labels < 2)[:, None, None], pattern.mT, pattern)  # a row is the last dimension
    noise = randomness.normal(keys, f"neighbour pairs {split} noise", size * size).view(count, size, size)
    grey = pattern.add_(noise, alpha=NOISE).mul_(CONTRAST).add_(128).round_().clamp_(0, 255).to(torch.uint8)
    factors = {"axis": labels // 2, "opposite": labels % 2}
    return ImageSet(grey[:, None].expand(-1, 3, -1, -1).contiguous(), labels, CLASSES, factors)
