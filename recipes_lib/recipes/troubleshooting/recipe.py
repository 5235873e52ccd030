# SPDX-License-Identifier: Apache-2.0
"""Troubleshooting: what goes wrong in training without labels, produced on purpose, and what finds it.

The chapter has no paper of its own; Balestriero et al., "A Cookbook of Self-Supervised Learning", arXiv 2304.12210, is
the map. Chapter: ``notebooks/troubleshooting.py``.

1. A loss does not tell whether features are good: of a collapsed network it is often the lowest.
2. Each fault has a number that shows it, and a threshold (:mod:`recipes_lib.evaluation.diagnosis`).
3. ``recipes doctor RUN`` takes the numbers from a run folder.

This recipe trains each broken run beside the healthy one that differs in the fault alone, and asks the doctor about both.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from recipes_lib import terminal
from recipes_lib.config import override
from recipes_lib.distributed import collectives
from recipes_lib.errors import ConfigError, Faults
from recipes_lib.pretraining import engine
from recipes_lib.pretraining.engine import Result
from recipes_lib.pretraining.recipe import Job
from recipes_lib.recipes.troubleshooting import study
from recipes_lib.recipes.troubleshooting.pathologies import PATHOLOGIES
from recipes_lib.training import folder, stages

BATCH = 64
"""Images per step of the runs, unless a pathology has another number."""


@dataclass(frozen=True, kw_only=True)
class DataSizes:
    """How many images of the Pantry there are, for the runs that hold them in memory."""

    train_size: int = 2000
    """Number of training images, at least one batch (64)."""
    test_size: int = 500
    """Number of test images, at least 2."""

    def check(self, faults: Faults) -> None:
        """Adds every fault of this group to ``faults``."""
        faults.need(self.train_size >= BATCH, "data.train_size", self.train_size, f"of at least {BATCH}, one batch")
        faults.need(self.test_size >= 2, "data.test_size", self.test_size, "of at least 2")


@dataclass(frozen=True, kw_only=True)
class TrainLength:
    """What is trained, how long and from which seed."""

    pathologies: tuple[str, ...] = tuple(PATHOLOGIES)
    """Names of the pathologies that are produced, at least one."""
    steps: int = 200
    """Number of optimiser steps of each run that is not shorter by nature, at least 1; features need 50 to be judged."""
    seed: int = 0
    """Seed of the weights, the images' order and the views, at least 0."""

    def check(self, faults: Faults) -> None:
        """Adds every fault of this group to ``faults``."""
        known, allowed = set(self.pathologies) <= set(PATHOLOGIES), f"of some of {', '.join(PATHOLOGIES)}"
        faults.need(known and len(self.pathologies) >= 1, "train.pathologies", self.pathologies, allowed)
        faults.need(self.steps >= 1, "train.steps", self.steps, "of at least 1")
        faults.need(0 <= self.seed < 2**63, "train.seed", self.seed, "of at least 0 and below 2**63", most=2**63 - 1)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Which pathologies are produced, and the size of their runs; all else stands in ``pathologies.py``."""

    data: DataSizes = field(default_factory=DataSizes)
    train: TrainLength = field(default_factory=TrainLength)

    def validate(self) -> None:
        """Raises ``ConfigError`` with a line for each fault."""
        faults = Faults()
        self.data.check(faults)
        self.train.check(faults)
        faults.raise_any()

    @property
    def fields(self) -> dict[str, Any]:
        """What this config changes of each run: sizes, length and seed, and the k-NN score of its network."""
        return {
            "data.train_size": self.data.train_size,
            "data.test_size": self.data.test_size,
            "train.steps": self.train.steps,
            "train.checkpoint_every": self.train.steps,
            "train.seed": self.train.seed,
            "eval.probes": ["knn"],
            "eval.watch_every": max(1, self.train.steps // 10),
        }


def run(config: Config, out: Path | None = None) -> Result:
    """Produces the pathologies; ``out`` is the run folder (default ``runs/troubleshooting-DATE``).

    The broken and the healthy run of each are folders below it. In ``report.json``, ``scores`` are the shares of runs
    in which the pathology's check found something, and ``diagnostics`` has the numbers of each run
    (:func:`study.describe`).

    Raises: ``ConfigError``, ``RunError`` or ``Interrupted``, with text of whole lines.
    """
    config.validate()
    place = stages.start("cpu", 1)
    if place.size > 1:
        raise ConfigError(f"troubleshooting trains in one process, not in {place.size}: start it without torchrun.")
    out = collectives.broadcast_object(out or folder.default_path("troubleshooting"))
    with folder.RunFolder.create_or_continue(out, "troubleshooting", config) as run:
        began = time.perf_counter()
        stages.keep(run)
        with stages.tell_how_to_go_on("The runs were stopped, and finished ones are kept.", f"recipes resume {out}"):
            found = {name: _both(name, run.path, config) for name in config.train.pathologies}
        shares = {kind: sum(told[kind]["found"] for told in found.values()) / len(found) for kind in study.KINDS}
        facts = {"recipe": "troubleshooting", "scores": {"found": shares}, "diagnostics": found}
        facts |= {"seconds": round(time.perf_counter() - began, 1), "steps": config.train.steps}
        run.write_report({**facts, "seed": config.train.seed, **engine.provenance()})
        run.set_state("done", config.train.steps)
        return Result(run.path, run.read_report())


def _both(name: str, place: Path, config: Config) -> dict[str, dict[str, float]]:
    """The numbers of the broken and of the healthy run of a pathology, which are also shown, a line each."""
    told = {kind: study.describe(name, place, broken=kind == "broken", also=config.fields) for kind in study.KINDS}
    for kind, numbers in told.items():
        verdict = "found" if numbers["found"] else "healthy"
        terminal.aside().print(f"{name}, {kind} run: {verdict}", highlight=False, soft_wrap=True)
    return told


def fingerprint(config: Config) -> dict[str, Any]:
    """The ends of the collapses' curves over three steps; they change if the numerics do."""
    names = [name for name, each in PATHOLOGIES.items() if each.check in study.OF_FEATURES]
    short = override(config, {"train.steps": 3, "train.pathologies": names})
    with TemporaryDirectory() as place:
        told = run(short, Path(place) / "run").report["diagnostics"]
    return {f"losses_{name}": [told[name][kind]["loss"] for kind in study.KINDS] for name in names}


PRESETS: dict[str, Config] = {
    # The three collapses, each beside its healthy run, for 150 steps, after which the last of them shows: 35 seconds of one core.
    "toy": Config(
        data=DataSizes(train_size=600, test_size=300),
        train=TrainLength(pathologies=("no_negatives", "no_variance", "no_stop_gradient"), steps=150),
    ),
    # All pathologies, for 200 steps where they train: three minutes of one core.
    "simmer": Config(),
}

RECIPE = Job(name="troubleshooting", config=Config, presets=PRESETS, run=run, fingerprint=fingerprint)
