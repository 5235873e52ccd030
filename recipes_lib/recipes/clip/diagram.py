# SPDX-License-Identifier: Apache-2.0
"""The chapter's diagram: CLIP's training step in one picture, drawn from a batch of three pairs."""

import textwrap
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike, NDArray

from recipes_lib import diagrams, plots
from recipes_lib.diagrams import Box, Image

POINTS = 9.0
"""Size of the numbers in a matrix."""


def draw(ax: Axes, images: ArrayLike, captions: Sequence[str], cosines: ArrayLike, *, scale: float) -> Axes:
    """A batch of three pairs, both towers, the matrix of cosines with its diagonal framed, and the loss.

    ``scale``: the learned scale s, the inverse of the temperature.
    Shapes: ``images`` uint8 [3, 3, H, W], three ``captions``, ``cosines`` [3, 3] with a row for each image.
    """
    table = np.asarray(cosines)
    nodes = {f"image {row}": Image(0, row, image) for row, image in enumerate(np.asarray(images))}
    nodes |= {f"text {row}": Box(4, row, textwrap.fill(caption, 17)) for row, caption in enumerate(captions)}
    nodes |= {
        "image tower": Box(1, 1, "image\ntower"),
        "text tower": Box(3, 1, "text\ntower"),
        "temperature": Box(2, 0, f"divide by the\ntemperature {1 / scale:.3f}"),
        "cosines": Image(2, 1, shaded(table, "Blues"), "cosines: a row for each\nimage, a column for\neach text"),
        "loss": Box(2, 2, "cross-entropy of\nrows and of columns"),
    }
    arrows = [(f"{kind} {row}", f"{kind} tower") for kind in ("image", "text") for row in range(len(table))]
    arrows += [("image tower", "cosines"), ("text tower", "cosines"), ("temperature", "cosines"), ("cosines", "loss")]
    diagrams.draw(ax, nodes, arrows)
    left, right, bottom, top = write(ax, len(table), [[f"{value:.2f}" for value in row] for row in table])
    wide, high = (right - left) / len(table), (top - bottom) / len(table)
    for place in range(len(table)):
        corner = (left + place * wide, top - (place + 1) * high)
        ax.add_patch(Rectangle(corner, wide, high, fill=False, edgecolor=plots.PALETTE[1], linewidth=2, zorder=5))
    return ax


def shaded(matrix: ArrayLike, colours: str) -> NDArray:
    """A matrix as an image, float [rows, columns, 3]: the larger a magnitude, the darker; pale enough for black numbers."""
    sizes = np.abs(np.asarray(matrix, dtype=float))
    return matplotlib.colormaps[colours](0.05 + 0.45 * sizes / sizes.max())[..., :3]


def write(ax: Axes, image: int, words: Sequence[Sequence[str]]) -> tuple[float, float, float, float]:
    """Writes ``words`` into the cells of the ``image``-th image of a diagram, row by row; a zero before the point is left out.

    Returns the image's left, right, bottom and top, in inches.
    """
    left, right, bottom, top = ax.images[image].get_extent()
    for row, line in enumerate(words):
        for column, word in enumerate(line):
            x = left + (column + 0.5) * (right - left) / len(line)
            y = top - (row + 0.5) * (top - bottom) / len(words)
            short = word.replace("0.", ".", 1) if word.removeprefix("-").startswith("0.") else word
            ax.text(x, y, short, ha="center", va="center", fontsize=POINTS, zorder=6)
    return left, right, bottom, top
