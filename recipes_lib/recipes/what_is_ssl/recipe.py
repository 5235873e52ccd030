# SPDX-License-Identifier: Apache-2.0
"""What self-supervised learning is: three small networks that show why agreement alone fails, and what a loss tells.

The chapter has no paper of its own; Balestriero et al., "A Cookbook of Self-Supervised Learning", arXiv 2304.12210, is
the map. Chapter: ``notebooks/what_is_ssl.py``.

1. ``simclr``: two views of an image must be more alike than views of different images.
2. ``agreement``: two views of an image must be alike, and nothing else is asked.
3. ``easy_views``: SimCLR with two views that hardly differ.

The method is SimCLR of :mod:`recipes_lib.recipes.families`; this recipe trains it three times and compares.
"""

import json
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from recipes_lib import terminal
from recipes_lib.distributed import collectives
from recipes_lib.errors import ConfigError, Faults
from recipes_lib.pretraining import engine
from recipes_lib.pretraining.engine import Result
from recipes_lib.pretraining.recipe import Job
from recipes_lib.recipes.what_is_ssl import study
from recipes_lib.training import folder, stages

BATCH = 128
"""Images per step: that of SimCLR's preset ``toy`` of the families."""


@dataclass(frozen=True, kw_only=True)
class DataSizes:
    """How many images of the Pantry there are."""

    train_size: int = 6000
    """Number of training images, at least one batch (128)."""
    test_size: int = 1000
    """Number of test images, at least 2."""

    def check(self, faults: Faults) -> None:
        """Adds every fault of this group to ``faults``."""
        faults.need(self.train_size >= BATCH, "data.train_size", self.train_size, f"of at least {BATCH}, one batch")
        faults.need(self.test_size >= 2, "data.test_size", self.test_size, "of at least 2")


@dataclass(frozen=True, kw_only=True)
class TrainLength:
    """How long each network is trained, and from which seed."""

    steps: int = 300
    """Number of optimiser steps of each network, at least 1."""
    seed: int = 0
    """Seed of the weights, the images' order and the views, at least 0."""

    def check(self, faults: Faults) -> None:
        """Adds every fault of this group to ``faults``."""
        faults.need(self.steps >= 1, "train.steps", self.steps, "of at least 1")
        faults.need(0 <= self.seed < 2**63, "train.seed", self.seed, "of at least 0 and below 2**63", most=2**63 - 1)


@dataclass(frozen=True, kw_only=True)
class Config:
    """The size of the comparison; all else is SimCLR's preset ``toy`` of the families."""

    data: DataSizes = field(default_factory=DataSizes)
    train: TrainLength = field(default_factory=TrainLength)

    def validate(self) -> None:
        """Raises ``ConfigError`` with a line for each fault."""
        faults = Faults()
        self.data.check(faults)
        self.train.check(faults)
        faults.raise_any()


def run(config: Config, out: Path | None = None) -> Result:
    """Trains and compares the networks; ``out`` is the run folder (default ``runs/what_is_ssl-DATE``).

    Each network is a run of ``families`` in a folder of its own there. In ``report.json``, ``scores`` are those of
    SimCLR beside its baselines, and ``diagnostics`` has the numbers of each network (:func:`study.describe`).

    Raises: ``ConfigError``, ``RunError``, ``Diverged`` or ``Interrupted``, with text of whole lines.
    """
    config.validate()
    place = stages.start("cpu", 1)
    if place.size > 1:
        raise ConfigError(f"what_is_ssl trains in one process, not in {place.size}: start it without torchrun.")
    out = collectives.broadcast_object(out or folder.default_path("what_is_ssl"))
    with folder.RunFolder.create_or_continue(out, "what_is_ssl", config) as run:
        began = time.perf_counter()
        stages.keep(run)
        with stages.tell_how_to_go_on("The comparison was stopped, and finished networks are kept.", _go_on(run.path)):
            reports = {name: study.train(name, config, run.path / name) for name in study.NETWORKS}
        found = {name: study.describe(run.path / name) for name in study.NETWORKS}
        for name, told in found.items():
            line = f"{name}: {', '.join(f'{what} {value:.3f}' for what, value in told.items())}"
            terminal.aside().print(line, highlight=False, soft_wrap=True)
        facts = {"recipe": "what_is_ssl", "scores": reports["simclr"]["scores"], "diagnostics": found}
        facts |= {"seconds": round(time.perf_counter() - began, 1), "steps": config.train.steps}
        run.write_report({**facts, "seed": config.train.seed, **engine.provenance()})
        run.set_state("done", config.train.steps)
        return Result(run.path, run.read_report())


def _go_on(path: Path) -> str:
    return f"recipes resume {path}"


def fingerprint(config: Config) -> dict[str, Any]:
    """The losses of three steps of each network, and SimCLR's accuracy after them; they change if the numerics do."""
    short = replace(config, train=replace(config.train, steps=3))
    found: dict[str, Any] = {}
    with TemporaryDirectory() as place:
        for name in study.NETWORKS:
            report = study.train(name, short, Path(place) / name)
            lines = (Path(place) / name / "metrics.jsonl").read_text().splitlines()
            found[f"losses_{name}"] = [json.loads(line)["loss"] for line in lines]
            if name == "simclr":
                found["knn"] = report["scores"]["knn"]["method"]
    return found


PRESETS: dict[str, Config] = {
    # Three networks of 80 steps, 25 seconds of one core; the chapter trains the first of them while you watch.
    "toy": Config(data=DataSizes(train_size=3000, test_size=500), train=TrainLength(steps=80)),
    # 300 steps on twice the images, as the presets of the families have it: two and a half minutes of one core.
    "simmer": Config(),
}

RECIPE = Job(name="what_is_ssl", config=Config, presets=PRESETS, run=run, fingerprint=fingerprint)
