# SPDX-License-Identifier: Apache-2.0
"""Writes a factor report: tables as CSV files, figures as PNG files, and one self-contained HTML page."""

import csv
import html
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recipes_lib.errors import DataError
from recipes_lib.evaluation import page as layout
from recipes_lib.evaluation.page import Picture
from recipes_lib.factors import inference as factor_stats
from recipes_lib.factors import report_json as factor_json
from recipes_lib.factors.annotations import FACTORS
from recipes_lib.factors.report import FEW, WORST, FactorReport
from recipes_lib.recipes.imagenet_x.pictures import METACLASSES, by_accuracy, fullest, pictures
from recipes_lib.recipes.imagenet_x.tables import class_names, tables


def read_groups(path: Path, models: Sequence[str]) -> dict[str, dict[str, str]]:
    """Reads groups of models from a CSV file: a column ``model``, and columns such as architecture or procedure.

    Returns model -> column -> group, only for ``models``. Raises: ``DataError`` naming what is missing.
    """
    if path.exists() and not path.is_file():  # reading a pipe would wait for ever
        raise DataError(f"groups = {path} cannot be read as a CSV file (it is no plain file).")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            header, *rows = [line for line in csv.reader(file) if line] or [[]]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"groups = {path} cannot be read as a CSV file ({error}).") from None
    header, rows = [name.strip() for name in header], [[value.strip() for value in line] for line in rows]
    if "model" not in header or len(header) < 2:
        raise DataError(f"groups = {path} needs a column model and at least one more, such as architecture.")
    if odd := next((line for line in rows if len(line) != len(header)), None):
        raise DataError(
            f"groups = {path} has {len(odd)} values for {len(header)} columns in the line of {odd[0]!r}. Put values that have a "
            "comma in double quotes."
        )
    where = header.index("model")
    for what, names in (("the column", header), ("a line for the model", [line[where] for line in rows])):
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise DataError(f"groups = {path} has {what} {twice[0]!r} more than once. Leave one.")
    columns = [name for name in header if name != "model"]
    lines = [dict(zip(header, line, strict=True)) for line in rows]
    found = {line["model"]: {name: line[name] for name in columns} for line in lines}
    if lacking := [name for name in models if name not in found]:
        raise DataError(f"groups = {path} has no line for {len(lacking):,} models: {', '.join(lacking[:5])}. Add them.")
    if odd := next((name for name in models if not all(found[name].values())), None):
        raise DataError(f"groups = {path} leaves a column of {odd} empty. Name its group.")
    return {name: found[name] for name in models}


def write(report: FactorReport, plain: Mapping[str, Any], out: Path) -> Path:
    """Writes tables, figures and ``index.html`` into the folder ``out``; returns the page.

    ``plain`` is the same report as plain values.
    """
    shown = pictures(report)
    return layout.write(out, page(report, plain, shown), tables(report, plain), shown)


def page(report: FactorReport, plain: Mapping[str, Any], shown: Sequence[Picture]) -> str:
    """The page as one HTML text with its figures inside, without scripts, for light and dark screens."""
    parts = [
        "<h1>Why do these models fail?</h1>",
        f"<p>{html.escape(_summary(plain))}</p>",
        "<ul>" + "".join(f"<li>{html.escape(note)}</li>" for note in plain["notes"]) + "</ul>",
        "<h2>Accuracy</h2>",
        _accuracies(plain),
        "<h2>Worst factors</h2>",
        *(_worst(plain, which) for which in report.tables),
        "<h2>Figures</h2>",
        *(layout.figure(picture) for picture in shown if picture.name != METACLASSES),
        *_shared(plain),
        *_metaclasses(report, shown),
        "<h2>Worst classes</h2>",
        *_worst_classes(report, plain),
        f"<p class='aside'>{_HOW}{_LICENCE if report.factors == FACTORS else ''}</p>",
    ]
    return layout.document("Factor report", parts)


_HOW = (
    "An error ratio is a model's error rate on the images with a factor over its error rate on all images: 1 says that "
    "the factor makes no difference. Tables with every figure, Wilson intervals and adjusted p-values lie beside this page "
    "as CSV files; report.json holds the same for programs. Method: Youbi Idrissi et al., ImageNet-X, ICLR 2023, "
    "arXiv 2211.01866."
)
_LICENCE = " ImageNet-X annotations: CC BY-NC 4.0."


def _summary(plain: Mapping[str, Any]) -> str:
    images, interval = plain["images"], plain["interval"]
    counted = ", ".join(f"{number:,} for {kind}" for kind, number in images["counted"].items())
    rule = {
        "toolkit": "Images that cannot be decided count as in the official toolkit: without ReaL labels they are wrong, and "
        "all classes outside the named metaclasses are one.",
        "decided": "Images without ReaL labels, or of a class outside the named metaclasses, do not count there.",
    }[plain["scope"]]
    drawn = f" of {interval['resamples']:,} resamples" if "resamples" in interval else ""
    return (
        f"Models: {len(plain['models']):,}. Images: {images['all']:,}, of which count {counted}. Intervals: "
        f"{interval['level']:.0%}, {interval['method']}{drawn}. {rule}"
    )


def _accuracies(plain: Mapping[str, Any]) -> str:
    kinds = list(next(iter(plain["average"].values())))
    rows = [(name, *(layout.figured(row[kind]) for kind in kinds)) for name, row in plain["average"].items()]
    return layout.table(("model", *kinds), rows)


def _worst(plain: Mapping[str, Any], which: str) -> str:
    """The table of the three worst factors of each model; a star marks a factor with few images."""
    rows = []
    for name, ranking in plain["ranking"][which]["class"].items():
        cells = plain["models"][name][which]["class"]
        said = [
            f"{factor} {layout.figured(cells[factor]['error_ratio'], 2)}" + ("*" if cells[factor]["n"] < FEW else "")
            for factor in ranking[:3]
        ]
        rows.append((name, *said, *[""] * (3 - len(said))))
    note = f"<p class='aside'>Marked {html.escape(which)}. * fewer than {FEW} images.</p>"
    return note + layout.table(("model", "worst", "second", "third"), rows)


def _shared(plain: Mapping[str, Any]) -> list[str]:
    if "consistency" not in plain:
        return []
    rows = [
        (which, kind, layout.figured(row["mean_rank_correlation"], 3), f"{row['p']:.2g}")
        for which, by_kind in plain["consistency"].items()
        for kind, row in by_kind.items()
    ]
    said = "<p>Mean rank correlation of the error ratios over all pairs of models; p: of one as high, were factors shuffled.</p>"
    return [
        "<h2>Do models share their worst factors?</h2>",
        said,
        layout.table(("marked", "right by", "mean", "p"), rows),
    ]


def _metaclasses(report: FactorReport, shown: Sequence[Picture]) -> list[str]:
    """The figure of metaclasses, and a table with one line per metaclass, the lowest accuracy first."""
    which = fullest(report)
    if not (parts := by_accuracy(report, which)):
        return []
    rows = []
    for name, counts in parts.items():
        ratios = np.where(counts.with_factor < FEW, np.nan, factor_stats.mean_over_models(counts.error_ratio))
        highest = np.argsort(-ratios, kind="stable")[: min(3, np.count_nonzero(~np.isnan(ratios)))]
        said = [f"{report.factors[place]} {ratios[place]:.2f} ({counts.with_factor[place]:,})" for place in highest]
        average = factor_json.plain(counts.average.mean())
        rows.append((name, f"{counts.images:,}", layout.figured(average), ", ".join(said)))
    note = (
        f"<p class='aside'>Right by class, factors marked {html.escape(which)}; means over models. Of factors with at "
        f"least {FEW} images in a metaclass (how many: in brackets), the three of the highest error ratio there.</p>"
    )
    figures = (layout.figure(picture) for picture in shown if picture.name == METACLASSES)
    table = layout.table(("metaclass", "images", "accuracy", "highest error ratios"), rows, words=True)
    return ["<h2>Metaclasses</h2>", *figures, note, table]


def _worst_classes(report: FactorReport, plain: Mapping[str, Any]) -> list[str]:
    """A table of each model's accuracy on its worst classes, and the worst classes that most models share."""
    classes, names, models = report.splits["class"].classes, class_names(report), len(report.models)
    chosen, accuracy = classes.worst(WORST), classes.accuracy
    used, there = chosen.shape[1], np.count_nonzero(classes.images)
    rows = []
    for place, name in enumerate(report.models):
        said = [f"{names[label]} {accuracy[place, label]:.2f}" for label in chosen[place, :5]]
        figures = plain["worst_classes"][name]["class"]
        rows.append((name, layout.figured(figures["accuracy"]), f"{figures['n']:,}", ", ".join(said)))
    note = (
        f"Accuracy over all images of the {used:,} classes, of {there:,} that have images, on which a model is worst; the "
        "first five with their own. They are chosen by the same images, so that on others they would seem a little better."
        if used < there
        else f"There are {there:,} classes; the five on which a model is worst, beside its accuracy over all of them."
    )
    parts = [f"<p class='aside'>{note}</p>", layout.table(("model", "accuracy", "images", "lowest"), rows, words=True)]
    if "worst_classes_shared" in plain and used < there:
        shared = plain["worst_classes_shared"]["class"]
        every = sum(figures["models"] == models for figures in shared.values())
        first = [f"{names[int(label)]} ({figures['models']:,})" for label, figures in list(shared.items())[:20]]
        said = f"{every:,} classes are among the worst of all {models:,} models. The most shared: {', '.join(first)}."
        parts.append(f"<p>{html.escape(said)}</p>")
    return parts
