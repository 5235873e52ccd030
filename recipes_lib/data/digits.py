# SPDX-License-Identifier: Apache-2.0
"""Real handwritten digits with random distortions: 1,797 scans of 8x8 pixels in random ink on random paper.

Each image is a scan, rotated, scaled and shifted a little, in two random colours, with noise; all of these are returned
as true factors. An image depends only on ``(seed, split, index)``. The test split is made of 500 held-out scans, always
the same. So a score measures generalisation to unseen handwriting, not to unseen colours.

Source: scikit-learn's ``load_digits`` (UCI ML hand-written digits, test part; E. Alpaydin, C. Kaynak, CC BY 4.0).
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from recipes_lib import randomness
from recipes_lib.data.images import ImageSet

HELD_OUT_SCANS = 500
SCALE = (1.04, 1.22)
"""Range of the paper's side divided by the scan's side: the margin in which the scan can move."""
ANGLE = math.radians(6)
"""Largest rotation, in radians."""
SHIFT = 0.06
"""Largest shift of the scan, as a share of the paper's side."""
NOISE = 0.03
"""Standard deviation of the pixel noise, where black is 0 and white is 1."""
CONTRAST = 0.3
"""Smallest difference in brightness between ink and paper."""
_INKS = 8  # number of inks tried before black or white is used; on the least suitable paper each fails with chance 0.6
_LUMA = torch.tensor([0.299, 0.587, 0.114])  # brightness of R, G, B (ITU-R BT.601)
_CHUNK_VALUES = 1 << 20  # pixel values computed at once: 4 MB in float32, which stay in the cache


def dataset(count: int, *, size: int, seed: int, split: Literal["train", "test"]) -> ImageSet:
    """Makes ``count`` images of digits, of ``size`` x ``size`` pixels.

    Factors: ``scan`` [N] (its number in scikit-learn's set), ``ink`` and ``paper`` [N, 3] in [0, 1], ``angle`` [N] in
    radians, ``scale`` [N], ``shift`` [N, 2] (right and down, in sides of the image).
    """
    from sklearn.datasets import load_digits  # takes a second, and --help does not need it

    bunch = load_digits()
    scans = torch.from_numpy(bunch.images).float() / 16  # [1797, 8, 8], 1 is full ink
    order = randomness.permutation(0, 0, len(scans))  # fixed: no seed moves a scan from test to train
    pool = order[:HELD_OUT_SCANS] if split == "test" else order[HELD_OUT_SCANS:]
    factors = _draw_factors(randomness.sample_keys(seed, 0, torch.arange(count)), split)
    factors["scan"] = pool[torch.arange(count) % len(pool)]  # in turn, so that each scan appears equally often
    chunk = max(1, _CHUNK_VALUES // (3 * size * size))
    images = torch.empty(count, 3, size, size, dtype=torch.uint8)
    for start in range(0, count, chunk):
        part = slice(start, min(start + chunk, count))
        keys = randomness.sample_keys(seed, 0, torch.arange(part.start, part.stop))
        noise = randomness.normal(keys, f"digits {split} noise", 3 * size * size).view(-1, 3, size, size)
        drawn = _draw(scans, {name: factor[part] for name, factor in factors.items()}, size)
        images[part] = drawn.add_(noise, alpha=NOISE).mul_(255).round_().clamp_(0, 255).to(torch.uint8)
    labels = torch.from_numpy(bunch.target).long()[factors["scan"]]
    return ImageSet(images, labels, tuple(str(digit) for digit in range(10)), factors)


def _draw_factors(keys: Tensor, split: str) -> dict[str, Tensor]:
    def draw(purpose: str, count: int) -> Tensor:
        return randomness.uniform(keys, f"digits {split} {purpose}", count)

    paper = draw("paper", 3)
    return {
        "ink": _ink(draw("ink", 3 * _INKS).view(-1, _INKS, 3), paper),
        "paper": paper,
        "angle": (2 * draw("angle", 1)[:, 0] - 1) * ANGLE,
        "scale": SCALE[0] + (SCALE[1] - SCALE[0]) * draw("scale", 1)[:, 0],
        "shift": (2 * draw("shift", 2) - 1) * SHIFT,
    }


def _ink(candidates: Tensor, paper: Tensor) -> Tensor:
    """The first of each image's candidate inks that is readable on its paper.  [N, inks, 3], [N, 3] -> [N, 3]"""
    brightness = paper @ _LUMA  # [N]
    last_resort = (brightness < 0.5).float()[:, None, None].expand(-1, 1, 3)  # white on dark, black on bright
    candidates = torch.cat([candidates, last_resort], dim=1)
    readable = (candidates @ _LUMA - brightness[:, None]).abs() >= CONTRAST  # [N, inks + 1]; the last always is
    first = readable.int().argmax(dim=1)
    return candidates[torch.arange(len(paper)), first]


def _draw(scans: Tensor, factors: dict[str, Tensor], size: int) -> Tensor:
    """Draws images without noise.  scans [1797, 8, 8], factors of B images -> float [B, 3, size, size] in [0, 1]"""
    angle, scale, shift = factors["angle"], factors["scale"], factors["shift"]
    # affine_grid maps positions p in the image to positions in the scan, both in [-1, 1]: turn @ (p - 2 shift)
    turn = (
        torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=1).view(-1, 2, 2) * scale[:, None, None]
    )
    offset = -turn @ (2 * shift)[:, :, None]  # [B, 2, 1]; an image is 2 units wide
    grid = F.affine_grid(torch.cat([turn, offset], dim=2), [len(angle), 1, size, size], align_corners=False)
    cover = F.grid_sample(scans[factors["scan"], None], grid, align_corners=False)  # [B, 1, size, size]
    ink, paper = factors["ink"][:, :, None, None], factors["paper"][:, :, None, None]
    return torch.lerp(paper, ink, cover)
