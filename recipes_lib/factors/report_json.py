# SPDX-License-Identifier: Apache-2.0
"""Converts a factor report to plain values for JSON; None stands for a value that is not defined."""

import math
import operator
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from recipes_lib.factors import inference
from recipes_lib.factors.error_ratios import Correctness, Counts
from recipes_lib.factors.report import WORST, FactorReport, Table

MOST_PAIRS = 20
"""The largest number of models for which the rank correlation of every pair is reported."""
MOST_TABLES = 20
"""The largest number of models for which each model's metrics per metaclass and its worst classes are listed: for 2,200
models this would be 300 MB. For more models, means and shared classes are listed."""


def as_json(report: FactorReport) -> dict[str, Any]:
    """The report as nested dicts of plain values; None stands for a value that is not defined.

    ``models`` maps model -> kind of mark -> correctness -> factor -> metrics.
    """
    return {
        "models": _models(report),
        "average": {
            name: dict(zip(_any(report), map(plain, row), strict=True))
            for name, row in zip(report.models, _averages(_any(report).values()), strict=True)
        },
        **report.facts,
        "prevalence": {which: _prevalence(report, which) for which in report.prevalence},
        **_over_tables(report),
        **_metaclasses(report),
        **_worst_classes(report),
        "notes": report.notes,
    }


def _any(report: FactorReport) -> dict[Correctness, Table]:
    return next(iter(report.tables.values()))


def _named(report: FactorReport, **columns: np.ndarray) -> dict[str, dict[str, float | int | None]]:
    """Turns arrays [F] into factor -> name of the array -> the factor's value."""
    return {
        factor: {name: plain(values[place]) for name, values in columns.items()}
        for place, factor in enumerate(report.factors)
    }


def _averages(tables: Iterable[Table]) -> np.ndarray:
    """The average accuracies of all models in all tables, as float64 [M, tables]."""
    return np.stack([table.counts.average for table in tables], axis=1)


def _models(report: FactorReport) -> dict[str, dict[str, dict[str, dict[str, Any]]]]:
    found: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in report.models}
    for which, by_kind in report.tables.items():
        for kind, table in by_kind.items():
            n, arrays = (
                table.counts.with_factor,
                (table.counts.accuracy, table.counts.error_ratio, table.low, table.high),
            )
            for name, *rows in zip(report.models, *arrays, strict=True):
                columns = dict(zip(("accuracy", "error_ratio", "low", "high"), rows, strict=True))
                found[name].setdefault(which, {})[kind] = _named(report, n=n, **columns)
    return found


def _prevalence(report: FactorReport, which: str) -> dict[str, Any]:
    found = report.prevalence[which]
    if found.train is None:
        return _named(report, val=found.val)
    ratio = np.divide(found.train, found.val, out=np.full(found.val.shape, np.nan), where=found.val > 0)
    return _named(report, val=found.val, train=found.train, train_over_val=ratio, p=found.p, holm=found.holm)


def _over_tables(report: FactorReport) -> dict[str, Any]:
    """Rankings, shifts, spread, consistency and groups of all tables: part -> kind of mark -> correctness -> ..."""
    parts: dict[str, Any] = {}

    def put(part: str, which: str, kind: str, value: Any) -> None:
        parts.setdefault(part, {}).setdefault(which, {})[kind] = value

    for which, by_kind in report.tables.items():
        for kind, table in by_kind.items():
            ratios = table.counts.error_ratio
            order = dict(zip(report.models, table.rankings(), strict=True))
            put("ranking", which, kind, {name: [report.factors[f] for f in row] for name, row in order.items()})
            shifts = table.counts.shift
            put("error_shift", which, kind, {n: _row(report, shifts[place]) for place, n in enumerate(report.models)})
            if (train := report.prevalence[which].train) is not None:
                pairs = zip(report.models, ratios, strict=True)
                rarity = {name: plain(inference.rank_correlation(train, row)) for name, row in pairs}
                put("train_share_correlation", which, kind, rarity)
            if table.agreement:
                put("spread", which, kind, _named(report, **inference.spread(ratios)))
                put("consistency", which, kind, _consistency(report, table))
            if table.groups:
                put("groups", which, kind, {column: _groups(report, column, table) for column in table.groups})
    return parts


def _metaclasses(report: FactorReport) -> dict[str, Any]:
    """The accuracy and factor metrics in each metaclass, per model and averaged; empty if there are no metaclasses."""
    splits = report.splits
    if not any(found.metaclasses for found in splits.values()):
        return {}

    averages: dict[str, dict[str, Any]] = {name: {} for name in report.models}
    for kind, found in splits.items():
        columns = [next(iter(counts.values())).average for counts in found.metaclasses.values()]
        for name, row in zip(report.models, zip(*columns, strict=True), strict=True):
            averages[name][kind] = dict(zip(found.metaclasses, map(plain, row), strict=True))

    def metrics(pick: Callable[[np.ndarray], np.ndarray]) -> dict[str, dict[str, dict[str, Any]]]:
        """Metrics per kind of mark, correctness, metaclass and factor; ``pick`` maps arrays [M, F] to one row [F]."""
        return {
            which: {
                kind: {name: cells(counts, pick) for name, counts in report.by_metaclass(which, kind).items()}
                for kind in by_kind
            }
            for which, by_kind in report.tables.items()
        }

    def cells(counts: Counts, pick: Callable[[np.ndarray], np.ndarray]) -> dict[str, dict[str, Any]]:
        n, accuracy, ratio = counts.with_factor, pick(counts.accuracy), pick(counts.error_ratio)
        return _named(report, n=n, accuracy=accuracy, error_ratio=ratio)

    parts: dict[str, Any] = {"metaclass_average": averages}
    if len(report.models) <= MOST_TABLES:
        parts["metaclasses"] = {name: metrics(operator.itemgetter(place)) for place, name in enumerate(report.models)}
    if len(report.models) > 1:
        parts["metaclass_means"] = metrics(inference.mean_over_models)
    return parts


def _worst_classes(report: FactorReport) -> dict[str, Any]:
    """Each model's worst classes and its accuracy on them, and the classes that are worst for most models."""
    worst: dict[str, dict[str, Any]] = {name: {} for name in report.models}
    shared: dict[str, Any] = {}
    for kind, found in report.splits.items():
        n, accuracy, chosen = found.classes.images, found.classes.accuracy, found.classes.worst(WORST)
        over = found.classes.accuracy_over(chosen)
        for place, name in enumerate(report.models):
            own = chosen[place]
            worst[name][kind] = {"classes": len(own), "n": plain(n[own].sum()), "accuracy": plain(over[place])}
            if len(report.models) <= MOST_TABLES:
                worst[name][kind]["listed"] = {
                    str(label): {"n": plain(n[label]), "accuracy": plain(accuracy[place, label])} for label in own
                }
        times, mean = np.bincount(chosen.ravel(), minlength=len(n)), inference.mean_over_models(accuracy)
        order = np.lexsort((mean, -times))[: np.count_nonzero(times)]  # the most shared first
        shared[kind] = {
            str(label): {"models": plain(times[label]), "n": plain(n[label]), "mean_accuracy": plain(mean[label])}
            for label in order
        }
    return {"worst_classes": worst} | ({"worst_classes_shared": shared} if len(report.models) > 1 else {})


def _row(report: FactorReport, values: np.ndarray) -> dict[str, float | None]:
    return dict(zip(report.factors, map(plain, values), strict=True))


def _consistency(report: FactorReport, table: Table) -> dict[str, Any]:
    found: dict[str, Any] = {
        "mean_rank_correlation": plain(table.agreement.mean_rank_correlation),
        "p": table.agreement.p,
        "models": len(report.models),
        "factors": table.agreement.factors,
    }
    if len(report.models) <= MOST_PAIRS:
        pairs = inference.pairs_of_models(table.counts.error_ratio, report.models)
        found["pairs"] = [{"models": list(pair), "rank_correlation": plain(rho)} for pair, rho in pairs.items()]
    return found


def _groups(report: FactorReport, column: str, table: Table) -> dict[str, Any]:
    tests = table.groups[column]
    adjusted = inference.holm(np.array([test.p for test in tests]))
    return {
        factor: {
            "means": {group: plain(mean) for group, mean in test.means.items()},
            "models": {group: len(ratios) for group, ratios in test.ratios.items()},
            "p": plain(test.p),
            "holm": plain(adjusted[place]),
        }
        for place, (factor, test) in enumerate(zip(report.factors, tests, strict=True))
    }


def plain(value: Any) -> float | int | None:
    """Converts a number to a plain int or float for JSON, and NaN and infinity to None."""
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and not math.isfinite(value) else value
