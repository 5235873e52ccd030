# SPDX-License-Identifier: Apache-2.0
"""Rotation accuracy: how well a linear layer tells from frozen features by how much an image was turned.

The labels are free: 0, 90, 180 or 270 degrees. A network that knows which way up things are knows something about
things, so this accuracy has been used to choose between networks where there are no labels.

Source: the pretext task of Gidaris, Singh, Komodakis, "Unsupervised Representation Learning by Predicting Image
Rotations", ICLR 2018, arXiv 1803.07728, as a probe of frozen features.
Traps: it says nothing of a network that was trained to ignore rotations, nor of images that have no way up.
"""

import torch
from torch import Tensor

from recipes_lib.data import splits
from recipes_lib.evaluation.trained_heads import best_head

TURNS = 4
"""The number of classes: turns by 0, 90, 180 and 270 degrees."""
HELD_OUT = 0.25
"""The share of the images whose rotations are predicted, and not learned from."""


def turned(images: Tensor) -> Tensor:
    """Each image turned by 0, 90, 180 and 270 degrees, image-major.  [N, 3, side, side] -> [4 * N, 3, side, side]"""
    return torch.stack([images.rot90(turn, (2, 3)) for turn in range(TURNS)], dim=1).flatten(0, 1)


def rotation_accuracy(features: Tensor, *, seed: int, epochs: int = 50) -> float:
    """The share of rotations, in [0, 1], that a linear layer recognises in images held out; chance is 0.25.

    The four turns of an image are all in the same part: learned from, or held out. ``seed`` draws the parts.

    Shapes: [N, 4, D], the features of the four turns of each image, in the order of :func:`turned`.
    Raises: ``ValueError`` for other shapes or fewer than 8 images.
    """
    if features.ndim != 3 or features.shape[1] != TURNS or len(features) < 8:
        raise ValueError(f"four turns of at least 8 images are wanted, [N, 4, D]; got {list(features.shape)}.")
    held = splits.held_out(torch.arange(len(features)), HELD_OUT, seed).to(features.device)
    sides = []
    for part in (features[~held], features[held]):
        sides += [part.flatten(0, 1), torch.arange(TURNS, device=part.device).repeat(len(part))]
    return best_head(*sides, seed=seed, epochs=epochs).accuracy
