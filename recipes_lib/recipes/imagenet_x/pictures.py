# SPDX-License-Identifier: Apache-2.0
"""Draws the figures of a factor report, each with a caption and a description for readers who cannot see it."""

import re

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure

from recipes_lib import plots
from recipes_lib.evaluation.page import LONGEST_NAME, MOST_ARMS, Picture, by_row, intervals, named_rows, picture, shown
from recipes_lib.factors import inference as factor_stats
from recipes_lib.factors.error_ratios import Counts
from recipes_lib.factors.report import FEW, FactorReport, Prevalence, Table

CELL_POINTS = 9
"""Font size, in points, of the numbers in the figure of metaclasses, whose cells have room for three characters."""
METACLASSES = "metaclasses"
"""Name of the figure of metaclasses."""


def pictures(report: FactorReport) -> list[Picture]:
    """Figures of error ratios and prevalence by kind of mark, and of groups and metaclasses if the report has them.

    All error ratios are for the correctness ``class``.
    """
    with rc_context(plots.STYLE):
        return _pictures(report)


def _pictures(report: FactorReport) -> list[Picture]:
    found = []
    for which, by_kind in report.tables.items():
        table = by_kind["class"]
        found.append(_ratios(report, table, which))
        found.append(_prevalence(report, which))
        for place, column in enumerate(table.groups):
            found.append(_groups(report, table, which, column, place))
    if report.splits["class"].metaclasses:
        found.append(_metaclasses(report))
    return found


def error_ratios(ax: Axes, report: FactorReport, table: Table) -> Axes:
    """Draws each factor's error ratio with its interval, one marker per model; for many models, their spread.

    The worst factor is on top. Names of factors with few images are grey.
    """
    order = _order(table)
    values = table.counts.error_ratio[:, order]
    intervals(ax, report.models, values, table.low[:, order], table.high[:, order], none=1)
    return _named(ax, report, table, order, xlabel="error ratio (1: as many errors as on average)")


def prevalence(ax: Axes, report: FactorReport, table: Table, found: Prevalence) -> Axes:
    """Draws the share of the images with each factor, for the validation set and, if known, the training set."""
    order = _order(table)
    heights = np.arange(len(order))
    sides = {"validation": found.val} | ({} if found.train is None else {"training": found.train})
    for place, (name, shares) in enumerate(sides.items()):
        ax.plot(100 * shares[order], heights, linestyle="none", **plots.style(place), markersize=5, label=name)
    if any((shares[order] > 0).any() for shares in sides.values()):
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter("{x:g}")
    ax.legend()
    return _named(ax, report, table, order, xlabel="share of the images (%)")


def groups(ax: Axes, report: FactorReport, table: Table, column: str) -> Axes:
    """Draws the error ratio of every model (small markers) and the mean of each group (large markers).

    A star marks a factor for which the groups differ (p < 0.05 after Holm's correction).
    """
    order, tests = _order(table), table.groups[column]
    adjusted = factor_stats.holm(np.array([test.p for test in tests]))
    heights, names = np.arange(len(order)), list(tests[0].means)
    for place, name in enumerate(names):
        means = [tests[factor].means[name] for factor in order]
        own = [(ratio, height) for height, factor in enumerate(order) for ratio in tests[factor].ratios[name]]
        ax.plot(*np.array(own).reshape(-1, 2).T, linestyle="none", **plots.style(place), markersize=3, alpha=0.35)
        ax.plot(means, heights, linestyle="none", **plots.style(place), markersize=7, label=shown(f"{column}: {name}"))
    ax.axvline(1, color=plots.BASELINE, linestyle="--", linewidth=1.2, zorder=0)
    ax.legend()
    stars = {factor: "* " for factor in range(len(tests)) if adjusted[factor] < 0.05}
    return _named(
        ax, report, table, order, xlabel="error ratio (small: a model; large: the mean of its group)", before=stars
    )


def metaclasses(ax: Axes, report: FactorReport, which: str) -> Axes:
    """Draws a matrix of metaclasses x factors: the error ratio within the metaclass's images, averaged over models.

    Red is worse than the metaclass's average, blue better. Cells with few images are grey, cells without images empty.
    The metaclass with the lowest accuracy is on top, the worst factor on the left.
    """
    parts = by_accuracy(report, which)
    columns = _order(report.tables[which]["class"])[::-1]
    ratios = np.stack([factor_stats.mean_over_models(counts.error_ratio)[columns] for counts in parts.values()])
    n = np.stack([counts.with_factor[columns] for counts in parts.values()])
    ax.figure.set_facecolor("white")
    ax.set_facecolor("white")
    look = colormaps["RdBu_r"].with_extremes(bad="#00000000")
    sure = np.where(n >= FEW, ratios, np.nan)
    # on a logarithmic scale, half the errors are as far from white as twice the errors
    drawn = ax.imshow(np.log2(sure), cmap=look, norm=Normalize(-2, 2, clip=True), aspect="auto")
    few = (n < FEW) & ~np.isnan(ratios)
    ax.imshow(np.where(few, 0, np.nan), cmap=ListedColormap(["#e4e4e4"]), aspect="auto")
    for row, column in np.argwhere(~np.isnan(ratios)):
        dark = abs(np.log2(max(ratios[row, column], 1e-9))) > 1.2 and n[row, column] >= FEW
        colour = "white" if dark else "#595959" if few[row, column] else "black"
        said = f"{ratios[row, column]:.1f}"
        ax.text(column, row, said, ha="center", va="center", fontsize=CELL_POINTS, color=colour)
    ax.set_xticks(range(len(columns)), [shown(report.factors[place]) for place in columns], rotation=45, ha="right")
    ax.set_yticks(range(len(parts)), list(map(shown, parts)))
    ax.tick_params(labelsize="small", length=0)
    ax.spines[:].set_visible(False)
    bar = ax.figure.colorbar(drawn, ax=ax, ticks=[-2, -1, 0, 1, 2], shrink=0.6, label="error ratio in the metaclass")
    bar.ax.set_yticklabels(["1/4", "1/2", "1", "2", "4"])
    return ax


def by_accuracy(report: FactorReport, which: str) -> dict[str, Counts]:
    """The counts by metaclass: the lowest mean accuracy first, metaclasses without images last."""
    parts = report.by_metaclass(which, "class")
    return dict(sorted(parts.items(), key=lambda item: np.nan_to_num(item[1].average.mean(), nan=2)))


def fullest(report: FactorReport) -> str:
    """The most frequent kind of mark, whose cells of metaclass and factor have the most images."""
    return max(report.tables, key=lambda which: report.tables[which]["class"].counts.with_factor.sum())


def _order(table: Table) -> list[int]:
    """The factors by increasing mean error ratio, so that the worst is drawn on top; factors without a ratio first."""
    means = np.nan_to_num(factor_stats.mean_over_models(table.counts.error_ratio))
    return np.argsort(means, kind="stable").tolist()


def _named(
    ax: Axes, report: FactorReport, table: Table, order: list[int], *, xlabel: str, before: dict[int, str] | None = None
) -> Axes:
    labels = [f"{(before or {}).get(place, '')}{shown(report.factors[place])}" for place in order]
    named_rows(ax, labels, xlabel=xlabel)
    for label, place in zip(ax.get_yticklabels(), order, strict=True):
        if table.counts.with_factor[place] < FEW:
            label.set_color("#767676")
    return ax


def _ratios(report: FactorReport, table: Table, which: str) -> Picture:
    figure, ax = by_row(len(report.factors))
    error_ratios(ax, report, table)
    order = [place for place in _order(table)[::-1] if not np.isnan(table.counts.error_ratio[:, place]).all()]
    means = np.nanmean(table.counts.error_ratio[:, order], axis=0) if order else []
    listed = ", ".join(f"{report.factors[place]} {mean:.2f}" for place, mean in zip(order, means, strict=True))
    whose = report.models[0] if len(report.models) == 1 else f"mean of {len(report.models)} models"
    alt = f"Error ratio of each factor ({which}), {whose}, from the worst on: {listed or 'none is defined'}."
    caption = (
        f"Error ratios, factors marked {which}. Lines are intervals; factors in grey have fewer than {FEW} images."
    )
    if len(report.models) > MOST_ARMS:
        caption = (
            f"Error ratios over {len(report.models):,} models, factors marked {which}. Grey: fewer than {FEW} images."
        )
    return picture(f"error_ratio_{which}", figure, alt, caption)


def _prevalence(report: FactorReport, which: str) -> Picture:
    figure, ax = by_row(len(report.factors))
    found, table = report.prevalence[which], report.tables[which]["class"]
    prevalence(ax, report, table, found)
    listed = ", ".join(
        f"{name} {100 * found.val[place]:.2g}" + ("" if found.train is None else f" ({100 * found.train[place]:.2g})")
        for place, name in enumerate(report.factors)
    )
    also = "" if found.train is None else ", in brackets of the training images"
    alt = f"Share in percent of the images that have each factor ({which}){also}: {listed}."
    return picture(f"prevalence_{which}", figure, alt, f"How frequent each factor is, marked {which}.")


def _groups(report: FactorReport, table: Table, which: str, column: str, place: int) -> Picture:
    figure, ax = by_row(len(report.factors))
    groups(ax, report, table, column)
    tests = table.groups[column]
    listed = "; ".join(
        f"{name}: " + ", ".join(f"{group} {mean:.2f}" for group, mean in test.means.items())
        for name, test in zip(report.factors, tests, strict=True)
    )
    alt = f"Mean error ratio of each group of models by {column} ({which}). {listed}."
    caption = f"Models by {column}, factors marked {which}. A star: groups differ (Alexander-Govern, Holm, p < .05)."
    safe = re.sub(r"[^\w.-]+", "_", column)[: LONGEST_NAME // 2]
    name = safe if safe == column else f"{safe}~{place + 1}"  # two columns may get the same safe name
    return picture(f"groups_{name}_{which}", figure, alt, caption)


def _metaclasses(report: FactorReport) -> Picture:
    which = fullest(report)
    parts = by_accuracy(report, which)
    width, height = 2.6 + 0.36 * len(report.factors), 1.9 + 0.3 * len(parts)
    figure = Figure(figsize=(max(width, plots.WIDTH), height), layout="constrained")
    metaclasses(figure.add_subplot(), report, which)
    whose = "of the model" if len(report.models) == 1 else f"mean of {len(report.models):,} models"
    ratios = {
        (name, factor): ratio
        for name, counts in parts.items()
        for factor, n, ratio in zip(
            report.factors, counts.with_factor, factor_stats.mean_over_models(counts.error_ratio), strict=True
        )
        if n >= FEW and not np.isnan(ratio)
    }
    worst = sorted(ratios, key=ratios.get, reverse=True)[:10]
    listed = ", ".join(f"{factor} of {name} {ratios[name, factor]:.2f}" for name, factor in worst)
    alt = f"Error ratio of each factor within each metaclass ({which}), {whose}. The highest: {listed or 'none'}."
    caption = (
        f"Error ratios within each metaclass, factors marked {which}, {whose}: 2 says twice the errors of that metaclass. "
        f"Grey: fewer than {FEW} images."
    )
    return picture(METACLASSES, figure, alt, caption)
