# SPDX-License-Identifier: Apache-2.0
"""The house's figures: functions of plain arrays; they train nothing and show nothing.

Most take an ``Axes`` and return it; ``panels`` and ``sweep`` make the figure too. Arms differ in colour *and* in marker; the
colours are those of Okabe and Ito, which colour-blind readers can tell apart, and an arm that stands beside many methods
(``KNOWN``) looks the same in every figure. Seeds are drawn as points beside their mean, and what a score must beat is a
line with its name on it. Faces are opaque white, so that a figure can be read on a dark page.

Source: Okabe, Ito, "Color Universal Design", 2008 (palette).
"""

import textwrap
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator
from numpy.typing import ArrayLike, NDArray

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
BASELINE = "#595959"  # 7 to 1 against white
METHOD = 0
"""Number of the look of what a chapter is about."""
KNOWN = {"random init": 1, "raw pixels": 2, "supervised": 3, "cooked": 4}
KNOWN |= {"untrained": 1, "pixels": 2, "cooked earlier": 4}  # as sentences name them
"""Arms that stand beside many methods: each has the look of this number in every figure."""

WIDTH = 7.75
"""Inches of a figure over the whole column: 852 dots, and the column of a page is 854 wide at most."""
STYLE = {
    "figure.dpi": 110,  # sharp on a page, and a figure stays within its 64 KB
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "axes.facecolor": "white",
    "axes.prop_cycle": pyplot.cycler(color=PALETTE),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": "medium",
    "font.size": 11.0,  # "small" is 9.2: 12 pixels, which is 9 points, where a narrow window shows a figure at 0.86 of its size
    "legend.fontsize": "small",
    "legend.frameon": False,
    "xtick.labelsize": "small",
    "ytick.labelsize": "small",
}
"""Settings of matplotlib that every figure of the book is drawn with; ``notebook.start`` sets them."""

FEW_POINTS = 7
"""Up to so many settings, an axis has a tick at each of them and nowhere else."""


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
    """A look for each arm by its name.

    Arms of ``KNOWN`` have their own. The others take, in order, the method's, those that no known arm has, and last those of
    known arms that are not in this figure.
    """
    taken = {KNOWN[name] for name in names if name in KNOWN}
    reserved = set(KNOWN.values())
    free = [index for index in range(len(PALETTE)) if index not in reserved]
    free += sorted(reserved - taken)
    free += range(len(PALETTE), len(PALETTE) + len(names))  # of more arms than looks, some share one
    left = iter(free)
    return [style(KNOWN[name]) if name in KNOWN else style(next(left)) for name in names]


def panels(count: int, *, columns: int = 2, height: float = 2.6, sharey: bool = False) -> tuple[Figure, list[Axes]]:
    """A figure of ``count`` axes over the whole column, in rows of ``columns``; ``height`` in inches of a row.

    Raises: ``ValueError`` unless there is at least one axes in at least one column.
    """
    if count < 1 or columns < 1:
        raise ValueError(f"{count} axes in {columns} columns; both must be at least 1.")
    columns = min(columns, count)
    rows = -(-count // columns)
    width = WIDTH if columns > 1 else 0.65 * WIDTH
    figure, grid = pyplot.subplots(
        rows, columns, figsize=(width, rows * height), layout="constrained", sharey=sharey, squeeze=False
    )
    for ax in grid.flat[count:]:
        ax.remove()
    return figure, list(grid.flat[:count])


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
    _ticks_at(ax, x)
    if len(arms) > 1:
        ax.legend()
    return baselines(ax, levels or {})


def _ticks_at(ax: Axes, places: NDArray) -> None:
    """Ticks at the places themselves where these are few, and at whole numbers where all places are whole."""
    if places.size <= FEW_POINTS:
        ax.set_xticks(places, [f"{place:g}" for place in places])
    elif (places == places.round()).all():
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def sweep(
    panels_of: Mapping[str, Mapping[float | str, Mapping[str, Sequence[float]]]],
    *,
    ylabel: str,
    levels: Mapping[str, float] | None = None,
    chosen: Mapping[str, float | str] | None = None,
    columns: int = 3,
) -> Figure:
    """Small multiples of a sweep that was computed before: a panel per knob, a line per arm, a point per seed.

    ``panels_of[knob][setting][arm]`` holds a value per seed. Settings that are words stand in their order, numbers where
    their value is (on a logarithmic axis where the largest is at least 20 times the smallest). ``chosen[knob]`` is the
    setting in use, a vertical line; ``levels`` are named horizontal lines. All panels share one scale.

    Raises: ``ValueError`` for no panel, settings of one panel with different arms, or a chosen setting that is not there.
    """
    if not panels_of:
        raise ValueError("A sweep of no knob; give at least one panel.")
    chosen = chosen or {}
    for knob, setting in chosen.items():
        if setting not in panels_of.get(knob, {}):
            raise ValueError(
                f"{setting!r} is no setting of {knob!r}; there are {list(panels_of.get(knob, panels_of))}."
            )
    figure, axes = panels(len(panels_of), columns=columns, sharey=True)
    arms = list(dict.fromkeys(arm for points in panels_of.values() for row in points.values() for arm in row))
    look_of = dict(zip(arms, looks(arms), strict=True))
    for ax, (knob, points) in zip(axes, panels_of.items(), strict=True):
        at = _places(ax, list(points))
        if len({frozenset(row) for row in points.values()}) > 1:
            raise ValueError(f"The settings of {knob!r} have different arms; give each of them the same.")
        _prepare(ax, xlabel=knob, ylabel=ylabel if ax.get_subplotspec().is_first_col() else "")
        for arm in next(iter(points.values())):
            seeds, look = [np.asarray(row[arm], dtype=np.float64) for row in points.values()], look_of[arm]
            ax.plot(at, [values.mean() for values in seeds], color=look["color"], linewidth=1.8)
            across = np.repeat(at, [values.size for values in seeds])
            ax.plot(across, np.concatenate(seeds), linestyle="none", **look, markersize=5, alpha=0.7, label=arm)
        if knob in chosen:
            ax.axvline(at[list(points).index(chosen[knob])], color=BASELINE, linewidth=0.8)
        for level in (levels or {}).values() if ax is not axes[-1] else ():
            ax.axhline(level, color=BASELINE, linestyle="--", linewidth=1.2)
    baselines(axes[-1], levels or {})
    if len(arms) > 1:
        shown = {name: line for ax in axes for line, name in zip(*ax.get_legend_handles_labels(), strict=True)}
        figure.legend(shown.values(), shown.keys(), loc="outside upper center", ncols=min(4, len(arms)))
    return figure


def responses(
    panels_of: Mapping[str, Mapping[str, Mapping[float | str, Sequence[float]]]],
    *,
    xlabel: str,
    ylabel: str,
    levels: Mapping[str, float] | None = None,
    columns: int = 2,
) -> Figure:
    """A grid of settings: one setting along x, one as lines, and a panel for each of the others.

    ``panels_of[title][line][setting]`` holds a value per seed: their mean is drawn, with a bar over their range, and a
    cross at the lower edge where there is none. Words stand in their order. Numbers stand where their value is, on a
    logarithmic axis if they span a decade; if they also reach 0, they stand in their order. ``levels`` are named
    horizontal lines. All panels share one scale.

    Raises: ``ValueError`` for no panel.
    """
    if not panels_of:
        raise ValueError("A figure of no panel; give at least one.")
    figure, axes = panels(len(panels_of), columns=columns, sharey=True)
    names = list(dict.fromkeys(name for lines in panels_of.values() for name in lines))
    look_of = dict(zip(names, looks(names), strict=True))
    for ax, (title, lines) in zip(axes, panels_of.items(), strict=True):
        settings = list(dict.fromkeys(setting for values in lines.values() for setting in values))
        at = dict(zip(settings, _places(ax, _without_zero(settings), log_from=10.0), strict=True))
        _prepare(ax, xlabel=xlabel, ylabel=ylabel if ax.get_subplotspec().is_first_col() else "", title=title)
        for name, values in lines.items():
            _response(ax, {at[setting]: seeds for setting, seeds in values.items()}, look_of[name], name)
        for level in (levels or {}).values() if ax is not axes[-1] else ():
            ax.axhline(level, color=BASELINE, linestyle="--", linewidth=1.2)
    baselines(axes[-1], levels or {})
    if len(names) > 1:
        shown = {name: line for ax in axes for line, name in zip(*ax.get_legend_handles_labels(), strict=True)}
        figure.legend(shown.values(), shown.keys(), loc="outside upper center", ncols=min(3, len(names)))
    return figure


def _response(ax: Axes, values: Mapping[float, Sequence[float]], look: Mapping[str, str], name: str) -> None:
    """One line of :func:`responses`: a value per seed for each place."""
    some = {place: np.asarray(seeds, dtype=np.float64) for place, seeds in sorted(values.items()) if len(seeds)}
    means = np.array([seeds.mean() for seeds in some.values()])
    low, high = (np.array([end(seeds) for seeds in some.values()]) for end in (np.min, np.max))
    ax.errorbar(
        list(some), means, yerr=[means - low, high - means], **look, markersize=5, linewidth=1.8, capsize=3, label=name
    )
    if lost := [place for place, seeds in values.items() if not len(seeds)]:
        crosses = {"marker": "x", "linestyle": "none", "color": look["color"], "markersize": 8}
        ax.plot(lost, [0.03] * len(lost), transform=ax.get_xaxis_transform(), **crosses)


def _places(ax: Axes, settings: list[float | str], *, log_from: float = 20.0) -> NDArray[np.float64]:
    """Where settings stand on the axis, which gets a tick at each (or whole numbers, where they are many).

    Words stand in their order. The axis is logarithmic if the largest number is ``log_from`` times the smallest, or more.
    """
    if any(isinstance(setting, str) for setting in settings):
        at = np.arange(len(settings), dtype=np.float64)
        ax.set_xticks(at, [str(setting) for setting in settings])
        return at
    at = np.asarray(settings, dtype=np.float64)
    if at.min() > 0 and at.max() >= log_from * at.min():
        ax.set_xscale("log")
        ax.xaxis.set_minor_locator(NullLocator())
    _ticks_at(ax, at)
    return at


def _without_zero(settings: list[float | str]) -> list[float | str]:
    """The settings as words, if they are numbers that reach from 0 over a decade: no scale has room for both."""
    above = [setting for setting in settings if not isinstance(setting, str) and setting > 0]
    if len(above) in (0, len(settings)) or max(above) < 10 * min(above):
        return settings
    return [setting if isinstance(setting, str) else f"{setting:g}" for setting in settings]


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
    ax.set_xticks(range(len(arms)), [textwrap.fill(name, 14, replace_whitespace=False) for name in arms])
    return baselines(ax, levels or {})


def scores(axes: Sequence[Axes], found: Mapping[str, Mapping[str, float]], *, method: str) -> Sequence[Axes]:
    """One panel a probe of a ``report.json``: the method's bar, named ``method``, beside those of its baselines.

    Raises: ``ValueError`` unless there is a panel for each of ``axes``.
    """
    if len(axes) != len(found):
        raise ValueError(f"{len(found)} probes for {len(axes)} axes.")
    arms = {"method": method, "random_init": "random init", "raw_pixels": "raw pixels", "supervised": "supervised"}
    arms |= {"cooked": "cooked"}
    titles = {"knn": "k-NN", "linear": "linear probe", "lowshot": "low-shot", "snn": "nearest neighbours"}
    titles |= {"zero_shot": "zero-shot", "tr1": "TR@1", "tr5": "TR@5", "ir1": "IR@1", "ir5": "IR@5"}
    for ax, (probe, row) in zip(axes, found.items(), strict=True):
        bars(ax, {arms[arm]: [score] for arm, score in row.items()}, ylabel="accuracy" if ax is axes[0] else "")
        ax.set_title(titles.get(probe, probe))
        for label in ax.get_xticklabels():
            label.set(rotation=40, ha="right", rotation_mode="anchor")
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
    _prepare(ax, title=title)
    ax.imshow(sheet(images, columns, gap), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    ax.set_axis_off()
    return ax


def sheet(images: ArrayLike, columns: int, gap: int) -> NDArray[np.float64]:
    """Images in rows of ``columns`` as one image in [0, 1]: [height, width, 3], or [height, width] of one channel.

    Shapes and Raises: as ``image_grid``.
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
    page = np.ones((rows * (height + gap) - gap, columns * (width + gap) - gap, channels))
    for index, tile in enumerate(tiles):
        top, left = (index // columns) * (height + gap), (index % columns) * (width + gap)
        page[top : top + height, left : left + width] = tile
    page = np.clip(page, 0, 1)
    return page.squeeze(-1) if channels == 1 else page


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
