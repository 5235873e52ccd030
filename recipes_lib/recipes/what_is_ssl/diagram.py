# SPDX-License-Identifier: Apache-2.0
"""The chapter's two drawings: where pretext tasks come from, and the families of methods with what came after them."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Rectangle
from numpy.typing import ArrayLike, NDArray

from recipes_lib.plots import BASELINE, METHOD, PALETTE, WIDTH

SMALL = 9.5
"""Points of the words."""
SIDE = 0.68
"""Inches of a picture's side."""
_CELL = WIDTH / 3  # inches: three tasks in a row
_ROW = 1.75  # inches of a row of tasks
ORIGINS_HEIGHT = 2 * _ROW
"""Inches of the first drawing's height; its width is ``plots.WIDTH``."""
FAMILIES_HEIGHT = 4.1
"""Inches of the second drawing's height."""


def origins(ax: Axes, image: ArrayLike, frames: ArrayLike, others: ArrayLike) -> Axes:
    """Six ways to make a task of unlabelled pictures: what is given at the left of each arrow, what is asked at its right.

    Shapes: ``image`` uint8 [3, side, side], ``side`` a multiple of 4; ``frames`` [3, 3, side, side], one scene at three
    moments; ``others`` [4, 3, side, side], two pictures of one kind and two of another.
    """
    whole, moments, kinds = (_last(array) for array in (image, frames, others))
    grey = np.repeat(whole.mean(axis=-1, keepdims=True), 3, axis=-1)
    quarter = whole.shape[0] // 4
    noisy = np.clip(whole + np.random.default_rng(0).normal(0, 0.2, whole.shape), 0, 1)
    crops = [whole[: 3 * quarter, : 3 * quarter], whole[quarter:, quarter:][:, ::-1]]
    rows = np.concatenate([np.concatenate(kinds[:2], axis=1), np.concatenate(kinds[2:], axis=1)])
    mixed = np.concatenate([np.concatenate(kinds[[0, 2]], axis=1), np.concatenate(kinds[[3, 1]], axis=1)])
    _page(ax, ORIGINS_HEIGHT)
    _task(ax, 0, "restoring information", [grey], [whole], "Which colours did it have?")
    _task(ax, 1, "order in time", moments[[1, 0]], moments[[0, 1]], "Which moment was first?")
    _task(ax, 2, "spatial context", [np.rot90(whole)], [whole], "How was it turned?")
    _task(ax, 3, "grouping", [mixed], [rows], "Which belong together?")
    _task(ax, 4, "generating", [noisy], [whole], "What is the likely picture?")
    _task(ax, 5, "several views", crops, [], "Are these one picture?")
    return ax


def families(ax: Axes, image: ArrayLike) -> Axes:
    """The four families, a sketch of each, and below them the methods that came of them.

    Shapes: ``image`` uint8 [3, side, side], ``side`` a multiple of 4.
    """
    _page(ax, FAMILIES_HEIGHT)
    width, gap = 1.8, (WIDTH - 4 * 1.8 - 0.1) / 3
    lefts = [0.05 + place * (width + gap) for place in range(4)]
    names = ("deep metric\nlearning", "self-\ndistillation", "canonical\ncorrelation", "masked\nmodelling")
    words = (
        "own views attract,\nothers repel",
        "predict the output\nof a slower copy",
        "dimensions vary\nand differ",
        "fill in what\nwas hidden",
    )
    top = FAMILIES_HEIGHT - 0.05
    for left, name, said in zip(lefts, names, words, strict=True):
        _rounded(ax, left, top - 2.45, width, 2.45, "#ffffff")
        ax.text(left + width / 2, top - 0.3, name, ha="center", va="center", fontsize=11, weight="bold")
        ax.text(left + width / 2, top - 2.18, said, ha="center", va="center", fontsize=SMALL, linespacing=1.15)
    middle = top - 1.25
    _attraction(ax, lefts[0] + width / 2, middle)
    _copy(ax, lefts[1] + width / 2, middle)
    _matrix(ax, lefts[2] + width / 2, middle)
    _holes(ax, lefts[3] + width / 2, middle, _last(image))
    _after(ax, [left + width / 2 for left in lefts], top - 2.45)
    return ax


def _page(ax: Axes, high: float) -> None:
    """Makes one unit one inch, and the axes the whole figure."""
    ax.set_position((0, 0, 1, 1))
    ax.figure.set_layout_engine("none")
    ax.figure.set_facecolor("white")
    ax.set(xlim=(0, WIDTH), ylim=(0, high), aspect="auto")
    ax.set_axis_off()


def _last(images: ArrayLike) -> NDArray[np.float64]:
    """uint8 [..., 3, H, W] -> [..., H, W, 3] in [0, 1]."""
    return np.moveaxis(np.asarray(images), -3, -1) / 255.0


def _picture(ax: Axes, image: NDArray, left: float, bottom: float, side: float = SIDE) -> None:
    extent = (left, left + side, bottom, bottom + side)
    ax.imshow(image, extent=extent, aspect="auto", interpolation="nearest", zorder=2)
    ax.add_patch(Rectangle((left, bottom), side, side, fill=False, edgecolor=BASELINE, linewidth=0.8, zorder=3))


def _arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], **look: object) -> None:
    shown = {"arrowstyle": "-|>", "mutation_scale": 11, "color": BASELINE, "linewidth": 1.3}
    ax.add_patch(FancyArrowPatch(start, end, shrinkA=0, shrinkB=0, **{**shown, **look}))


def _rounded(ax: Axes, left: float, bottom: float, width: float, height: float, face: str) -> None:
    look = {"boxstyle": "round,pad=0,rounding_size=0.06", "facecolor": face, "edgecolor": PALETTE[METHOD]}
    ax.add_patch(FancyBboxPatch((left, bottom), width, height, **look))


def _task(ax: Axes, place: int, name: str, given: ArrayLike, asked: ArrayLike, question: str) -> None:
    """One pretext task: its name, pictures that are given, an arrow, pictures that are asked for, and the question."""
    row, column = divmod(place, 3)
    middle, top = (column + 0.5) * _CELL, ORIGINS_HEIGHT - row * _ROW
    ax.text(middle, top - 0.2, name, ha="center", va="center", fontsize=11, weight="bold")
    ax.text(middle, top - 1.35, question, ha="center", va="center", fontsize=SMALL)
    count, room, bottom = len(given) + max(1, len(asked)), 0.34, top - 0.42 - SIDE
    side = SIDE if count <= 3 else 0.5
    step, left = side + 0.05, middle - (count * (side + 0.05) - 0.05 + room) / 2
    for number, image in enumerate([*given, *asked]):
        at = left + number * step + (room if number >= len(given) else 0)
        _picture(ax, image, at, bottom + (SIDE - side) / 2, side)
    start = left + len(given) * step
    _arrow(ax, (start, bottom + SIDE / 2), (start + room - 0.06, bottom + SIDE / 2))
    if not len(asked):
        ax.text(start + room + side / 2, bottom + SIDE / 2, "yes", ha="center", va="center", fontsize=12)


def _dot(ax: Axes, x: float, y: float, colour: str, radius: float = 0.07) -> None:
    ax.add_patch(Circle((x, y), radius, facecolor=colour, edgecolor="white", zorder=4))


def _attraction(ax: Axes, x: float, y: float) -> None:
    """Two views of an image that attract each other, and views of three other images that are pushed away."""
    for side in (-1, 1):
        _dot(ax, x + 0.3 * side, y - 0.1 * side, PALETTE[0])
        _arrow(ax, (x + 0.22 * side, y - 0.073 * side), (x + 0.02 * side, y - 0.007 * side))
    for angle, colour in ((0.45, PALETTE[1]), (2.2, PALETTE[2]), (4.4, PALETTE[3])):
        along = np.array([np.cos(angle), 0.8 * np.sin(angle)])
        start, end = np.array([x, y]) + 0.42 * along, np.array([x, y]) + 0.64 * along
        _arrow(ax, tuple(start), tuple(end), color=colour)
        _dot(ax, *(np.array([x, y]) + 0.72 * along), colour)


def _copy(ax: Axes, x: float, y: float) -> None:
    """A student that predicts the output of a teacher, whose weights follow it and through which no gradient flows."""
    for height, name in ((0.33, "teacher"), (-0.33, "student")):
        _rounded(ax, x - 0.78, y + height - 0.15, 0.7, 0.3, "#eef3f8")
        ax.text(x - 0.43, y + height, name, ha="center", va="center", fontsize=SMALL)
        _dot(ax, x + 0.55, y + height, PALETTE[0])
        _arrow(ax, (x - 0.06, y + height), (x + 0.46, y + height))
    _arrow(ax, (x - 0.43, y - 0.17), (x - 0.43, y + 0.17), linestyle="--")
    _arrow(ax, (x + 0.55, y - 0.24), (x + 0.55, y + 0.24))
    for shift in (0.17, 0.23):
        ax.plot([x + shift, x + shift], [y + 0.25, y + 0.41], color=PALETTE[1], linewidth=1.8, zorder=4)
    ax.text(x + 0.2, y + 0.5, "sg", ha="center", va="center", fontsize=SMALL)


def _matrix(ax: Axes, x: float, y: float) -> None:
    """The correlations of the embeddings' dimensions, which should be 1 on the diagonal and 0 elsewhere."""
    shares = np.where(np.eye(5, dtype=bool), 0.75, 0.08)[..., None]
    blue = np.array([0, 114, 178]) / 255
    _picture(ax, 1 - shares * (1 - blue), x - 0.45, y - 0.45, 0.9)


def _holes(ax: Axes, x: float, y: float, image: NDArray) -> None:
    """A picture with patches hidden, and the whole picture that has to be predicted."""
    side = image.shape[0] // 4
    hidden = np.random.default_rng(3).permuted(np.tile([True, True, False, False], (4, 1)), axis=1)
    seen = np.where(hidden.repeat(side, 0).repeat(side, 1)[..., None], 0.85, image)
    _picture(ax, seen, x - 0.81, y - 0.34)
    _arrow(ax, (x - 0.1, y), (x + 0.1, y))
    _picture(ax, image, x + 0.13, y - 0.34)


def _after(ax: Axes, centres: list[float], top: float) -> None:
    """The methods that came of the families: a box for each, and an arrow from each family that it joins."""
    height, bottom = 0.78, 0.05
    came = (
        ("CLIP: the other view\nis the caption", (0,)),
        ("MSN, PAWS, PMSN:\nchoose the same\ncluster", (1, 2, 3)),
        ("LeJEPA: embeddings\nspread like\na Gaussian", (2,)),
        ("I-JEPA: predict\nembeddings of\nhidden blocks", (1, 3)),
    )
    for at, (words, sources) in zip(centres, came, strict=True):
        _rounded(ax, at - 0.86, bottom, 1.72, height, "#eef3f8")
        ax.text(at, bottom + height / 2, words, ha="center", va="center", fontsize=SMALL, linespacing=1.15)
        for source in sources:
            shift = 0.16 * np.sign(centres[source] - at)
            _arrow(ax, (centres[source] - shift, top - 0.03), (at + 2 * shift, bottom + height + 0.03))
