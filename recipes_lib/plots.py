# SPDX-License-Identifier: Apache-2.0
"""The house's figures: functions of arrays and an ``Axes`` that return the ``Axes``; they train nothing and show nothing.

Arms differ in colour *and* in marker; the colours are those of Okabe and Ito, which colour-blind readers can tell
apart. Seeds are drawn as points beside their mean, and what a score must beat is a line with its name on it. Faces are
opaque white, so that a figure can be read on a dark page.

Source: Okabe, Ito, "Color Universal Design", 2008 (palette).
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from numpy.typing import ArrayLike, NDArray

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
BASELINE = "#595959"  # 7 to 1 against white
KNOWN = {"untrained": 1, "pixels": 2, "supervised": 3, "cooked earlier": 4}
"""Arms that stand beside many methods: each has the look of this number in every figure."""


FARTHEST = (-4.0, 6.0)
"""Ends of the axis of :func:`verdicts`, in margins; what lies further out becomes an arrow."""


class VerdictRow(NamedTuple):
    """A claim as :func:`verdicts` draws it."""

    name: str
    """What stands at the left, and below it the metrics of both arms as a text."""
    metrics: str
    in_margins: Sequence[float]
    """The difference from the control, one for each seed, in units of the margin; above 0 speaks for the claim."""
    needed: float
    """Where the mean has to lie, or further right: 1, or -1 where ours need only be no worse."""
    holds: bool
    words: str
    """The verdict, which stands at the right."""


def style(index: int) -> dict[str, str]:
    """Colour and marker of the ``index``-th arm; both repeat after seven."""
    return {"color": PALETTE[index % len(PALETTE)], "marker": MARKERS[index % len(MARKERS)]}


def looks(names: Sequence[str]) -> list[dict[str, str]]:
    """A look for each arm by its name: those of ``KNOWN`` have their own, the others take what is left, in order."""
    taken = {KNOWN[name] for name in names if name in KNOWN}
    left = (index for index in range(len(names) + len(taken)) if index not in taken)
    return [style(KNOWN[name]) if name in KNOWN else style(next(left)) for name in names]


def _prepare(ax: Axes, *, xlabel: str = "", ylabel: str = "", title: str = "") -> Axes:
    ax.figure.set_facecolor("white")
    ax.set_facecolor("white")
    ax.spines[["top", "right"]].set_visible(False)
    ax.set(xlabel=xlabel, ylabel=ylabel, title=title)
    return ax


def _seeds(values: ArrayLike) -> NDArray[np.float64]:
    """Figures as float64 [seeds, points]; one series becomes one seed."""
    array = np.atleast_2d(np.asarray(values, dtype=np.float64))
    if array.ndim != 2 or array.size == 0:
        raise ValueError(f"Values of shape {np.shape(values)}; give [points] or [seeds, points].")
    return array


def baselines(ax: Axes, levels: Mapping[str, float]) -> Axes:
    """Horizontal lines with their names at the right end: what a score has to beat, or could reach.

    Call it last: names that would lie upon each other are moved apart by the scale that the axis has by then.
    """
    dashes = ("--", ":", "-.", (0, (1, 4)))
    ordered = sorted(levels.items(), key=lambda item: item[1])
    for index, (_, level) in enumerate(ordered):
        ax.axhline(level, color=BASELINE, linestyle=dashes[index % len(dashes)], linewidth=1.2, zorder=1)
    low, high = ax.get_ylim()
    height = -np.inf
    for name, level in ordered:
        height = max(level, height + 0.07 * (high - low))  # a line of small print is about 7 % of an axis
        ax.annotate(
            f" {name} {level:.3g}",
            xy=(1, height),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize="small",
            color=BASELINE,
            annotation_clip=False,
        )
    return ax


def curve(
    ax: Axes,
    steps: ArrayLike,
    arms: Mapping[str, ArrayLike],
    *,
    xlabel: str = "optimiser step",
    ylabel: str,
    levels: Mapping[str, float] | None = None,
) -> Axes:
    """A line for each arm over training: the mean over seeds, its seeds thin behind it, and named baselines.

    Shapes: ``steps`` [points]; each arm [points] or [seeds, points].
    Raises: ``ValueError`` where an arm has another number of points than ``steps``.
    """
    x = np.asarray(steps)
    _prepare(ax, xlabel=xlabel, ylabel=ylabel)
    for look, (name, values) in zip(looks(list(arms)), arms.items(), strict=True):
        seeds = _seeds(values)
        if seeds.shape[1] != x.size:
            raise ValueError(f"Arm {name!r} has {seeds.shape[1]} points for {x.size} steps.")
        if len(seeds) > 1:
            ax.plot(x, seeds.T, color=look["color"], alpha=0.35, linewidth=0.8)
        every = max(1, x.size // 10)  # about ten markers, however long the run
        ax.plot(x, seeds.mean(axis=0), **look, markevery=every, markersize=5, linewidth=1.8, label=name)
    if len(arms) > 1:
        ax.legend(frameon=False)
    return baselines(ax, levels or {})


def sweep(
    axes: Sequence[Axes],
    panels: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    ylabel: str,
    levels: Mapping[str, float] | None = None,
    chosen: Mapping[str, float] | None = None,
) -> Sequence[Axes]:
    """Small multiples, one knob a panel: seeds as points, their mean as a line, the value in use as a vertical line.

    Shapes: ``panels[knob] = (settings [points], scores [points] or [seeds, points])``.
    Raises: ``ValueError`` unless there is a panel for each of ``axes``.
    """
    if len(axes) != len(panels):
        raise ValueError(f"{len(panels)} knobs for {len(axes)} axes.")
    for index, (ax, (knob, (settings, scores))) in enumerate(zip(axes, panels.items(), strict=True)):
        x, seeds, look = np.asarray(settings, dtype=np.float64), _seeds(scores), style(0)
        _prepare(ax, xlabel=knob, ylabel=ylabel if index == 0 else "")
        ax.plot(x, seeds.mean(axis=0), color=look["color"], linewidth=1.8)
        ax.plot(np.tile(x, len(seeds)), seeds.ravel(), linestyle="none", **look, markersize=5, alpha=0.7)
        if chosen and knob in chosen:
            ax.axvline(chosen[knob], color=BASELINE, linewidth=0.8)
        last = index == len(axes) - 1
        for level in () if last else (levels or {}).values():
            ax.axhline(level, color=BASELINE, linestyle="--", linewidth=1.2)
        if last:
            baselines(ax, levels or {})
    low = min(ax.get_ylim()[0] for ax in axes)
    high = max(ax.get_ylim()[1] for ax in axes)
    for ax in axes:
        ax.set_ylim(low, high)
    return axes


def bars(
    ax: Axes,
    arms: Mapping[str, ArrayLike],
    *,
    ylabel: str,
    levels: Mapping[str, float] | None = None,
) -> Axes:
    """A bar for each arm's mean over seeds, with every seed as a point upon it.

    Shapes: each arm [seeds]. Raises: ``ValueError`` for an arm without figures.
    """
    _prepare(ax, ylabel=ylabel)
    for index, (look, (name, values)) in enumerate(zip(looks(list(arms)), arms.items(), strict=True)):
        seeds = np.atleast_1d(np.asarray(values, dtype=np.float64))
        if seeds.size == 0:
            raise ValueError(f"Arm {name!r} has no figures.")
        ax.bar(index, seeds.mean(), width=0.65, color=look["color"], alpha=0.35)
        shifts = np.linspace(-0.15, 0.15, seeds.size) if seeds.size > 1 else [0.0]
        ax.plot(index + np.asarray(shifts), seeds, linestyle="none", **look, markersize=6)
    ax.set_xticks(range(len(arms)), list(arms))
    return baselines(ax, levels or {})


def scores(axes: Sequence[Axes], found: Mapping[str, Mapping[str, float]], *, method: str) -> Sequence[Axes]:
    """One panel a probe of a ``report.json``: the method's bar, named ``method``, beside those of its baselines.

    Raises: ``ValueError`` unless there is a panel for each of ``axes``.
    """
    if len(axes) != len(found):
        raise ValueError(f"{len(found)} probes for {len(axes)} axes.")
    arms = {"method": method, "random_init": "untrained", "raw_pixels": "pixels", "supervised": "supervised"}
    arms |= {"cooked": "cooked earlier"}
    titles = {"knn": "k-NN", "linear": "linear probe", "lowshot": "low-shot", "snn": "nearest neighbours"}
    titles |= {"zero_shot": "zero-shot", "tr1": "TR@1", "tr5": "TR@5", "ir1": "IR@1", "ir5": "IR@5"}
    for ax, (probe, row) in zip(axes, found.items(), strict=True):
        bars(ax, {arms[arm]: [score] for arm, score in row.items()}, ylabel="accuracy" if ax is axes[0] else "")
        ax.set_title(titles.get(probe, probe))
        ax.tick_params(axis="x", rotation=30)
    return axes


def class_map(ax: Axes, points: ArrayLike, labels: ArrayLike, names: Sequence[str], *, title: str = "") -> Axes:
    """Points of a plane, by class: each class's name stands at its median, so that colours need not be told apart.

    Shapes: ``points`` [N, 2], ``labels`` integers [N] in [0, len(names)).
    """
    at, of = np.asarray(points), np.asarray(labels)
    _prepare(ax, title=title)
    for index, name in enumerate(names):
        mine = at[of == index]
        if len(mine):
            ax.plot(*mine.T, linestyle="none", **style(index), markersize=3, alpha=0.6)
            look = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 1}
            ax.text(*np.median(mine, axis=0), name, ha="center", va="center", fontsize="small", bbox=look)
    ax.set_axis_off()
    return ax


def image_grid(ax: Axes, images: ArrayLike, *, columns: int = 8, gap: int = 1, title: str = "") -> Axes:
    """Images in rows of ``columns`` on one white sheet, which draws far faster than an ``Axes`` for each.

    Shapes: [N, 3, H, W] or [N, H, W, 3] (or 1 channel), uint8, or floats in [0, 1]; ``gap`` in pixels.
    Raises: ``ValueError`` for another shape.
    """
    tiles = np.asarray(images)
    if tiles.ndim != 4 or len(tiles) == 0:
        raise ValueError(f"Images of shape {tiles.shape}; give [N, 3, H, W] or [N, H, W, 3] with N of at least 1.")
    if tiles.shape[-1] not in (1, 3):
        tiles = tiles.transpose(0, 2, 3, 1)  # [N, C, H, W] -> [N, H, W, C]
    if tiles.shape[-1] not in (1, 3):
        raise ValueError(f"Images with {tiles.shape[-1]} channels; give 1 or 3.")
    if tiles.dtype == np.uint8:
        tiles = tiles / 255.0
    count, height, width, channels = tiles.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    sheet = np.ones((rows * (height + gap) - gap, columns * (width + gap) - gap, channels))
    for index, tile in enumerate(tiles):
        top, left = (index // columns) * (height + gap), (index % columns) * (width + gap)
        sheet[top : top + height, left : left + width] = tile
    _prepare(ax, title=title)
    ax.imshow(
        np.clip(sheet, 0, 1).squeeze(-1) if channels == 1 else np.clip(sheet, 0, 1),
        cmap="gray",
        vmin=0,
        vmax=1,
        interpolation="nearest",
    )
    ax.set_axis_off()
    return ax


def flow(ax: Axes, boxes: Mapping[str, tuple[float, float]], arrows: Sequence[tuple[str, str]]) -> Axes:
    """A diagram: named boxes at (x, y), in widths and heights of a box, and arrows from one to another.

    Raises: ``ValueError`` for an arrow to or from a box that is not there.
    """
    _prepare(ax)
    width, height = 0.84, 0.44
    patches = {}
    for name, (x, y) in boxes.items():
        corner = (x - width / 2, y - height / 2)
        look = {"boxstyle": "round,pad=0.02", "facecolor": "#eef3f8", "edgecolor": PALETTE[0]}
        patches[name] = ax.add_patch(FancyBboxPatch(corner, width, height, **look))
        ax.text(x, y, name, ha="center", va="center", fontsize="small")
    for start, end in arrows:
        if missing := {start, end} - set(boxes):
            raise ValueError(f"There is no box {missing.pop()!r}; there are {', '.join(map(repr, boxes))}.")
        ends = {"patchA": patches[start], "patchB": patches[end], "shrinkA": 1, "shrinkB": 1}
        look = {"arrowstyle": "-|>", "mutation_scale": 12, "color": BASELINE}
        ax.add_patch(FancyArrowPatch(boxes[start], boxes[end], **ends, **look))
    across, along = zip(*boxes.values(), strict=True)
    ax.set(xlim=(min(across) - 0.5, max(across) + 0.5), ylim=(min(along) - 0.3, max(along) + 0.3))
    ax.set_axis_off()
    return ax


def verdicts(ax: Axes, rows: Sequence[VerdictRow], *, limits: tuple[float, float] = FARTHEST) -> Axes:
    """A row for each claim: a point for each seed, their mean as a bar, and shaded where the mean has to lie.

    The axis is the difference from the control in units of each claim's margin, so that all claims share it; the control
    is at 0. Values beyond ``limits`` are arrows at the edge. Text is of 9 points or more, for a figure about 5
    inches wide, which a phone can show.
    Raises: ``ValueError`` where there is no row.
    """
    if not rows:
        raise ValueError("There are no verdicts to draw; give one row for each claim.")
    clipped = any(not limits[0] <= value <= limits[1] for row in rows for value in row.in_margins)
    key = "shaded: where the mean has to lie\nbar: the mean" + ("; arrow: a seed further out" if clipped else "")
    _prepare(ax)
    ax.set_xlabel(f"difference from the control, in margins\n{key}", fontsize=9)
    ax.axvline(0, color=BASELINE, linewidth=1.2, zorder=1)
    for place, row in enumerate(rows):
        _verdict(ax, place, row, limits)
    ax.set(xlim=limits, ylim=(len(rows) - 0.4, -0.6), yticks=[])
    ax.set_xticks(np.arange(np.ceil(limits[0]), limits[1] + 1, 2))
    ax.spines["left"].set_visible(False)
    ax.tick_params(labelsize=9)
    ax.annotate("control", (0, 1), xycoords=("data", "axes fraction"), ha="center", va="bottom", fontsize=9)
    return ax


def _verdict(ax: Axes, place: int, row: VerdictRow, limits: tuple[float, float]) -> None:
    """Draws one row of :func:`verdicts` at height ``place``."""
    look = style(2) if row.holds else style(1)
    values = np.asarray(row.in_margins, dtype=np.float64)
    if values.size:
        ax.barh(place, limits[1] - row.needed, left=row.needed, height=0.8, color="#dceaf4", zorder=0)
        mean = float(np.clip(values.mean(), *limits))
        ax.plot([mean, mean], [place - 0.32, place + 0.32], color="black", linewidth=2, clip_on=False, zorder=2)
    for value in values:
        inside = limits[0] <= value <= limits[1]
        marker = look["marker"] if inside else ">" if value > 0 else "<"
        at = np.clip(value, *limits)
        ax.plot(at, place, marker=marker, color=look["color"], markersize=7, alpha=0.8, clip_on=False, zorder=3)
    side = {"xycoords": ("axes fraction", "data"), "annotation_clip": False}
    ax.annotate(row.name, (-0.03, place - 0.04), ha="right", va="bottom", fontsize=10, **side)
    ax.annotate(row.metrics, (-0.03, place + 0.04), ha="right", va="top", fontsize=9, color=BASELINE, **side)
    ax.annotate(row.words, (1.05, place), ha="left", va="center", fontsize=9.5, **side)
