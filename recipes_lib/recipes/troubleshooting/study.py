# SPDX-License-Identifier: Apache-2.0
"""What the troubleshooting chapter measures: the numbers of a broken run and of the healthy one beside it, and a census.

The census asks how far the doctor's word can be trusted. It trains methods of the families with and without what keeps
them from collapsing, at settings for which no threshold was chosen, and counts what is found and what is missed.
"""

import contextlib
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from recipes_lib.config import override
from recipes_lib.errors import Diverged
from recipes_lib.evaluation import diagnosis
from recipes_lib.evaluation.diagnosis import Finding
from recipes_lib.pretraining import doctor, two_ranks
from recipes_lib.recipes.families import recipe as families
from recipes_lib.recipes.families.claims import GUARDS
from recipes_lib.recipes.families.settings import Config
from recipes_lib.recipes.troubleshooting.pathologies import PATHOLOGIES, SMALL, produce, recipe_of, train
from recipes_lib.training.folder import RunFolder

KINDS = ("broken", "healthy")
"""The two runs of a pathology."""
OF_FEATURES = ("full_collapse", "dimensional_collapse", "lying_loss")
"""The checks that look at features, each with a number that is found below its threshold."""
WATCHED = {
    "spread": "watch_std_embedding",
    "rank": "watch_rankme",
    "rank_embedding": "watch_rankme_embedding",
    "watched_knn": "watch_knn",
}
"""Name of a number here -> its name in ``metrics.jsonl``."""
DRAWS = 2
"""How often the census draws settings for each method."""
CENSUS_STEPS, CENSUS_BATCHES, CENSUS_RATES = (80, 120, 160), (64, 96), (1 / 3, 1.0, 3.0)
"""What the settings of the census are drawn from: steps, images per step, and factors of the preset's learning rate."""


def describe(name: str, place: Path, *, broken: bool, also: Mapping[str, Any] | None = None) -> dict[str, float]:
    """The numbers of the broken run of a pathology, or of the healthy one beside it; arguments as :func:`train`.

    ``found``: 1 if the pathology's check found something, else 0; ``number`` and ``threshold`` of this check. Then, as
    far as the run has them: those of :func:`curve_ends`, and ``knn``, the accuracy on test images.
    On two processes: ``loss_apart`` and ``gradient_apart``, relative to those of one.
    """
    each = PATHOLOGIES[name]
    told: dict[str, float] = {}
    if each.method:
        out = train(name, place, broken=broken, also=also)
        loss, gradient = two_ranks.differences(partial(recipe_of, name, broken=broken), out)
        findings = [diagnosis.two_processes(loss, gradient)]
        told |= {"loss_apart": loss, "gradient_apart": gradient}
    else:
        out, findings = produce(name, place, broken=broken, also=also)
    finding = next(finding for finding in findings if finding.check == each.check)
    found = {"found": float(finding.status == "found")}
    if finding.number is not None and finding.threshold is not None:
        found |= {"number": finding.number, "threshold": finding.threshold}
    scored = (out / "report.json").is_file() and RunFolder.open(out).read_report()["scores"]
    knn = {"knn": scored["knn"]["method"]} if scored and "knn" in scored else {}
    return found | told | curve_ends(rows(out)) | knn


def rows(out: Path) -> list[dict[str, Any]]:
    """The metrics of a run, one row per step; none if it ended before it wrote any."""
    file = out / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def series(metrics: Sequence[Mapping[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """The steps at which a number was written, counted from 1, and its values."""
    some = [row for row in metrics if row.get(key) is not None]
    return [row["step"] + 1 for row in some], [row[key] for row in some]


def curve_ends(metrics: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The ends of a run's curves: ``loss_first`` and ``loss``, means over a tenth of the steps, and ``WATCHED`` at last."""
    if not metrics:
        return {}
    part, losses = max(1, len(metrics) // 10), [row["loss"] for row in metrics]
    ends = {"loss_first": fmean(losses[:part]), "loss": fmean(losses[-part:])}
    last = metrics[-1]
    return ends | {name: last[key] for name, key in WATCHED.items() if last.get(key) is not None}


def census(seed: int) -> dict[str, Any]:
    """Trains each method of ``GUARDS`` intact and without its guard, at drawn settings, and asks who tells them apart.

    ``runs``: one entry per run. ``auc``: the probability that a number ranks a broken run as worse than an intact one,
    for the doctor (the worst of its three numbers), for each of these numbers, and for the loss. ``balanced``: the mean
    of the share of broken runs found and the share of intact runs left alone, for the doctor's alarms, for the alarm
    "RankMe fell while training", and for the loss with the threshold that is best on these very runs. ``found`` and
    ``false_alarms``: the two shares of the first two.
    """
    told = []
    with TemporaryDirectory() as place:
        for number, name in enumerate(name for name in GUARDS for _ in range(DRAWS)):
            drawn = settings(name, seed, number)
            for broken in (False, True):
                out = Path(place) / f"{number}-{'broken' if broken else 'intact'}"
                with contextlib.suppress(
                    Diverged
                ):  # at a rate that is too high for it; the doctor is asked all the same
                    families.RECIPE.run(census_config(name, drawn, seed=seed, broken=broken), out)
                told.append({"method": name, "broken": broken, **drawn, **judge(out)})
    return {"runs": told, **compare(told)}


def settings(name: str, seed: int, number: int) -> dict[str, float]:
    """The settings of the ``number``-th pair of a census: ``steps``, ``batch`` and ``lr``."""
    draw = np.random.default_rng([seed, number])
    steps, batch, factor = (draw.choice(some) for some in (CENSUS_STEPS, CENSUS_BATCHES, CENSUS_RATES))
    return {"steps": int(steps), "batch": int(batch), "lr": families.PRESETS[f"{name}_toy"].optim.lr * float(factor)}


def census_config(name: str, drawn: Mapping[str, float], *, seed: int, broken: bool) -> Config:
    """The config of a run of the census. Its images are larger than those for which thresholds were chosen."""
    steps, batch = int(drawn["steps"]), int(drawn["batch"])
    fields = {
        "data.image_size": 20,
        "views.image_size": 20,
        "data.train_size": 1000,
        "train.batch_size": batch,
        "train.steps": steps,
        "train.checkpoint_every": steps,
        "optim.lr": drawn["lr"],
        "eval.watch": ["rankme"],
        "eval.watch_every": steps,
        "train.seed": seed,
    }
    if name == "ijepa":
        fields["model.ema"] = 1 - 1 / (0.05 * steps)  # the teacher remembers a twentieth of the run, however long
    if name == "w_mse":
        fields["loss.whitening_size"] = batch  # a whole number of these makes a batch
    return override(families.PRESETS[f"{name}_toy"], {**SMALL, **fields, **(GUARDS[name].changes if broken else {})})


def judge(out: Path) -> dict[str, Any]:
    """What the doctor, the loss and the curve of RankMe say of a run.

    ``alarms``: the checks that found something. ``health``: number divided by threshold, for each check of
    ``OF_FEATURES``. ``loss_fell``: by which share of its first value the loss fell. ``rank_fell``: whether the features
    have a lower RankMe after the last step than after the first.
    """
    findings, metrics = doctor.diagnose(families.RECIPE, out), rows(out)
    ends = curve_ends(metrics)
    fell = (ends["loss_first"] - ends["loss"]) / max(abs(ends["loss_first"]), 1e-12) if ends else 0.0
    ranks = [row["watch_rankme"] or 0.0 for row in metrics if "watch_rankme" in row]  # None: all features are equal
    return {
        "alarms": [finding.check for finding in findings if finding.status == "found"],
        "health": health(findings),
        "loss_fell": fell,
        "rank_fell": len(ranks) > 1 and ranks[-1] < ranks[0],
    }


def health(findings: Sequence[Finding]) -> dict[str, float]:
    """Number divided by threshold of the checks that look at features, by name: below 1 something is wrong."""
    return {
        finding.check: finding.number / finding.threshold
        for finding in findings
        if finding.check in OF_FEATURES and finding.number is not None and finding.threshold
    }


def compare(told: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """The last four entries of :func:`census`, from its ``runs``."""
    broken = np.array([run["broken"] for run in told])
    # a run that diverged has no features to look at, and is worse than any other
    numbers = {"doctor": [min(run["health"].values(), default=0.0) for run in told]}
    numbers |= {check: [run["health"].get(check, 0.0) for run in told] for check in OF_FEATURES}
    fell = np.array([run["loss_fell"] for run in told])
    alarms = {"doctor": np.array([bool(run["alarms"]) for run in told])}
    alarms["rank_fell"] = np.array([run["rank_fell"] for run in told])
    found = {name: float(raised[broken].mean()) for name, raised in alarms.items()}
    false = {name: float(raised[~broken].mean()) for name, raised in alarms.items()}
    # the loss may point either way, and takes the better one
    loss = auc(fell, broken)
    return {
        "auc": {
            **{name: auc(-np.array(values), broken) for name, values in numbers.items()},
            "loss": max(loss, 1 - loss),
        },
        "balanced": {name: (found[name] + 1 - false[name]) / 2 for name in alarms}
        | {"loss": best_threshold(fell, broken)},
        "found": found,
        "false_alarms": false,
    }


def auc(scores: np.ndarray, broken: np.ndarray) -> float:
    """The probability that a broken run scores above an intact one; ties count half. float [n], bool [n] -> [0, 1]."""
    above = np.sign(scores[broken][:, None] - scores[~broken][None])
    return float((above + 1).mean() / 2)


def best_threshold(scores: np.ndarray, broken: np.ndarray) -> float:
    """The balanced accuracy of the best threshold in hindsight, with the better of both directions.

    Shapes: float [n], bool [n] -> [0.5, 1].
    """
    best = 0.5
    for threshold in scores:
        raised = scores >= threshold
        balanced = (raised[broken].mean() + 1 - raised[~broken].mean()) / 2
        best = max(best, float(balanced), float(1 - balanced))
    return best
