# SPDX-License-Identifier: Apache-2.0
"""The knobs of self-supervised learning: what each setting does, and whether the usual advice about it holds.

Balestriero et al., "A Cookbook of Self-Supervised Learning", arXiv 2304.12210, section 3. Chapter: ``notebooks/knobs.py``.

1. Augmentations say what two views of an image may differ in, and so what the features forget.
2. A projector behind the backbone takes the loss's demands; it is thrown away, and the features before it are used.
3. Batch size, learning rate and weight decay belong together; temperature says how much the hardest negatives count.
4. A teacher and a predictor keep a method without negatives from collapsing.
5. The share of hidden patches says how hard a masked method's task is; small views are cheap.

All arms are runs of :mod:`recipes_lib.recipes.families`. This recipe trains one of its methods and probes it at every
layer, because the choice of the layer is a knob that needs no second run.
"""

import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from recipes_lib.config import override
from recipes_lib.distributed import collectives
from recipes_lib.errors import ConfigError
from recipes_lib.pretraining import engine
from recipes_lib.pretraining.engine import Result
from recipes_lib.pretraining.recipe import Job
from recipes_lib.recipes.families import recipe as families
from recipes_lib.recipes.families.settings import Config
from recipes_lib.recipes.knobs import study
from recipes_lib.training import folder, stages


def run(config: Config, out: Path | None = None) -> Result:
    """Trains a method and probes each of its layers; ``out`` is the run folder (default ``runs/knobs-DATE``).

    The training is a run of ``families`` in the sub-folder ``trained``. In ``report.json``, ``scores`` are its scores
    beside its baselines, and ``diagnostics`` has the k-NN accuracy at each layer (:func:`study.outputs`).

    Raises: ``ConfigError``, ``RunError``, ``Diverged`` or ``Interrupted``, with text of whole lines.
    """
    config.validate()
    study.require_projector(config)
    place = stages.start(config.train.device, config.train.threads)
    if place.size > 1:
        raise ConfigError(f"knobs trains in one process, not in {place.size}: start it without torchrun.")
    out = collectives.broadcast_object(out or folder.default_path("knobs"))
    with folder.RunFolder.create_or_continue(out, "knobs", config) as run:
        began = time.perf_counter()
        stages.keep(run)
        with stages.tell_how_to_go_on("The training was stopped, and its checkpoint is kept.", f"recipes resume {out}"):
            trained = _trained(config, run.path / "trained")
        report = {"recipe": "knobs", "scores": trained["scores"], "diagnostics": study.accuracies(run.path / "trained")}
        report |= {"seconds": round(time.perf_counter() - began, 1), "steps": trained["steps"]}
        run.write_report({**report, "seed": config.train.seed, **engine.provenance()})
        run.set_state("done", trained["steps"])
        return Result(run.path, run.read_report())


def _trained(config: Config, path: Path) -> dict[str, Any]:
    """The report of the training, which is not repeated if it is done."""
    return folder.finished(path) or families.RECIPE.run(config, path).report


def fingerprint(config: Config) -> dict[str, Any]:
    """The accuracy at each layer after three steps; they change if the numerics do."""
    short = {"train.steps": 3, "train.checkpoint_every": 3, "eval.baselines": "none", "eval.probes": ["knn"]}
    with TemporaryDirectory() as place:
        return run(override(config, short), Path(place) / "run").report["diagnostics"]


_SIMCLR = families.PRESETS["simclr_toy"]

PRESETS: dict[str, Config] = {
    # SimCLR for 100 steps, 20 seconds of one core with its baselines.
    "toy": replace(_SIMCLR, train=replace(_SIMCLR.train, steps=100, checkpoint_every=100)),
    # SimCLR as long as the chapter's arms have it.
    "simmer": replace(_SIMCLR, train=replace(_SIMCLR.train, steps=300, checkpoint_every=300)),
}

RECIPE = Job(name="knobs", config=Config, presets=PRESETS, run=run, fingerprint=fingerprint)
