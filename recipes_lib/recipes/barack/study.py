# SPDX-License-Identifier: Apache-2.0
"""What the chapter measures on vectors: all arms, the share of group labels, the number of points, and the bound."""

import csv
import gzip
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from recipes_lib.errors import DataError
from recipes_lib.evaluation import group_scores
from recipes_lib.recipes.barack import gaussian, vectors
from recipes_lib.recipes.barack.vectors import Options, Trained, VectorSet, with_arm

POINTS, TEST_POINTS, AGREE = 4000, 8000, 0.97
"""Training and test points of the Gaussian toy, and the share of training points whose attribute is that of the class."""
ARMS: Mapping[str, Mapping[str, Any]] = {
    "erm": {"arm": "erm"},
    "jtt": {"arm": "jtt", "steps": 60},  # the first network stops early, so that it errs where the attribute misleads
    "lff": {"arm": "lff"},
    "george": {"arm": "george"},
    "subset": {"arm": "subset"},
    "shuffled": {"arm": "shuffled"},
    "balanced": {"arm": "balanced"},
    "barack": {"arm": "barack"},
    "oracle": {"arm": "oracle"},
    "soft": {"arm": "barack", "soft": True},
    "one_head": {"arm": "barack", "sees_class": False},
    "flips_5": {"arm": "barack", "flips": 0.05},
    "flips_20": {"arm": "barack", "flips": 0.2},
}
"""The arms of the toy, and its ablations: name -> fields of the first step."""
WITHOUT_GROUPS = ("erm", "jtt", "lff", "george")
SHARES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.33)
DRAWS = 3
"""Number of draws of the labelled points over which a share's metrics are averaged."""
LABELS, SIZES = 80, (1000, 2000, 4000)
"""Number of group labels, and numbers of training points that have as many."""
BOUND_POINTS = (1000, 4000, 16000)
"""Numbers of held-out points, and of those with a group label, from which errors are bounded."""
VALIDATION = 2000
"""Number of validation points."""
DECAYS = (0.0, 0.001, 0.005, 0.02, 0.05)
"""Weight decays among which validation points choose."""
_ADULT_DROPPED = ("sex", "relationship", "fnlwgt", "education", "income")
"""Columns of Adult that are no input: the attribute, what tells it, the sampling weight, and what education_num says."""


def arms(seed: int) -> dict[str, Any]:
    """Every arm on the Gaussian toy with 5 % of the group labels.

    ``worst``, ``average``: accuracies on a test set whose attribute is independent of the class. ``biased``: accuracy on
    a test set as biased as the training set. ``best_without_groups``: the largest ``worst`` of :data:`WITHOUT_GROUPS`.
    ``recall``, ``precision``: of the predicted groups of points without a label, the smallest of a group.
    """
    train, test, biased = toy(seed)
    report: dict[str, Any] = {"worst": {}, "average": {}, "biased": {}}
    for name, fields in ARMS.items():
        trained = vectors.train(train, with_arm(Options(seed=seed), **fields))
        found = vectors.evaluate(trained.network, test)
        report["worst"][name], report["average"][name] = found.worst, found.average
        report["biased"][name] = vectors.evaluate(trained.network, biased).average
        if name == "barack":
            report["recall"] = float(trained.quality.recall.min())
            report["precision"] = float(trained.quality.precision.min())
    report["best_without_groups"] = max(report["worst"][name] for name in WITHOUT_GROUPS)
    return report


def labels(seed: int) -> dict[str, Any]:
    """BARACK and group DRO on the labelled points alone, by the share of group labels; means over three draws of them.

    ``barack.S``, ``subset.S``: worst-group accuracy with S % of the group labels. ``missed.S``: the share of the worst
    group that the predictor misses. ``oracle``: worst-group accuracy with all group labels.
    """
    train, test, _ = toy(seed)
    report: dict[str, Any] = {"barack": {}, "subset": {}, "missed": {}}
    for share in SHARES:
        found: dict[str, list[float]] = {name: [] for name in report if name in ("barack", "subset", "missed")}
        for draw in range(DRAWS):
            fields = {"share": share, "seed": draw}
            trained = vectors.train(train, with_arm(Options(seed=seed), "barack", **fields))
            found["barack"].append(vectors.evaluate(trained.network, test).worst)
            found["missed"].append(1 - float(trained.quality.recall.min()))
            alone = vectors.train(train, with_arm(Options(seed=seed), "subset", **fields))
            found["subset"].append(vectors.evaluate(alone.network, test).worst)
        for name, values in found.items():
            report[name][name_of(share)] = fmean(values)
    oracle = vectors.train(train, with_arm(Options(seed=seed), "oracle"))
    return report | {"oracle": vectors.evaluate(oracle.network, test).worst}


def name_of(share: float) -> str:
    """The name of a share in reports and claims, in percent: ``0p5``, ``1``, ``33``."""
    return f"{100 * share:g}".replace(".", "p")


def points(seed: int) -> dict[str, Any]:
    """BARACK with 80 group labels, by the number of training points; means over three draws of the labels.

    ``worst.N``: worst-group accuracy with N points.
    """
    found: dict[str, float] = {}
    for size in SIZES:
        train, test, _ = toy(seed, size)
        options = [with_arm(Options(seed=seed), "barack", share=LABELS / size, seed=draw) for draw in range(DRAWS)]
        networks = [vectors.train(train, each).network for each in options]
        found[str(size)] = fmean(vectors.evaluate(network, test).worst for network in networks)
    return {"worst": found}


def bounds(seed: int) -> dict[str, Any]:
    """Our upper bound on the worst group's error beside the error itself, of one run of BARACK.

    ``points.N``: the bound from N held-out points of which 1,000 have a group label; ``labels.M``: from 16,000 held-out
    points of which M have one. ``error``: the worst group's error on the test set, ``held_out``: on all held-out points.
    """
    train, test, _ = toy(seed)
    held_out = gaussian.draw(max(BOUND_POINTS), seed, "bound", agree=AGREE)
    options = with_arm(Options(seed=seed), "barack")
    trained = vectors.train(train, options)
    report: dict[str, Any] = {name: 1 - vectors.evaluate(trained.network, some).worst for name, some in (
        ("error", test), ("held_out", held_out))}  # fmt: skip
    at = {size: held_out.select(torch.arange(size)) for size in BOUND_POINTS}
    report["points"] = {str(size): bound(trained, some, min(BOUND_POINTS), options) for size, some in at.items()}
    report["labels"] = {str(count): bound(trained, held_out, count, options) for count in BOUND_POINTS}
    return report


def bound(trained: Trained, held_out: VectorSet, count: int, options: Options) -> float:
    """Our upper bound on the worst group's error, from held-out points of which the first ``count`` have a group label."""
    predicted = held_out.labels * held_out.values + vectors.predict(trained.predictor, held_out, options).argmax(dim=1)
    with torch.no_grad():
        wrong = trained.network(held_out.inputs).argmax(dim=1) != held_out.labels
    quality = group_scores.group_quality(predicted[:count], held_out.groups[:count], held_out.count)
    return float(group_scores.error_bound(wrong, predicted, quality).max())


def validation(seed: int) -> dict[str, Any]:
    """Worst-group test accuracy of BARACK with the weight decay that validation points choose.

    ``few``: by the worst-group accuracy of 100 validation points, 25 of each group; ``all``: of 2,000 points with group
    labels; ``average``: by the accuracy of 2,000 biased points, which needs no group label; ``best``, ``last``: the best
    and the worst choice, known from the test set alone.
    """
    train, test, biased = toy(seed)
    val = gaussian.draw(VALIDATION, seed, "validation", agree=0.5)
    few = torch.cat([(val.groups == group).nonzero()[:25, 0] for group in range(val.count)])
    rows = []
    for decay in DECAYS:
        options = with_arm(replace(Options(seed=seed), weight_decay=decay, steps=1500), "barack")
        network = vectors.train(train, options).network
        sets = {"few": val.select(few), "all": val, "best": test}
        scores = {name: vectors.evaluate(network, some).worst for name, some in sets.items()}
        scores["average"] = vectors.evaluate(network, biased.select(torch.arange(VALIDATION))).average
        rows.append(scores)
    chosen = {name: max(rows, key=lambda row, name=name: row[name])["best"] for name in rows[0]}
    return chosen | {"last": min(row["best"] for row in rows)}


def adult(seed: int) -> dict[str, Any]:
    """Every arm on Adult: income by class, sex as the attribute, 1 % of the group labels; needs ``RECIPES_DATA``.

    Raises: ``DataError`` if the variable is not set or the folder has no Adult.
    """
    train, test = adult_sets()
    report: dict[str, Any] = {"worst": {}, "average": {}}
    for name in ("erm", "jtt", "subset", "shuffled", "barack", "oracle"):
        fields = {**ARMS[name], "share": 0.01, "seed": seed}
        options = replace(with_arm(Options(seed=seed), **fields), weight_decay=1e-3, steps=600)
        found = vectors.evaluate(vectors.train(train, options).network, test)
        report["worst"][name], report["average"][name] = found.worst, found.average
    return report


def adult_sets() -> tuple[VectorSet, VectorSet]:
    """Adult's official parts: numbers standardised, categories as one-hot columns, both by the training part.

    The class is an income above 50,000 dollars; the attribute is sex, 0 female and 1 male, which is no input.

    Raises: ``DataError`` if ``RECIPES_DATA`` is not set or holds no folder ``adult``.
    """
    place = os.environ.get("RECIPES_DATA")
    if not place or not (Path(place) / "adult" / "adult_train.csv.gz").is_file():
        raise DataError(
            "Adult is read from RECIPES_DATA/adult/adult_train.csv.gz and adult_test.csv.gz. Set RECIPES_DATA."
        )
    parts = [_rows(Path(place) / "adult" / f"adult_{name}.csv.gz") for name in ("train", "test")]
    columns = [name for name in parts[0][0] if name not in _ADULT_DROPPED]
    encoded = [[], []]
    for name in columns:
        values = [[row[name] for row in part] for part in parts]
        for table, column in zip(encoded, _encoded(*values), strict=True):
            table.append(column)
    return tuple(
        VectorSet(
            torch.cat(table, dim=1),
            torch.tensor([int(row["income"]) for row in part]),
            torch.tensor([int(row["sex"] == "Male") for row in part]),
        )
        for table, part in zip(encoded, parts, strict=True)
    )


def _rows(path: Path) -> list[dict[str, str]]:
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _encoded(train: list[str], test: list[str]) -> tuple[Tensor, Tensor]:
    """A column of both parts as numbers: [N, 1] standardised, or [N, values] one-hot; a value unknown to training is zeros."""
    if all(value.lstrip("-").isdigit() for value in train):
        numbers = [torch.tensor([float(value) for value in part])[:, None] for part in (train, test)]
        mean, spread = numbers[0].mean(), numbers[0].std()
        return (numbers[0] - mean) / spread, (numbers[1] - mean) / spread
    known = torch.tensor(range(len(set(train))))
    place = {value: number for number, value in enumerate(sorted(set(train)))}
    found = [torch.tensor([place.get(value, -1) for value in part])[:, None] == known for part in (train, test)]
    return found[0].float(), found[1].float()


def toy(seed: int, count: int = POINTS) -> tuple[VectorSet, VectorSet, VectorSet]:
    """The Gaussian toy: training set, test set with independent attributes, and held-out points as biased as training."""
    train = gaussian.draw(count, seed, "train", agree=AGREE)
    test = gaussian.draw(TEST_POINTS, seed, "test", agree=0.5)
    return train, test, gaussian.draw(TEST_POINTS, seed, "held out", agree=AGREE)


def fingerprint() -> dict[str, Any]:
    """Weights and accuracies of short runs, which change if the numerics of any arm change."""
    train, test, _ = toy(0, 500)
    found: dict[str, Any] = {"weights": [], "accuracies": []}
    for fields in ARMS.values():
        options = with_arm(replace(Options(), steps=3), **{**fields, "steps": 3})
        network = vectors.train(train, options).network
        found["weights"].append(float(network[1].weight.detach().abs().sum()))
        found["accuracies"].append(float(vectors.evaluate(network, test).average))
    return {"weights": found["weights"], "accuracy": fmean(found["accuracies"])}
