# SPDX-License-Identifier: Apache-2.0
"""The chapter's diagram: CLIP's training step in one picture, drawn from a batch of three pairs."""

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike

from recipes_lib import diagrams, plots
from recipes_lib.diagrams import Box, Image


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
        "cosines": Image(
            2, 1, diagrams.shaded(table, "Blues"), "cosines: a row for each\nimage, a column for\neach text"
        ),
        "loss": Box(2, 2, "cross-entropy of\nrows and of columns"),
    }
    arrows = [(f"{kind} {row}", f"{kind} tower") for kind in ("image", "text") for row in range(len(table))]
    arrows += [("image tower", "cosines"), ("text tower", "cosines"), ("temperature", "cosines"), ("cosines", "loss")]
    diagrams.draw(ax, nodes, arrows)
    left, right, bottom, top = diagrams.write(ax, len(table), [[f"{value:.2f}" for value in row] for row in table])
    wide, high = (right - left) / len(table), (top - bottom) / len(table)
    for place in range(len(table)):
        corner = (left + place * wide, top - (place + 1) * high)
        ax.add_patch(Rectangle(corner, wide, high, fill=False, edgecolor=plots.PALETTE[1], linewidth=2, zorder=5))
    return ax
