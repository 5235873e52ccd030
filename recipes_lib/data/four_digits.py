# SPDX-License-Identifier: Apache-2.0
"""Four handwritten digits on one canvas; the class is that of the brightest one.

Each quadrant has a digit at a random place. One of the four has full brightness, the others a lower one, and the whole
image is made darker or brighter at random. So no quadrant alone tells whether its digit is the brightest: the class
needs a comparison across the whole image.

Source of the digits: scikit-learn's ``load_digits`` (see :mod:`recipes_lib.data.digits`, whose test scans these are too).
"""

from typing import Literal

import torch

from recipes_lib import randomness
from recipes_lib.data.digits import HELD_OUT_SCANS
from recipes_lib.data.images import ImageSet
from recipes_lib.errors import DataError

SIZE = 32
"""Side of the canvas in pixels: the scans have 8, and none is resized."""
FAINT = (0.3, 0.65)
"""Range of the brightness of the three other digits, where the brightest has 1."""
EXPOSURE = (0.4, 1.3)
"""Range of the factor on the brightness of a whole image."""
NOISE = 0.05
"""Standard deviation of the noise of each pixel, in the same unit."""
_DARK, _RANGE = 0.15, 1.6
"""Brightness -0.15 becomes the value 0, and 1.6 - 0.15 becomes 255, so that noise and exposure are hardly cut off."""


def dataset(count: int, *, size: int, seed: int, split: Literal["train", "test"]) -> ImageSet:
    """Makes ``count`` images of ``SIZE`` x ``SIZE`` pixels. An image depends only on ``(seed, split, index)``.

    Factors: ``scans`` [N, 4] (their numbers in scikit-learn's set), ``brightest`` [N] (the quadrant), ``brightness`` [N, 4],
    ``exposure`` [N]. Quadrants are counted by rows.

    Raises: ``DataError`` for another ``size``.
    """
    from sklearn.datasets import load_digits  # takes a second, and --help does not need it

    if size != SIZE:
        raise DataError(f"data.name four_digits has images of {SIZE} pixels, not of {size}: --data.image-size {SIZE}.")
    bunch = load_digits()
    order = randomness.permutation(0, 0, len(bunch.images))  # as for digits: no scan is in both splits
    pool = order[:HELD_OUT_SCANS] if split == "test" else order[HELD_OUT_SCANS:]
    keys = randomness.sample_keys(seed, 0, torch.arange(count))

    def draw(purpose: str, numbers: int) -> torch.Tensor:
        return randomness.uniform(keys, f"four digits {split} {purpose}", numbers)

    brightest = (draw("brightest", 1)[:, 0] * 4).long()
    brightness = FAINT[0] + (FAINT[1] - FAINT[0]) * draw("brightness", 4)
    brightness[torch.arange(count), brightest] = 1.0
    scans = pool[(draw("scans", 4) * len(pool)).long()]  # [N, 4]
    exposure = EXPOSURE[0] + (EXPOSURE[1] - EXPOSURE[0]) * draw("exposure", 1)[:, 0]
    ink = torch.from_numpy(bunch.images).float()[scans] / 16 * brightness[..., None, None]  # [N, 4, 8, 8]
    corner = (draw("place", 8).view(count, 4, 2) * 9).long()  # 0 to 8 in a quadrant of 16 pixels
    corner += torch.tensor([[0, 0], [0, 16], [16, 0], [16, 16]])
    row = corner[..., 0, None, None] + torch.arange(8)[:, None]  # [N, 4, 8, 1]
    column = corner[..., 1, None, None] + torch.arange(8)  # [N, 4, 1, 8]
    canvas = torch.zeros(count, SIZE * SIZE)
    canvas.scatter_(1, (row * SIZE + column).flatten(1), ink.flatten(1))  # digits do not overlap
    noise = randomness.normal(keys, f"four digits {split} noise", SIZE * SIZE)
    values = (canvas * exposure[:, None]).add_(noise, alpha=NOISE).add_(_DARK).mul_(255 / _RANGE)
    grey = values.round_().clamp_(0, 255).to(torch.uint8).view(count, 1, SIZE, SIZE)
    labels = torch.from_numpy(bunch.target).long()[scans[torch.arange(count), brightest]]
    factors = {"scans": scans, "brightest": brightest, "brightness": brightness, "exposure": exposure}
    return ImageSet(grey.expand(-1, 3, -1, -1).contiguous(), labels, tuple(map(str, range(10))), factors)
