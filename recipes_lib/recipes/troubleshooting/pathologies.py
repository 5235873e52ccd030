# SPDX-License-Identifier: Apache-2.0
"""The pathologies of training without labels: each with its symptom, the check that finds it, and the cure.

Each is a preset of the families with a few fields changed, so that the diagnosis can be seen live within seconds. The
same preset without the change is the healthy run beside it.
"""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recipes_lib.config import override
from recipes_lib.errors import Diverged
from recipes_lib.evaluation.diagnosis import Finding
from recipes_lib.pretraining import doctor
from recipes_lib.recipes.families import recipe as families
from recipes_lib.recipes.families.settings import Config

SMALL: Mapping[str, Any] = {
    # The Pantry at 16 pixels and 600 images: 150 steps take 10 seconds of a core, and untrained networks are well above
    # chance, so that a fall shows.
    "data.image_size": 16,
    "views.image_size": 16,
    "data.train_size": 600,
    "data.test_size": 100,
    "train.batch_size": 64,
    "train.steps": 150,
    "train.checkpoint_every": 75,
    "optim.warmup_steps": 10,
    "eval.probes": [],
    "eval.baselines": "none",
}
"""What makes a toy of the families small enough to be shown live."""
AT_ONCE: Mapping[str, Any] = {"train.steps": 3, "optim.warmup_steps": 1}
"""For what shows in the config or the images, and needs no training."""


@dataclass(frozen=True, kw_only=True)
class Pathology:
    """One thing that goes wrong."""

    title: str
    symptom: str
    """What is seen, and by whom it is usually overlooked."""
    cure: str
    check: str
    """The check of :mod:`recipes_lib.evaluation.diagnosis` that finds it."""
    preset: str
    """The preset of the families that is broken."""
    changes: Mapping[str, Any]
    """The fields that break it."""
    length: Mapping[str, Any] = field(default_factory=dict)
    """The fields that make the run shorter, in the healthy run too."""

    def config(self, *, broken: bool = True) -> Config:
        """The config of the broken run, or of the healthy run beside it."""
        changes = {**SMALL, **self.length, **(self.changes if broken else {})}
        return override(families.PRESETS[self.preset], changes)


PATHOLOGIES: dict[str, Pathology] = {
    "no_negatives": Pathology(
        title="Full collapse",
        symptom="The loss falls to its lowest value within a few steps, and every image has the same embedding.",
        cure="Give the loss its guard back: negatives, a variance term, or a stop-gradient with a predictor.",
        check="full_collapse",
        preset="simclr_toy",
        changes={"loss.negatives": False},
    ),
    "no_variance": Pathology(
        title="Dimensional collapse",
        symptom="The loss falls, and features still differ between images, but in a handful of directions.",
        cure="Give VICReg its variance term back; watch RankMe beside the loss.",
        check="dimensional_collapse",
        preset="vicreg_toy",
        changes={"loss.variance_weight": 0.0},
    ),
    "no_stop_gradient": Pathology(
        title="A loss that lies",
        symptom="The cosine of the two views rises to its best value, while k-NN falls below the untrained network.",
        cure="Detach the target, and watch k-NN or RankMe: the loss cannot tell.",
        check="lying_loss",
        preset="simsiam_toy",
        changes={"loss.stop_gradient": False},
    ),
    "nan": Pathology(
        title="NaN",
        symptom="The run ends with a loss or a gradient that is not finite.",
        cure="Lower the learning rate, warm up for longer, clip the gradient.",
        check="divergence",
        preset="vicreg_toy",
        changes={"optim.lr": 1e18, "optim.clip": None, "optim.warmup_steps": 0},
    ),
    "slow_teacher": Pathology(
        title="A teacher too slow for the run",
        symptom="The loss falls, and k-NN stays low: the targets are still those of random weights.",
        cure="Fit the EMA to the run: 1 / (1 - EMA) steps should be a twentieth of it.",
        check="teacher",
        preset="byol_toy",
        changes={"model.ema": 0.996},
        length=AT_ONCE | {"train.steps": 60},
    ),
    "copied_teacher": Pathology(
        title="A teacher that copies the student",
        symptom="Targets move with every step.",
        cure="Raise the EMA.",
        check="teacher",
        preset="byol_toy",
        changes={"model.ema": 0.0},
        length=AT_ONCE | {"train.steps": 60},
    ),
    "endless_warmup": Pathology(
        title="A run within its warm-up",
        symptom="Nothing is learned: the run ends before the learning rate has reached its peak.",
        cure="Shorten the warm-up, which often counts epochs of a larger data set, or train for longer.",
        check="learning_rate",
        preset="simclr_toy",
        changes={"optim.warmup_steps": 100},
        length={"train.steps": 20},
    ),
    "few_images": Pathology(
        title="A batch far smaller than the prototypes",
        symptom="Sinkhorn must use all prototypes equally often, and there are many more of them than images.",
        cure="A larger batch, fewer prototypes, or a queue.",
        check="few_images",
        preset="swav_toy",
        changes={"model.prototypes": 512},
        length=AT_ONCE,
    ),
}
"""By name, in the order of the chapter."""


def produce(pathology: Pathology, out: Path, *, broken: bool = True) -> list[Finding]:
    """Trains the broken run, or the healthy one beside it, in the new folder ``out``, and returns what the doctor says."""
    with contextlib.suppress(Diverged):  # that a run diverged is what the doctor is to find
        families.RECIPE.run(pathology.config(broken=broken), out)
    return doctor.diagnose(families.RECIPE, out)
