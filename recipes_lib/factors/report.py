# SPDX-License-Identifier: Apache-2.0
"""Makes a report of all factor metrics of some models in one call, for ImageNet-X's sixteen factors or any others.

>>> import numpy as np
>>> from recipes_lib.factors.annotations import Annotations
>>> from recipes_lib.factors.predictions import Predictions
>>> names = np.array([f"{number}.png" for number in range(8)])
>>> dark = np.array([[True, False]] * 4 + [[False, True]] * 2 + [[False, False]] * 2)
>>> images = Annotations(names, np.zeros(8, np.int16), 2, ("dark", "small"), {"multi": dark})
>>> answers = Predictions(("model",), np.array([[0, 1, 0, 0, 1, 0, 0, 1]], np.int16))
>>> factor_report(images, answers).tables["multi"]["class"].counts.error_ratio.round(6)
array([[0.666667, 1.333333]])

:mod:`recipes_lib.factors.report_json` converts the report to plain values for JSON.
"""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from recipes_lib.factors import error_ratios, inference
from recipes_lib.factors.annotations import Annotations
from recipes_lib.factors.error_ratios import Correctness, Counts, Scope, Split
from recipes_lib.factors.predictions import Predictions

FEW = 100
"""Number of images below which a note warns of a factor's error ratio: of 44 images, one is 1 / 44 = 2.3 points."""
WORST = 100
"""Number of classes with the lowest accuracy over which the official toolkit takes a mean; there may be fewer."""
Interval = Literal["bootstrap", "wilson"]
"""The method of an error ratio's interval."""


@dataclass(frozen=True)
class Table:
    """The metrics of one kind of mark and one kind of correctness; arrays are float64 [M, F], NaN where not defined."""

    counts: Counts
    low: np.ndarray
    """Lower bound of the error ratio's interval, by the method asked for."""
    high: np.ndarray
    """Upper bound of the same interval."""
    wilson_low: np.ndarray
    """Lower bound of the error ratio's interval, by Wilson's method."""
    wilson_high: np.ndarray
    """Upper bound of the same interval."""
    p: np.ndarray
    """p-value of "the error ratio is 1"."""
    holm: np.ndarray
    """``p`` adjusted by Holm, over all models and factors of this table."""
    fdr: np.ndarray
    """``p`` adjusted by Benjamini and Hochberg, over all models and factors of this table."""
    agreement: inference.Agreement | None
    """Agreement of the models; None for a single model or fewer than three factors with ratios."""
    groups: dict[str, list[inference.GroupTest]]
    """Column of the table of groups -> one test per factor."""

    def rankings(self) -> list[list[int]]:
        """The factors' numbers for each model, the worst factor first; factors without a ratio are left out."""
        ratios = self.counts.error_ratio
        orders = np.argsort(-ratios, axis=1, kind="stable")  # NaN comes last
        return [order[:known].tolist() for order, known in zip(orders, (~np.isnan(ratios)).sum(axis=1), strict=True)]


@dataclass(frozen=True)
class Prevalence:
    """The frequency of each factor among the predicted images and among annotated training images; arrays are [F]."""

    val: np.ndarray
    """Share of the predicted images that count."""
    train: np.ndarray | None
    """Share of the annotated training images."""
    p: np.ndarray | None
    """p-value of "equally frequent in training and validation"."""
    holm: np.ndarray | None
    """``p`` adjusted by Holm over the factors."""


@dataclass(frozen=True)
class FactorReport:
    """The result of :func:`factor_report`."""

    models: tuple[str, ...]
    """Names of the M models."""
    factors: tuple[str, ...]
    """Names of the F factors."""
    tables: dict[str, dict[Correctness, Table]]
    """Kind of mark (``top``, ``multi``) -> kind of correctness -> metrics."""
    splits: dict[Correctness, Split]
    """Kind of correctness -> counts of the same answers per metaclass and per class."""
    prevalence: dict[str, Prevalence]
    """Kind of mark -> frequencies of the factors."""
    facts: dict[str, Any]
    """The settings of the report: numbers of images, interval, scope."""
    notes: list[str]
    """Warnings for the reader, one line each."""

    def by_metaclass(self, which: str, correctness: Correctness) -> dict[str, Counts]:
        """The counts of each metaclass for the kind of mark ``which``; empty if there are no metaclasses."""
        return {name: parts[which] for name, parts in self.splits[correctness].metaclasses.items()}


def factor_report(
    annotations: Annotations,
    predictions: Predictions,
    *,
    train: Annotations | None = None,
    groups: Mapping[str, Mapping[str, str]] | None = None,
    scope: Scope = "toolkit",
    interval: Interval = "bootstrap",
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> FactorReport:
    """Computes error ratios with intervals and tests, rankings, prevalence, agreement and groups, and counts per class.

    ``train``: annotated training images with the same factors; ``groups``: model -> column (architecture, paradigm,
    ...) -> group. A model's interval depends on ``seed`` and the model's name, but not on the other models.

    Raises: ``ValueError`` if annotations, predictions and groups do not fit together.
    """
    if train is not None and train.factors != annotations.factors:
        raise ValueError(f"factors in training {train.factors}, in validation {annotations.factors}")
    if groups is not None and (unknown := [name for name in predictions.models if name not in groups]):
        raise ValueError(f"models without a group: {unknown}")
    tables: dict[str, dict[Correctness, Table]] = {which: {} for which in annotations.marks}
    splits = {
        kind: error_ratios.split(predictions, annotations, kind, rows=error_ratios.counting(annotations, kind, scope))
        for kind in error_ratios.allowed(annotations)
    }
    for kind, found in splits.items():
        for which, counts in found.whole.items():
            bounds = inference.wilson_ratio(counts, level)
            low, high = bounds
            if interval == "bootstrap":
                low, high = _bootstrap(counts, predictions.models, f"{which} {kind}", resamples, level, seed)
            tables[which][kind] = _table(
                counts, (low, high), bounds, predictions.models, groups, f"{which} {kind}", seed
            )
    facts = {
        "images": {
            "all": len(annotations.names),
            "left_out": {reason: int(rows.sum()) for reason, rows in annotations.left_out.items()},
            "counted": {kind: int(found.classes.images.sum()) for kind, found in splits.items()},
        },
        "interval": {"of": "error_ratio", "method": interval, "level": level}
        | ({"resamples": resamples, "seed": seed} if interval == "bootstrap" else {}),
        "scope": scope,
    }
    prevalence = {which: _prevalence_of(which, by_kind["class"].counts, train) for which, by_kind in tables.items()}
    notes = _notes(annotations, predictions, tables)
    return FactorReport(predictions.models, annotations.factors, tables, splits, prevalence, facts, notes)


def _table(
    counts: Counts,
    bounds: tuple[np.ndarray, np.ndarray],
    wilson: tuple[np.ndarray, np.ndarray],
    models: tuple[str, ...],
    groups: Mapping[str, Mapping[str, str]] | None,
    purpose: str,
    seed: int,
) -> Table:
    p, ratios = inference.no_effect(counts), counts.error_ratio
    columns = next(iter(groups.values())) if groups else ()
    comparable = len(models) > 1 and int((~np.isnan(ratios).any(axis=0)).sum()) > 2
    return Table(
        counts,
        *bounds,
        *wilson,
        p=p,
        holm=inference.holm(p),
        fdr=inference.benjamini_hochberg(p),
        agreement=inference.agreement(ratios, generator=_generator(seed, "agreement", purpose)) if comparable else None,
        groups={name: inference.compare_groups(ratios, [groups[m][name] for m in models]) for name in columns},
    )


def _bootstrap(
    counts: Counts, models: tuple[str, ...], purpose: str, resamples: int, level: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    drawn = {"resamples": resamples, "level": level}
    bounds = [
        inference.bootstrap_ratio(counts, place, generator=_generator(seed, name, purpose), **drawn)
        for place, name in enumerate(models)
    ]
    return np.stack([low for low, _ in bounds]), np.stack([high for _, high in bounds])


def _generator(seed: int, *purpose: str) -> np.random.Generator:
    """A random generator that is the same for the same seed and purpose."""
    return np.random.default_rng([seed, *(zlib.crc32(word.encode()) for word in purpose)])


def _prevalence_of(which: str, counts: Counts, train: Annotations | None) -> Prevalence:
    if train is None:
        return Prevalence(counts.prevalence, None, None, None)
    rows = train.kept
    with_factor, total = train.marks[which][rows].sum(axis=0), int(rows.sum())
    p = inference.same_share(counts.with_factor, counts.images, with_factor, total)
    return Prevalence(counts.prevalence, with_factor / total, p, inference.holm(p))


def _notes(
    annotations: Annotations, predictions: Predictions, tables: Mapping[str, Mapping[Correctness, Table]]
) -> list[str]:
    notes = [
        f"{int(rows.sum()):,} of {len(rows):,} images count for nothing: {reason}."
        for reason, rows in annotations.left_out.items()
        if rows.any()
    ]
    for which, by_kind in tables.items():
        n = by_kind["class"].counts.with_factor
        for factor, images in zip(annotations.factors, n.tolist(), strict=True):
            if not images:
                notes.append(f"No image has the factor {factor} ({which}): its metrics are null.")
        few = [
            f"{factor} ({images})"
            for factor, images in zip(annotations.factors, n.tolist(), strict=True)
            if 0 < images < FEW
        ]
        if few:
            notes.append(f"Factors with fewer than {FEW} images ({which}), to be read with care: {', '.join(few)}.")
    for kind, table in next(iter(tables.values())).items():
        average = table.counts.average
        if perfect := [name for name, right in zip(predictions.models, average, strict=True) if right == 1]:
            notes.append(f"No error by {', '.join(perfect)} ({kind}): error ratios are null.")
        if kind == "class" and (
            weak := [n for n, right in zip(predictions.models, average, strict=True) if right < 0.01]
        ):
            notes.append(f"Accuracy below 1 %: {', '.join(weak)}. Are these classes of another data set?")
    return notes
