# SPDX-License-Identifier: Apache-2.0
"""The chapter's diagram: MSN from one image to the loss."""

from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike, NDArray

from recipes_lib import diagrams
from recipes_lib.diagrams import Arrow, Box, Image, Shares


def draw(ax: Axes, image: ArrayLike, *, patches: int = 4) -> Axes:
    """Draws MSN from one image to the loss; half of the anchor view's ``patches`` x ``patches`` patches are dropped.

    Shapes: ``image`` [3, side, side], uint8; ``side`` is a multiple of ``patches``, which is even.
    The views are crops that show the idea, not the recipe's augmentations.
    """
    whole = np.asarray(image)
    nodes = {
        "image": Image(0, 0.5, whole, "an image"),
        "target view": Image(1, 0, crop(whole, "left", mirrored=True), "target view"),
        "anchor view": Image(
            1, 1, drop(crop(whole, "right", mirrored=False), patches), "anchor view,\npatches dropped"
        ),
        "target encoder": Box(2, 0, "target\nencoder"),
        "anchor encoder": Box(2, 1, "anchor\nencoder"),
        "prototypes": Box(3, 0.5, "shared\nprototypes"),
        "target assignment": Shares(4, 0, (0.04, 0.86, 0.05, 0.05), "assignment, sharp-\nened and balanced"),
        "anchor assignment": Shares(4, 1, (0.2, 0.5, 0.16, 0.14), "assignment"),
        "loss": Box(5, 0.5, "cross-entropy,\nmean entropy"),
    }
    arrows = [
        ("image", "target view"),
        ("image", "anchor view"),
        ("target view", "target encoder"),
        ("anchor view", "anchor encoder"),
        Arrow("anchor encoder", "target encoder", "follows", "moving\naverage"),
        ("target encoder", "target assignment"),
        ("anchor encoder", "anchor assignment"),
        ("prototypes", "target assignment"),
        ("prototypes", "anchor assignment"),
        Arrow("target assignment", "loss", "stop"),
        ("anchor assignment", "loss"),
    ]
    return diagrams.draw(ax, nodes, arrows)


def crop(image: NDArray, side: Literal["left", "right"], *, mirrored: bool) -> NDArray:
    """The upper left or right crop of an image, 3/4 as wide and high, enlarged: [3, side, side] -> [3, side, side]."""
    size = image.shape[-1]
    rows = np.arange(size) * 3 // 4  # nearest neighbour: every third row is used twice
    columns = rows + (size // 4 if side == "right" else 0)
    cut = image[:, rows][:, :, columns]
    return cut[:, :, ::-1] if mirrored else cut


def drop(image: NDArray, patches: int) -> NDArray:
    """The image [3, side, side] with a random half of the patches in each row painted white."""
    side = image.shape[-1] // patches
    dropped = np.random.default_rng(5).permuted(np.tile([True, False], (patches, patches // 2)), axis=1)
    return np.where(dropped.repeat(side, 0).repeat(side, 1), 255, image)
