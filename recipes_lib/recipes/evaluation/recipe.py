# SPDX-License-Identifier: Apache-2.0
"""How one knows what was learned: several small networks, each measured with and without labels.

The chapter has no paper of its own; Balestriero et al., "A Cookbook of Self-Supervised Learning", arXiv 2304.12210, is
the map. Chapter: ``notebooks/evaluation.py``.

1. Frozen features are probed with labels: nearest neighbours, linear and MLP heads, a few labels per class.
2. Metrics without labels read the features of unlabelled images: spectra, the sphere, rotations.
3. A metric is of use if it ranks networks as the labels do.

The methods are those of :mod:`recipes_lib.recipes.families`; this recipe trains some of them and measures each.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from recipes_lib import terminal
from recipes_lib.config import override
from recipes_lib.distributed import collectives
from recipes_lib.errors import ConfigError, Faults
from recipes_lib.pretraining import engine
from recipes_lib.pretraining.engine import Result
from recipes_lib.pretraining.recipe import Job
from recipes_lib.recipes.evaluation import zoo
from recipes_lib.recipes.evaluation.ranking import LABEL_FREE
from recipes_lib.recipes.families.settings import Config as FamiliesConfig
from recipes_lib.training import folder, stages

BATCH = 128
"""Images per step: that of the families' presets ``toy``."""
UNTRAINED = "untrained"
"""The network before training, whose batch norms have statistics of training images."""


@dataclass(frozen=True, kw_only=True)
class DataSizes:
    """How many images of the Pantry there are."""

    train_size: int = 6000
    """Number of training images, at least one batch (128)."""
    test_size: int = 2000
    """Number of test images, at least one batch (128)."""

    def check(self, faults: Faults) -> None:
        """Adds every fault of this group to ``faults``."""
        for name, size in (("train_size", self.train_size), ("test_size", self.test_size)):
            faults.need(size >= BATCH, f"data.{name}", size, f"of at least {BATCH}, one batch")


@dataclass(frozen=True, kw_only=True)
class TrainLength:
    """What is trained, for how long, and from which seed."""

    methods: tuple[
        Literal["simclr", "moco_v3", "byol", "simsiam", "dino", "barlow_twins", "vicreg", "swav", "lejepa", "rotation"],
        ...,
    ] = ("simclr", "vicreg", "lejepa")
    """Methods of the families, each with its preset ``toy``; the untrained network is always beside them."""
    steps: int = 300
    """Number of optimiser steps of each network, at least 1."""
    seed: int = 0
    """Seed of the weights, the images' order and the views, at least 0."""

    def check(self, faults: Faults) -> None:
        """Adds every fault of this group to ``faults``."""
        distinct = len(set(self.methods)) == len(self.methods) > 0
        faults.need(distinct, "train.methods", list(self.methods), "with at least one method, none of them twice")
        faults.need(self.steps >= 1, "train.steps", self.steps, "of at least 1")
        faults.need(0 <= self.seed < 2**63, "train.seed", self.seed, "of at least 0 and below 2**63", most=2**63 - 1)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Which networks are compared; all else is as the families' presets ``toy`` have it."""

    data: DataSizes = field(default_factory=DataSizes)
    train: TrainLength = field(default_factory=TrainLength)

    def validate(self) -> None:
        """Raises ``ConfigError`` with a line for each fault."""
        faults = Faults()
        self.data.check(faults)
        self.train.check(faults)
        faults.raise_any()

    def of_network(self, method: str) -> FamiliesConfig:
        """The config of the run of one method."""
        changes = {"data.train_size": self.data.train_size, "data.test_size": self.data.test_size}
        return zoo.trained_config(method, self.train.seed, {**changes, "train.steps": self.train.steps})


def run(config: Config, out: Path | None = None) -> Result:
    """Trains and measures the networks; ``out`` is the run folder (default ``runs/evaluation-DATE``).

    Each network is a run of ``families`` in a folder of its own there. In ``report.json``, ``scores`` and ``label_free``
    are metric -> network -> value (:func:`zoo.measure`); ``method`` is the first network.

    Raises: ``ConfigError``, ``RunError``, ``Diverged`` or ``Interrupted``, with text of whole lines.
    """
    config.validate()
    place = stages.start("cpu", 1)
    if place.size > 1:
        raise ConfigError(f"evaluation trains in one process, not in {place.size}: start it without torchrun.")
    out = collectives.broadcast_object(out or folder.default_path("evaluation"))
    with folder.RunFolder.create_or_continue(out, "evaluation", config) as run:
        began = time.perf_counter()
        stages.keep(run)
        with stages.tell_how_to_go_on("The run was stopped, and finished networks are kept.", f"recipes resume {out}"):
            rows = measured(config, run.path)
        for name, row in rows.items():
            line = f"{name}: {', '.join(f'{what} {value:.3f}' for what, value in row.items())}"
            terminal.aside().print(line, highlight=False, soft_wrap=True)
        report = {"recipe": "evaluation", **_by_metric(rows, config.train.methods[0])}
        report |= {"seconds": round(time.perf_counter() - began, 1), "steps": config.train.steps}
        run.write_report({**report, "seed": config.train.seed, **engine.provenance()})
        run.set_state("done", config.train.steps)
        return Result(run.path, run.read_report())


def measured(config: Config, path: Path) -> dict[str, dict[str, float]]:
    """What is measured of each network, which is trained in ``path`` unless it is there: name -> metric -> value."""
    rows = {}
    for method in config.train.methods:
        of_method = config.of_network(method)
        rows[method] = zoo.measure(of_method, zoo.train(of_method, path / method))
    first = config.of_network(config.train.methods[0])
    return {**rows, UNTRAINED: zoo.measure(first, zoo.untrained(first))}


def _by_metric(rows: dict[str, dict[str, float]], first: str) -> dict[str, dict[str, dict[str, float]]]:
    """``scores`` (accuracies) and ``label_free``, each metric -> network -> value, with ``method`` for the first network.

    Losses are left out: those of two methods cannot be compared.
    """
    names = {first: "method", UNTRAINED: "random_init"}
    found: dict[str, dict[str, dict[str, float]]] = {"scores": {}, "label_free": {}}
    for name, row in rows.items():
        for metric, value in row.items():
            if metric != "loss":
                group = found["label_free" if metric in LABEL_FREE else "scores"]
                group.setdefault(metric, {})[names.get(name, name)] = value
    return found


def fingerprint(config: Config) -> dict[str, Any]:
    """The loss on test images and the k-NN accuracy of each network after three steps; they change if the numerics do."""
    with TemporaryDirectory() as place:
        rows = measured(override(config, {"train.steps": 3}), Path(place))
    losses = {f"loss_{name}": [row["loss"]] for name, row in rows.items()}
    return losses | {f"knn_{name}": row["knn"] for name, row in rows.items()}


PRESETS: dict[str, Config] = {
    # Two networks of 60 steps and the untrained one, 35 seconds of one core.
    "toy": Config(
        data=DataSizes(train_size=3000, test_size=500),
        train=TrainLength(methods=("simclr", "vicreg"), steps=60),
    ),
    # Three networks of 300 steps, two and a half minutes of one core.
    "simmer": Config(),
}

RECIPE = Job(name="evaluation", config=Config, presets=PRESETS, run=run, fingerprint=fingerprint)
