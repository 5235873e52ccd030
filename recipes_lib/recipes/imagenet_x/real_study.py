# SPDX-License-Identifier: Apache-2.0
"""Measures error ratios on real annotations for the ImageNet-X chapter: four models, and two published sweeps.

The data may not be shipped (CC BY-NC 4.0): it is read from the folder in ``RECIPES_DATA``, and only aggregates are
stored. Annotations, predictions and tables are those of Youbi Idrissi et al., "ImageNet-X", arXiv 2211.01866.

*Parts* replace seeds: the data is divided into three disjoint parts, each with every third image, every third annotated
training image, and every third run of a sweep at each strength.
"""

import csv
import gzip
import os
import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from recipes_lib.errors import DataError
from recipes_lib.factors import annotations, error_ratios, imagenet_x_files, predictions
from recipes_lib.factors import inference as factor_stats
from recipes_lib.factors.report import factor_report
from recipes_lib.factors.report_json import as_json

PARTS = 3
SHUFFLES = 1000
FACTORS = annotations.FACTORS
SWEEPS = {"crop": ("crop", 20.0, 90.0), "colorjitter": ("color", 10.0, 88.0)}
"""For each sweep: the word before the strength in a run's name, the largest strength of the low end, and the smallest
strength of the high end (both inclusive).

The strength of ``crop`` is the smallest area of a crop in percent of the image, so the low end is the strong one.
"""
BINS = 10
"""Number of ranges of strength, of equal width, for a curve."""


def measure(part: int) -> dict[str, Any]:
    """All metrics of one part.

    ``shared``: kind of mark -> mean rank correlation over pairs of models, and the 95 % quantile by chance.
    ``extreme``: the highest error ratio of pose and the lowest of texture over the models. ``rarity``: kind of mark ->
    rank correlation of training prevalence and mean error ratio, and the 5 % quantile by chance. ``sweep``: sweep ->
    end (or ``curve``) -> metrics. ``whole``: model -> factor -> error ratio and interval over all images (marks
    ``top``).

    Raises: ``DataError`` without the data.
    """
    folder = _folder()
    val, train = imagenet_x_files.read(folder)
    given = predictions.read([folder / "imagenet_x_val.npz"], val)
    own = np.arange(len(val.names)) % PARTS == part
    counts = error_ratios.count(given, val, rows=error_ratios.counting(val, "class") & own)
    ratios = {kind: counted.error_ratio for kind, counted in counts.items()}
    seen = np.arange(len(train.names)) % PARTS == part
    prevalence = {kind: marks[seen].mean(axis=0) for kind, marks in train.marks.items()}
    top = dict(zip(FACTORS, ratios["top"].T, strict=True))
    every = as_json(factor_report(val, given))["models"]
    return {
        "shared": {kind: agreement(rows, part) for kind, rows in ratios.items()},
        "extreme": {"pose": float(top["pose"].max()), "texture": float(top["texture"].min()), "one": 1.0},
        "rarity": {kind: rarity(prevalence[kind], rows, part) for kind, rows in ratios.items()},
        "prevalence": {kind: _named(shares) for kind, shares in prevalence.items()},
        "sweep": {name: sweep(folder, name, part) for name in SWEEPS},
        "whole": {model: found["top"]["class"] for model, found in every.items()},
    }


def agreement(ratios: np.ndarray, part: int) -> dict[str, float]:
    """Whether models share their worst factors: ratios float64 [M, F] -> mean rank correlation, also by chance."""
    generator = np.random.default_rng(part)
    found = factor_stats.agreement(ratios, generator=generator, permutations=SHUFFLES)

    def by_chance() -> float:
        shuffled = generator.permuted(ratios, axis=1)
        return factor_stats.agreement(shuffled, generator=generator, permutations=0).mean_rank_correlation

    return {"mean_rank_correlation": found.mean_rank_correlation, "null_95": _quantile(by_chance, 0.95), "p": found.p}


def rarity(prevalence: np.ndarray, ratios: np.ndarray, part: int) -> dict[str, float]:
    """Whether factors rare in training have high error ratios: [F], [M, F] -> rank correlation, also by chance."""
    generator, mean = np.random.default_rng(part), ratios.mean(axis=0)

    def by_chance() -> float:
        return factor_stats.rank_correlation(generator.permutation(prevalence), mean)

    return {"rank_correlation": factor_stats.rank_correlation(prevalence, mean), "null_5": _quantile(by_chance, 0.05)}


def sweep(folder: Path, name: str, part: int) -> dict[str, Any]:
    """Mean error ratios, accuracies and average accuracy of a sweep's runs, at its low and high end and as a curve."""
    word, low, high = SWEEPS[name]
    strengths, accuracy, average = _runs(folder, name, word, part)
    ratio = (1 - accuracy) / (1 - average[:, None])

    def means(rows: np.ndarray) -> dict[str, Any]:
        shown = {"ratio": _named(ratio[rows].mean(axis=0)), "accuracy": _named(accuracy[rows].mean(axis=0))}
        return shown | {"average": float(average[rows].mean()), "runs": int(rows.sum())}

    edges = np.linspace(strengths.min(), strengths.max(), BINS + 1)
    place = np.clip(np.searchsorted(edges, strengths, side="right") - 1, 0, BINS - 1)
    filled = [place == k for k in range(BINS) if (place == k).any()]
    curve = [{"strength": float(strengths[rows].mean()), **means(rows)} for rows in filled]
    return {"low": means(strengths <= low), "high": means(strengths >= high), "curve": curve}


def _runs(folder: Path, suite: str, word: str, part: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One part of a sweep's runs: strengths [R], factor accuracies [R, F] and average accuracies [R] (marks ``top``)."""
    at: dict[float, list[dict[str, str]]] = defaultdict(list)
    with gzip.open(folder / "model_factor_accuracies.csv.gz", "rt", newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["suite"] == suite and row["which"] == "top":
                at[float(re.search(rf"_{word}([\d.]+)_", row["model"])[1])].append(row)
    chosen = [
        (strength, row)
        for strength in sorted(at)
        for row in sorted(at[strength], key=lambda row: row["model"])[part::PARTS]
    ]
    accuracy = np.array([[float(row[factor]) for factor in FACTORS] for _, row in chosen])
    return (
        np.array([strength for strength, _ in chosen]),
        accuracy,
        np.array([float(row["average"]) for _, row in chosen]),
    )


def _folder() -> Path:
    place = os.environ.get("RECIPES_DATA")
    folder = Path(place or "", "imagenet_x")
    if not place or not (folder / "imagenet_x_val.npz").is_file():
        raise DataError(f"imagenet_x is not in RECIPES_DATA = {place}. Set it to the folder of the test data.")
    return folder


def _named(values: np.ndarray) -> dict[str, float]:
    return dict(zip(FACTORS, values.round(6).tolist(), strict=True))


def _quantile(draw: Callable[[], float], level: float) -> float:
    return float(np.quantile([draw() for _ in range(SHUFFLES)], level))
