# SPDX-License-Identifier: Apache-2.0
"""Diagrams of a method: boxes, images and small bar charts in columns, and arrows between them.

A chapter lists the nodes and the arrows; widths are measured here, so that words stay inside their boxes at every font.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle
from matplotlib.textpath import TextPath
from numpy.typing import ArrayLike, NDArray

from recipes_lib.plots import BASELINE, METHOD, PALETTE, sheet


@dataclass(frozen=True)
class Box:
    """A box of a method's diagram with words in it, which it always has room for."""

    column: float
    row: float
    text: str


@dataclass(frozen=True)
class Image:
    """An image in a method's diagram, its words below it."""

    column: float
    row: float
    image: ArrayLike
    """[3, H, W] or [H, W, 3], uint8, or floats in [0, 1]."""
    text: str = ""


@dataclass(frozen=True)
class Shares:
    """A small bar chart in a method's diagram, such as an assignment to prototypes, its words below it."""

    column: float
    row: float
    heights: Sequence[float]
    text: str = ""


@dataclass(frozen=True)
class Arrow:
    """An arrow of a method's diagram."""

    start: str
    end: str
    kind: Literal["forward", "stop", "follows"] = "forward"
    """``stop``: no gradient goes back along it, two bars and "sg"; ``follows``: copied or averaged, not trained, dashed."""
    text: str = ""


IMAGE_INCHES = 0.9
"""Side of an image and width of a bar chart."""
NUMBERS = 9.0
"""Points of the numbers in a matrix."""
_SMALL = 9.5  # points of the words in a diagram
_LINE = 1.3 * _SMALL / 72  # inches from line to line
_PAD = 0.09  # inches between words and the rim of their box
_GAP = 0.22  # least inches between two columns, so that an arrow can be seen


def draw(ax: Axes, nodes: Mapping[str, Box | Image | Shares], arrows: Sequence[Arrow | tuple[str, str]]) -> Axes:
    """A method in one picture: named nodes in columns from left to right, and arrows between them.

    Columns are as wide as their widest node, and what is left of the figure's width stands between them. Rows spread over its
    height, the lowest number on top; fractions lie between. A pair of names is a plain arrow.

    Raises: ``ValueError`` where the nodes do not fit the figure, or an arrow starts or ends at no node.
    """
    wide, high = ax.figure.get_size_inches()
    ax.set_position((0, 0, 1, 1))
    ax.figure.set_layout_engine("none")
    ax.figure.set_facecolor("white")
    sizes = {name: _size(node) for name, node in nodes.items()}
    centres = _centres(nodes, sizes, wide, high)
    for name, node in nodes.items():
        _node(ax, node, centres[name], sizes[name])
    for arrow in arrows:
        arrow = arrow if isinstance(arrow, Arrow) else Arrow(*arrow)
        if missing := {arrow.start, arrow.end} - set(nodes):
            raise ValueError(f"There is no node {missing.pop()!r}; there are {', '.join(map(repr, nodes))}.")
        _connect(ax, arrow, centres, sizes)
    ax.set(xlim=(0, wide), ylim=(0, high), aspect="auto")  # one unit is one inch
    ax.set_axis_off()
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
            ax.text(x, y, short, ha="center", va="center", fontsize=NUMBERS, zorder=6)
    return left, right, bottom, top


def _words(text: str) -> tuple[float, float]:
    """Width and height of words in a diagram, in inches."""
    lines = text.split("\n") if text else []
    widths = [TextPath((0, 0), line, size=_SMALL).get_extents().width / 72 if line.strip() else 0 for line in lines]
    return max(widths, default=0.0), len(lines) * _LINE


def _size(node: Box | Image | Shares) -> tuple[float, float]:
    width, height = _words(node.text)
    if isinstance(node, Box):
        return width + 2 * _PAD, height + 2 * _PAD
    drawn = IMAGE_INCHES if isinstance(node, Image) else 0.55 * IMAGE_INCHES
    return max(width, IMAGE_INCHES), drawn + height + (0.04 if node.text else 0)


def _centres(
    nodes: Mapping[str, Box | Image | Shares], sizes: Mapping[str, tuple[float, float]], wide: float, high: float
) -> dict[str, tuple[float, float]]:
    """Where the middle of each node lies, in inches from the lower left corner."""
    margin = 0.05
    columns = sorted({node.column for node in nodes.values()})
    widths = [max(sizes[name][0] for name, node in nodes.items() if node.column == column) for column in columns]
    gap = (wide - 2 * margin - sum(widths)) / max(1, len(columns) - 1)
    if len(columns) > 1 and gap < _GAP:
        lacking = (_GAP - gap) * (len(columns) - 1)
        raise ValueError(
            f"The diagram is {lacking:.2f} inches too wide for {wide:g}; break lines or leave a column out."
        )
    starts = margin + np.concatenate([[0], np.cumsum(np.array(widths) + gap)[:-1]])
    middle = dict(zip(columns, starts + np.array(widths) / 2, strict=True))
    rows = sorted({node.row for node in nodes.values()})
    top, bottom = (
        max(sizes[name][1] for name, node in nodes.items() if node.row == row) / 2 for row in (rows[0], rows[-1])
    )
    spread = (high - 2 * margin - top - bottom) / ((rows[-1] - rows[0]) or 1)
    found = {
        name: (float(middle[node.column]), float(high - margin - top - (node.row - rows[0]) * spread))
        for name, node in nodes.items()
    }
    for one, other in itertools.combinations(nodes, 2):
        if nodes[one].column == nodes[other].column:
            between = abs(found[one][1] - found[other][1]) - (sizes[one][1] + sizes[other][1]) / 2
            if between < 0:
                raise ValueError(f"{one!r} and {other!r} overlap by {-between:.2f} inches; make the figure higher.")
    return found


def _node(ax: Axes, node: Box | Image | Shares, centre: tuple[float, float], size: tuple[float, float]) -> None:
    (x, y), (width, height) = centre, size
    if isinstance(node, Box):
        look = {"boxstyle": "round,pad=0,rounding_size=0.06", "facecolor": "#eef3f8", "edgecolor": PALETTE[METHOD]}
        ax.add_patch(FancyBboxPatch((x - width / 2, y - height / 2), width, height, **look))
        ax.text(x, y, node.text, ha="center", va="center", fontsize=_SMALL, linespacing=1.15)
        return
    left, top, side = x - IMAGE_INCHES / 2, y + height / 2, IMAGE_INCHES
    if isinstance(node, Image):
        bottom = top - side
        extent = (left, left + side, bottom, top)
        ax.imshow(sheet(np.asarray(node.image)[None], 1, 0), extent=extent, cmap="gray", vmin=0, vmax=1, zorder=2)
        ax.add_patch(Rectangle((left, bottom), side, side, fill=False, edgecolor=BASELINE, linewidth=0.8, zorder=3))
    else:
        bottom = top - 0.55 * side
        tall, pitch = 0.55 * side / max(node.heights), side / len(node.heights)
        for place, share in enumerate(node.heights):
            ax.add_patch(
                Rectangle((left + pitch * (place + 0.1), bottom), 0.8 * pitch, tall * share, color=PALETTE[METHOD])
            )
        ax.plot([left, left + side], [bottom, bottom], color=BASELINE, linewidth=1)
    ax.text(x, bottom - 0.04, node.text, ha="center", va="top", fontsize=_SMALL, linespacing=1.15)


def _connect(
    ax: Axes,
    arrow: Arrow,
    centres: Mapping[str, tuple[float, float]],
    sizes: Mapping[str, tuple[float, float]],
) -> None:
    start, end = np.array(centres[arrow.start]), np.array(centres[arrow.end])
    along = (end - start) / np.linalg.norm(end - start)
    start, end = start + along * _rim(along, sizes[arrow.start]), end - along * _rim(along, sizes[arrow.end])
    dashes = "--" if arrow.kind == "follows" else "-"
    look = {"arrowstyle": "-|>", "mutation_scale": 12, "color": BASELINE, "linewidth": 1.3, "linestyle": dashes}
    ax.add_patch(FancyArrowPatch(start, end, shrinkA=0, shrinkB=0, **look))
    across, middle = np.array([-along[1], along[0]]), (start + end) / 2
    across = (
        across if across[1] > 1e-9 or (abs(across[1]) <= 1e-9 and across[0] > 0) else -across
    )  # up, or to the right
    text = arrow.text
    if arrow.kind == "stop":
        text = f"sg\n{text}".strip()
        for shift in (-0.03, 0.03):
            bar = np.stack([middle + shift * along - 0.08 * across, middle + shift * along + 0.08 * across])
            ax.plot(*bar.T, color=PALETTE[1], linewidth=1.8, solid_capstyle="butt", zorder=4)
    if text:
        room = 0.1 + np.abs(across) @ np.array(_words(text)) / 2
        ax.text(*(middle + room * across), text, ha="center", va="center", fontsize=_SMALL, linespacing=1.15)


def _rim(along: NDArray, size: tuple[float, float]) -> float:
    """Inches from a node's middle to a little beyond its rim, in the direction of an arrow."""
    with np.errstate(divide="ignore"):
        return float((np.array(size) / 2 / np.abs(along)).min()) + 0.03
