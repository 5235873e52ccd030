# SPDX-License-Identifier: Apache-2.0
"""Makes the tables of a factor report, as rows for CSV files."""

from collections.abc import Mapping, Sequence
from typing import Any

import torchvision

from recipes_lib.data import pantry
from recipes_lib.evaluation.csv_tables import Rows, nested_rows
from recipes_lib.factors.annotations import CLASSES, FACTORS
from recipes_lib.factors.report import FactorReport
from recipes_lib.factors.report_json import MOST_TABLES
from recipes_lib.recipes.imagenet_x import pantry_x

_NESTED = {
    "prevalence": ("which", "factor"),
    "spread": ("which", "correctness", "factor"),
    "metaclass_average": ("model", "correctness"),
    "metaclasses": ("model", "which", "correctness", "metaclass", "factor"),
    "metaclass_means": ("which", "correctness", "metaclass", "factor"),
}
"""Parts of a report's plain values that are nested dicts of tables, and the names of their levels."""


def tables(report: FactorReport, plain: Mapping[str, Any]) -> dict[str, Rows]:
    """The rows of each CSV file, by its name; ``plain`` is the same report as plain values.

    Parts that a report does not have (metaclasses, groups, agreement of models) have no file.
    """
    found: dict[str, Rows] = {"factors": _factor_rows(report), "models": _model_rows(plain)}
    for name, levels in _NESTED.items():
        if name in plain:
            found[name] = nested_rows(plain[name], levels)
    if "consistency" in plain:
        found["consistency"] = [
            ("which", "correctness", "models", "factors", "mean_rank_correlation", "p"),
            *(
                (which, kind, row["models"], row["factors"], row["mean_rank_correlation"], row["p"])
                for which, by_kind in plain["consistency"].items()
                for kind, row in by_kind.items()
            ),
        ]
    if "groups" in plain:
        found["groups"] = _group_rows(plain["groups"])
    names = class_names(report)
    if len(report.models) <= MOST_TABLES:
        listed = {
            (name, kind): worst["listed"]
            for name, by_kind in plain["worst_classes"].items()
            for kind, worst in by_kind.items()
        }
        found["worst_classes"] = _class_rows(("model", "correctness"), listed, names)
    if "worst_classes_shared" in plain:
        shared = {(kind,): classes for kind, classes in plain["worst_classes_shared"].items()}
        found["worst_classes_shared"] = _class_rows(("correctness",), shared, names)
    return found


def class_names(report: FactorReport) -> list[str]:
    """The names of the classes: torchvision's for ImageNet, the Pantry's, and numbers for all others."""
    classes = len(next(iter(report.splits.values())).classes.images)
    if (report.factors, classes) == (FACTORS, CLASSES):
        return torchvision.models.ResNet50_Weights.DEFAULT.meta["categories"]
    if report.factors == pantry_x.FACTORS:
        return list(pantry.CLASSES)
    return [str(label) for label in range(classes)]


def _class_rows(
    levels: tuple[str, ...], lists: Mapping[tuple[str, ...], Mapping[str, Mapping[str, Any]]], names: Sequence[str]
) -> Rows:
    columns = next((tuple(figures) for classes in lists.values() for figures in classes.values()), ())
    yield (*levels, "class", "name", *columns)
    for path, classes in lists.items():
        for label, figures in classes.items():
            yield (*path, label, names[int(label)], *figures.values())


def _factor_rows(report: FactorReport) -> Rows:
    arrays = ("accuracy", "error_ratio", "low", "high", "wilson_low", "wilson_high", "p", "holm", "benjamini_hochberg")
    yield ("model", "which", "correctness", "factor", "n", *arrays)
    for which, by_kind in report.tables.items():
        for kind, table in by_kind.items():
            columns = [table.counts.accuracy, table.counts.error_ratio, table.low, table.high]
            columns += [table.wilson_low, table.wilson_high, table.p, table.holm, table.fdr]
            n = table.counts.with_factor.tolist()
            for model, name in enumerate(report.models):
                values = zip(*(column[model].tolist() for column in columns), strict=True)
                for factor, images, row in zip(report.factors, n, values, strict=True):
                    yield (name, which, kind, factor, images, *row)


def _model_rows(plain: Mapping[str, Any]) -> Rows:
    yield ("model", "which", "correctness", "average", "worst_factor", "worst_error_ratio", "worst_classes_accuracy")
    for which, by_kind in plain["ranking"].items():
        for kind, by_model in by_kind.items():
            for name, ranking in by_model.items():
                worst = ranking[0] if ranking else ""
                ratio = plain["models"][name][which][kind][worst]["error_ratio"] if worst else None
                classes = plain["worst_classes"][name][kind]["accuracy"]
                yield (name, which, kind, plain["average"][name][kind], worst, ratio, classes)


def _group_rows(groups: Mapping[str, Any]) -> Rows:
    yield ("which", "correctness", "column", "factor", "group", "models", "mean_error_ratio", "p", "holm")
    for which, by_kind in groups.items():
        for kind, by_column in by_kind.items():
            for column, by_factor in by_column.items():
                for factor, test in by_factor.items():
                    for group, mean in test["means"].items():
                        figures = (test["models"][group], mean, test["p"], test["holm"])
                        yield (which, kind, column, factor, group, *figures)
