# SPDX-License-Identifier: Apache-2.0
"""A factor report as plain values, which JSON holds; None stands for what is not defined."""

import math
from typing import Any

import numpy as np

from recipes_lib.analysis import factor_stats
from recipes_lib.analysis.factor_report import FactorReport, Table
from recipes_lib.analysis.factors import Correctness

MOST_PAIRS = 20
"""Models up to which every pair's rank correlation is reported."""


def as_json(report: FactorReport) -> dict[str, Any]:
    """Plain values; None stands for what is not defined. ``models`` -> NAME -> kind of mark -> correctness -> factor."""
    return {
        "models": {name: _model(report, place) for place, name in enumerate(report.models)},
        "average": {
            name: {kind: plain(table.counts.average[place]) for kind, table in _any(report).items()}
            for place, name in enumerate(report.models)
        },
        **report.facts,
        "prevalence": {which: _prevalence(report, which) for which in report.prevalence},
        **_over_tables(report),
        "notes": report.notes,
    }


def _any(report: FactorReport) -> dict[Correctness, Table]:
    return next(iter(report.tables.values()))


def _named(report: FactorReport, **columns: np.ndarray) -> dict[str, dict[str, float | int | None]]:
    """Factor -> name of a column -> its value there."""
    return {
        factor: {name: plain(values[place]) for name, values in columns.items()}
        for place, factor in enumerate(report.factors)
    }


def _model(report: FactorReport, place: int) -> dict[str, dict[str, dict[str, Any]]]:
    return {
        which: {
            kind: _named(
                report,
                n=table.counts.with_factor,
                accuracy=table.counts.accuracy[place],
                error_ratio=table.counts.error_ratio[place],
                low=table.low[place],
                high=table.high[place],
            )
            for kind, table in by_kind.items()
        }
        for which, by_kind in report.tables.items()
    }


def _prevalence(report: FactorReport, which: str) -> dict[str, Any]:
    found = report.prevalence[which]
    if found.train is None:
        return _named(report, val=found.val)
    ratio = np.divide(found.train, found.val, out=np.full(found.val.shape, np.nan), where=found.val > 0)
    return _named(report, val=found.val, train=found.train, train_over_val=ratio, p=found.p, holm=found.holm)


def _over_tables(report: FactorReport) -> dict[str, Any]:
    """What each table says beyond its models' figures: part -> kind of mark -> correctness -> ..."""
    parts: dict[str, Any] = {}

    def put(part: str, which: str, kind: str, value: Any) -> None:
        parts.setdefault(part, {}).setdefault(which, {})[kind] = value

    for which, by_kind in report.tables.items():
        for kind, table in by_kind.items():
            ratios = table.counts.error_ratio
            order = {name: table.ranking(place) for place, name in enumerate(report.models)}
            put("ranking", which, kind, {name: [report.factors[f] for f in row] for name, row in order.items()})
            shifts = table.counts.shift
            put("error_shift", which, kind, {n: _row(report, shifts[place]) for place, n in enumerate(report.models)})
            if (train := report.prevalence[which].train) is not None:
                pairs = zip(report.models, ratios, strict=True)
                rarity = {name: plain(factor_stats.rank_correlation(train, row)) for name, row in pairs}
                put("train_share_correlation", which, kind, rarity)
            if table.agreement:
                put("spread", which, kind, _named(report, **factor_stats.spread(ratios)))
                put("consistency", which, kind, _consistency(report, table))
            if table.groups:
                put("groups", which, kind, {column: _groups(report, column, table) for column in table.groups})
    return parts


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
        pairs = factor_stats.pairs_of_models(table.counts.error_ratio, report.models)
        found["pairs"] = [{"models": list(pair), "rank_correlation": plain(rho)} for pair, rho in pairs.items()]
    return found


def _groups(report: FactorReport, column: str, table: Table) -> dict[str, Any]:
    tests = table.groups[column]
    adjusted = factor_stats.holm(np.array([test.p for test in tests]))
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
    """A number that JSON holds; None for NaN."""
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and not math.isfinite(value) else value
