# SPDX-License-Identifier: Apache-2.0
"""The pathologies of training without labels: each with its symptom, the check that finds it, and the cure.

Each is a preset of the families with one thing broken, small enough to be seen live within seconds. The same preset
without the fault is the healthy run beside it.
"""

import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from recipes_lib.config import override
from recipes_lib.data.images import ImageSet
from recipes_lib.data.pantry import dataset
from recipes_lib.distributed import batch_norm, collectives
from recipes_lib.errors import Diverged
from recipes_lib.evaluation.diagnosis import Finding
from recipes_lib.pretraining import doctor, two_ranks
from recipes_lib.pretraining.recipe import Method, Recipe
from recipes_lib.pretraining.scoring import DATA_SEED
from recipes_lib.recipes.families import recipe as families
from recipes_lib.recipes.families.contrastive import SimCLR
from recipes_lib.recipes.families.settings import Config
from recipes_lib.training import stages

SMALL: Mapping[str, Any] = {
    # The Pantry at 16 pixels: 150 steps take 5 seconds of a core, and an untrained network is well above chance, so
    # that a fall shows.
    "data.image_size": 16,
    "views.image_size": 16,
    "data.train_size": 600,
    "data.test_size": 300,  # more than the features have dimensions, which bounds their rank
    "train.batch_size": 64,
    "train.steps": 150,
    "train.checkpoint_every": 75,
    "optim.warmup_steps": 10,
    "eval.probes": [],
    "eval.baselines": "none",
    "eval.watch": ["std", "rankme", "knn"],
    "eval.watch_every": 10,
}
"""What makes a toy of the families small enough to be shown live."""

_BRIEF: Mapping[str, Any] = {
    # for what shows in the files or the first step, and needs no training
    "train.steps": 3,
    "train.batch_size": 32,
    "optim.warmup_steps": 1,
    "eval.watch": [],
    "eval.probes": [],
}
LARGE_FILE, SMALL_FILE = 384, 16
"""Side in pixels of the training files that are slow to read, and of all others."""
FILES = {"large": (128, 128), "leaky": (400, 160)}
"""Kind of image files -> how many there are to train on and to test on."""
LEAKED = 0.25
"""Share of the test images that are training images, where labels leak."""


@dataclass(frozen=True, kw_only=True)
class Pathology:
    """One thing that goes wrong."""

    title: str
    symptom: str
    """What is seen, or what is not."""
    cure: str
    check: str
    """The check of :mod:`recipes_lib.evaluation.diagnosis` that finds it."""
    preset: str = "simclr_toy"
    """The preset of the families that is broken."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """The fields of the config that break it."""
    shared: Mapping[str, Any] = field(default_factory=dict)
    """Fields of both runs, where they differ from ``SMALL``."""
    files: Literal["", "large", "leaky"] = ""
    """Image files that break it; empty: none. large: training files that are slow to read, where the healthy run has its
    images in memory. leaky: a test folder with training images in it, where the healthy run has one without."""
    method: type[Method] | None = None
    """A method that is broken on several processes; None: the preset's own, on one process."""

    def reads(self, broken: bool) -> bool:
        """Whether the broken run, or the healthy one, reads image files."""
        return self.files == "leaky" or (self.files == "large" and broken)

    def config(self, images: Path, *, broken: bool = True, also: Mapping[str, Any] | None = None) -> Config:
        """The config of the broken run, or of the healthy run beside it.

        ``images``: the folder of its image files, if it reads any. ``also``: fields that both runs change.
        """
        fields = {**SMALL, **(also or {}), **self.shared}
        if self.reads(broken):
            fields |= {"data.name": "imagenet", "data.root": images}
        return override(families.PRESETS[self.preset], {**fields, **(self.changes if broken else {})})


def without_gradient(first: Tensor, second: Tensor, *, temperature: float) -> dict[str, Tensor]:
    """NT-Xent with the gather that is often written: the other processes' embeddings come without their gradient.

    On one process it is :func:`recipes_lib.objectives.contrastive.nt_xent`.

    Shapes: ``first`` and ``second`` [B, d] -> the scalar ``loss``.
    """
    z = F.normalize(torch.stack([first, second]).float(), dim=2)  # [2, B, d]
    start = collectives.rank() * z.shape[1]
    itself = start + torch.arange(z.shape[1])
    with torch.no_grad():
        everyone = torch.stack([collectives.all_gather(view) for view in z])  # [2, R B, d], constants
    everyone = everyone.index_copy(1, itself, z)  # this process's own have a gradient
    others = everyone.shape[1]
    logits = z.flatten(0, 1) @ everyone.flatten(0, 1).T / temperature
    mine, partner = (torch.cat([itself + others * view for view in order]) for order in ((0, 1), (1, 0)))
    logits = logits.scatter(1, mine[:, None], -math.inf)  # a view is no candidate for itself
    return {"loss": F.cross_entropy(logits, partner)}


class PlainGather(SimCLR):
    """SimCLR whose negatives of other processes carry no gradient."""

    def forward(self, views: dict) -> dict[str, Tensor]:
        """The loss of one micro-batch. ``views`` is the output of :meth:`views`."""
        return without_gradient(*self.embeddings(views), temperature=self.config.loss.temperature)


class LocalBatchNorm(SimCLR):
    """SimCLR whose backbone takes its batch norms' statistics from the images of its own process only."""

    def __init__(self, config: Config, steps: int) -> None:
        super().__init__(config, steps)
        batch_norm.separate(self.encoder.backbone)


PATHOLOGIES: dict[str, Pathology] = {
    "no_negatives": Pathology(
        title="Full collapse",
        symptom="The loss reaches its lowest value within a few steps, and every image has nearly the same embedding.",
        cure="Give the loss its guard back: negatives, a variance term, or a stop-gradient with a predictor.",
        check="full_collapse",
        changes={"loss.negatives": False},
    ),
    "no_variance": Pathology(
        title="Dimensional collapse",
        symptom="The loss falls, and features still differ between images, but in few directions.",
        cure="Give VICReg its variance term back; watch RankMe beside the loss.",
        check="dimensional_collapse",
        preset="vicreg_toy",
        changes={"loss.variance_weight": 0.0},
    ),
    "no_stop_gradient": Pathology(
        title="A loss that lies",
        symptom="The loss is lower than the healthy run's from the first steps on, and k-NN falls.",
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
        changes={"optim.name": "sgd", "optim.lr": 30.0, "optim.clip": None, "optim.warmup_steps": 0},
    ),
    "slow_teacher": Pathology(
        title="A teacher too slow for the run",
        symptom="The loss falls, and the targets are nearly those of random weights all the time.",
        cure="Fit the EMA to the run: 1 / (1 - EMA) steps should be a part of it, such as a twentieth.",
        check="teacher",
        preset="byol_toy",
        changes={"model.ema": 0.996, "model.ema_final": 1.0},
    ),
    "copied_teacher": Pathology(
        title="A teacher that copies the student",
        symptom="The targets move with every step.",
        cure="Raise the EMA.",
        check="teacher",
        preset="byol_toy",
        changes={"model.ema": 0.0, "model.ema_final": 0.0},
    ),
    "endless_warmup": Pathology(
        title="A run within its warm-up",
        symptom="Little is learned: the run ends long before the learning rate has reached its peak.",
        cure="Shorten the warm-up, which may count epochs of a larger data set, or train for longer.",
        check="learning_rate",
        changes={"optim.warmup_steps": 100_000},  # ten epochs of ImageNet with 128 images per step
    ),
    "few_images": Pathology(
        title="A batch far smaller than the prototypes",
        symptom="Sinkhorn must use all prototypes equally often, and there are many more of them than images.",
        cure="A larger batch, fewer prototypes, or a queue.",
        check="few_images",
        preset="swav_toy",
        changes={"model.prototypes": 2048},
    ),
    "slow_input": Pathology(
        title="Slow input",
        symptom="The processor of the network is idle: a step takes as long as reading its images.",
        cure="Store smaller files, hold them in memory, or read them in more processes (--data.workers).",
        check="slow_input",
        files="large",
        shared={
            **_BRIEF,
            "train.steps": 6,
            "data.train_size": 128,
            "data.test_size": 128,
        },  # as many as there are files
    ),
    "leaky_labels": Pathology(
        title="Leaky labels",
        symptom="The score on test images is better than it should be: some of them are training images.",
        cure="Remove them from the training images, or hold others out (--data.holdout).",
        check="leaky_labels",
        files="leaky",
        shared={**_BRIEF, "eval.probes": ["knn"], "eval.neighbours": 1},
    ),
    "plain_gather": Pathology(
        title="A collective without gradient",
        symptom="On several processes the loss is right to the last digit, and the gradient is not.",
        cure="Gather with a function whose backward pass sums over processes, such as collectives.all_gather.",
        check=two_ranks.NAME,
        shared=_BRIEF,
        method=PlainGather,
    ),
    "local_batch_norm": Pathology(
        title="Batch statistics per device",
        symptom="The run on several processes is another method than the run on one: its batch norms see fewer images.",
        cure="Take the statistics over all processes, as the library's batch norms do.",
        check=two_ranks.NAME,
        shared=_BRIEF,
        method=LocalBatchNorm,
    ),
}
"""By name, in the order of the chapter."""


def recipe_of(name: str, *, broken: bool) -> Recipe:
    """The families, with the method that is broken on several processes, if the pathology has one."""
    method = PATHOLOGIES[name].method
    return replace(families.RECIPE, method=method) if broken and method else families.RECIPE


def produce(
    name: str, place: Path, *, broken: bool = True, also: Mapping[str, Any] | None = None
) -> tuple[Path, list[Finding]]:
    """Trains the broken run, or the healthy one beside it; returns its folder and what the doctor says of it.

    Arguments are those of :func:`train`.
    """
    out = train(name, place, broken=broken, also=also)
    recipe = recipe_of(name, broken=broken)
    findings = doctor.diagnose(recipe, out)
    if PATHOLOGIES[name].method:
        findings.append(two_ranks.compare(partial(recipe_of, name, broken=broken), out))
    return out, findings


def train(name: str, place: Path, *, broken: bool = True, also: Mapping[str, Any] | None = None) -> Path:
    """Trains the broken run, or the healthy one beside it, in a folder of ``place``, which is returned.

    Its image files, if it has any, lie beside it. A finished run of the same config is not repeated. ``also``: fields
    that both runs change.
    """
    each, kind = PATHOLOGIES[name], "broken" if broken else "healthy"
    images, out = place / f"{name}-{kind}-images", place / f"{name}-{kind}"
    config, recipe = each.config(images, broken=broken, also=also), recipe_of(name, broken=broken)
    if each.reads(broken):
        train_size, test_size = FILES[each.files]
        side = LARGE_FILE if each.files == "large" else SMALL_FILE
        leaked = LEAKED if each.files == "leaky" and broken else 0.0
        write_images(images, side, train_size=train_size, test_size=test_size, leaked=leaked)
    if not stages.finished(out, recipe.name, config):
        with contextlib.suppress(Diverged):  # that a run diverged is what the doctor is to find
            recipe.run(config, out)
    return out


def write_images(folder: Path, side: int, *, train_size: int, test_size: int, leaked: float = 0.0) -> None:
    """Writes pictures of the Pantry as PNG files below ``folder/train``, of ``side`` pixels, and below ``folder/val``.

    They are drawn with 16 pixels and enlarged, so that the network sees nearly the same whatever the side. ``leaked``:
    share of the test files that are replaced by training files. Existing files stay.
    """
    draw = partial(dataset, size=SMALL_FILE, seed=DATA_SEED)
    train_images, test_images = draw(train_size, split="train"), draw(test_size, split="test")
    copies = round(leaked * test_size)
    for index in range(train_size):
        _write(train_images, index, folder / "train", side)
    for index in range(test_size):
        _write(train_images if index < copies else test_images, index, folder / "val", SMALL_FILE)


def _write(images: ImageSet, index: int, folder: Path, side: int) -> None:
    file = folder / images.class_names[int(images.labels[index])] / f"{index:04d}.png"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(images.images[index].permute(1, 2, 0).numpy())
        picture.resize((side, side), Image.Resampling.BILINEAR).save(file, compress_level=1)
