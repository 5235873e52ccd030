# SPDX-License-Identifier: Apache-2.0
"""Local SGD: workers take steps alone and average their weights at intervals; SlowMo adds a slow momentum.

Ortiz, Frankle, Rabbat, Morcos, Ballas, "Trade-offs of Local SGD at Scale: An Empirical Study", 2021, arXiv 2110.08133;
Wang, Tantia, Ballas, Rabbat, "SlowMo: Improving Communication-Efficient Distributed SGD with Slow Momentum", ICLR 2020,
arXiv 1910.00643. Chapter: ``notebooks/local_sgd.py``.

1. Data-parallel training averages the workers' gradients at every step, so each step sends as many numbers as the model
   has weights.
2. In local SGD each worker takes H steps alone; then the weights are averaged. This sends H times fewer bytes.
3. Between two averagings the workers drift apart, so their mean is not the model that synchronous steps would reach.
4. Post-local SGD begins with synchronous steps. SlowMo treats the change of the mean in a round of H steps as a
   gradient, and applies a momentum step with it.

The group ``sync``, which every recipe has, chooses the strategy. This recipe trains a plain classifier, as the study
does. With ``sync.workers``, one process simulates several workers and takes the same steps as as many processes would.
"""

import copy
from dataclasses import dataclass, field, replace
from typing import Literal

import torch

from recipes_lib.config import PROBES, DataConfig, OptimConfig, SyncConfig, TrainConfig
from recipes_lib.config.views import OneView
from recipes_lib.distributed import batch_norm
from recipes_lib.distributed.sync import Traffic
from recipes_lib.distributed.world import World
from recipes_lib.errors import ConfigError, Faults
from recipes_lib.models import backbones
from recipes_lib.models.mlp import MLP
from recipes_lib.pretraining import class_scores
from recipes_lib.pretraining.class_scores import ClassEval
from recipes_lib.pretraining.classify import Classifier
from recipes_lib.pretraining.recipe import Recipe
from recipes_lib.recipes.local_sgd import simulated
from recipes_lib.training import loop
from recipes_lib.training.folder import RunFolder


@dataclass(frozen=True, kw_only=True)
class ModelConfig(backbones.BackboneConfig):
    """The classifier. Each worker's batch norms use its own statistics; shared ones would be sent at every step."""

    arch: Literal["mlp", backbones.Arch] = "resnet50"
    """Architecture. mlp: two hidden layers on the brightness of the pixels, for small images.
    Only mlp and the vits work with simulated workers (``sync.workers``)."""
    width: int = 64
    """Number of units of each hidden layer, at least 1; ``mlp`` only."""
    classes: int = 1000
    """Number of classes, at least 2."""

    def check(self, faults: Faults) -> None:
        """Adds every fault of this group to ``faults``."""
        super().check(faults)
        faults.need(self.width >= 1, "model.width", self.width, "of at least 1")
        faults.need(self.classes >= 2, "model.classes", self.classes, "of at least 2")


@dataclass(frozen=True, kw_only=True)
class Agreement(SyncConfig):
    """How the workers keep their weights equal, and whether workers are processes or simulated in one process."""

    workers: int = 0
    """Number of workers that one process simulates. 0: no simulation; each process that torchrun starts is a worker."""

    def check(self, faults: Faults) -> None:
        """Adds every fault of this group to ``faults``."""
        super().check(faults)
        faults.need(self.workers >= 0, "sync.workers", self.workers, "of at least 0", "0 leaves it to torchrun.")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Local SGD's config; the defaults are ResNet-50 on ImageNet with synchronous steps."""

    data: DataConfig = field(default_factory=DataConfig)
    views: OneView = field(default_factory=OneView)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(
            name="sgd",
            lr=3.2,  # 0.1 per 256 images: 0.1 x 8,192 / 256
            lr_start=0.1,
            lr_final=0.0,
            lr_drops=(30.0, 60.0, 80.0),
            warmup_epochs=5.0,
            weight_decay=1e-4,
            weight_decay_final=1e-4,
            stretch=1.0,
            first_count=0,
            clip=None,
        )
    )
    sync: Agreement = field(default_factory=Agreement)
    train: TrainConfig = field(default_factory=lambda: TrainConfig(epochs=90.0, batch_size=8192))
    eval: ClassEval = field(default_factory=ClassEval)

    def validate(self) -> None:
        """Raises ``ConfigError`` with a line for each fault."""
        faults = Faults()
        for group in (self.data, self.views, self.model, self.optim, self.sync, self.train, self.eval):
            group.check(faults)
        sides = {"data.image_size": self.data.image_size, "views.image_size": self.views.image_size}
        self.model.check_sides(faults, sides)
        if self.model.arch == "mlp" and self.views.image_size != self.data.image_size:
            faults.add(
                f"views.image_size = {self.views.image_size} and data.image_size = {self.data.image_size} differ: model.arch "
                "mlp takes one size."
            )
        if self.sync.workers:
            self._check_simulated(faults)
        faults.raise_any()

    def _check_simulated(self, faults: Faults) -> None:
        """Adds to ``faults`` every setting that simulated workers cannot use."""
        count, size, model = self.sync.workers, self.train.batch_size, self.model
        plain = model.arch == "mlp" or (model.arch.startswith("vit") and model.stem == "patch")
        known = self.sync.name in ("ddp", "local_sgd", "post_local_sgd", "slowmo")
        for fits, name, value, allowed in (
            (plain, "model.arch", model.arch, "of mlp, or a vit with model.stem patch: there is no batch norm in them"),
            (model.linear == "full", "model.linear", model.linear, "of full"),
            (self.optim.name in ("sgd", "adamw"), "optim.name", self.optim.name, "of sgd or adamw"),
            (known, "sync.name", self.sync.name, "of ddp, local_sgd, post_local_sgd or slowmo"),
            (self.train.accumulate == 1, "train.accumulate", self.train.accumulate, "of 1"),
            (self.train.precision == "fp32", "train.precision", self.train.precision, "of fp32"),
            (size % count == 0, "train.batch_size", size, "that all workers can share evenly"),
        ):
            way_out = f"Or simulate none (sync.workers = {count}): --sync.workers 0, under torchrun."
            faults.need(fits, name, value, allowed, way_out)


class LocalClassifier(Classifier):
    """A backbone, whose batch norms use each worker's own statistics, and a linear head, trained with cross-entropy."""

    def __init__(self, config: Config, steps: int) -> None:
        model, side = config.model, config.views.image_size
        if model.arch == "mlp":
            super().__init__(config, MLP(image_size=side, width=model.width))
        else:
            super().__init__(config, batch_norm.separate(backbones.build(model, image_size=side)))


def fit(given: loop.Training, folder: RunFolder) -> Traffic:
    """Trains with one worker per process, or with ``sync.workers`` simulated workers.

    Raises: ``ConfigError`` for simulated workers in a run of several processes, and for a batch of one image per
    process with batch norms, which cannot compute statistics from it; else as :func:`loop.fit`.
    """
    workers, world = given.sync.workers, given.world
    if not workers:
        _need_statistics(given.method, given.settings, world)
        return loop.fit(given, folder)
    if world.size > 1:
        raise ConfigError(
            f"sync.workers = {workers} simulates workers in one process, and this is one of {world.size}. Use "
            "--sync.workers 0, where each process is a worker, or start without torchrun."
        )
    return simulated.fit(given, folder, workers)


def _need_statistics(method: LocalClassifier, train: TrainConfig, world: World) -> None:
    if train.batch_size // train.accumulate != world.size:  # more than one image per process
        return
    trial, side = copy.deepcopy(method).to("meta").train(), method.config.views.image_size
    try:
        trial.classify(torch.empty(1, 3, side, side, device="meta"))
    except ValueError:  # from torch's batch norm, of one value per channel
        least = 2 * world.size * train.accumulate
        raise ConfigError(
            f"train.batch_size = {train.batch_size} leaves each of {world.size} processes one image at a time, and its own "
            f"batch norm cannot take statistics of one. Use a batch of at least {least}, or fewer processes."
        ) from None


# Digits at 8 pixels with four simulated workers of 16 images each (4 x 16 = 64), in a few seconds of one CPU core.
_TOY = Config(
    data=DataConfig(name="digits", image_size=8),
    views=OneView(image_size=8, global_scale=(1.0, 1.0), flip=0.0, normalize="grey"),
    model=ModelConfig(arch="mlp", classes=10),
    optim=replace(
        Config().optim,
        lr=0.1,
        lr_start=0.0,
        lr_drops=(),
        warmup_epochs=0.0,
        weight_decay=0.0,
        weight_decay_final=0.0,
    ),
    sync=Agreement(name="local_sgd", period=16, workers=4),
    train=TrainConfig(epochs=None, steps=192, batch_size=64, threads=1, device="cpu", checkpoint_every=96),
    eval=ClassEval(baselines="all"),
)


# ImageNet as in the SlowMo paper (from its text): ResNet-50, batches of 8,192 images, 90 epochs of which 5 are warm-up,
# the learning rate divided by 10 after 30, 60 and 80 epochs, Nesterov momentum that is set to zero when weights are
# averaged, period 12 for local SGD, slow learning rate 1. The paper's text does not give the peak learning rate, the
# weight decay, or whether biases and norms decay: here these are the usual values for the task. The paper used 32 nodes
# with 8 GPUs each; the chapter's commands start 32 workers. We could not read the tables of Ortiz et al.
_AVERAGED = Agreement(name="local_sgd", period=12, buffers="reset")
_PAPER = {
    "resnet50_imagenet": Config(),
    "resnet50_imagenet_local": Config(sync=_AVERAGED),
    # Synchronous for a third of the run, which is our choice: 90 epochs are about 90 x 156 = 14,040 steps, 14,040 / 3 =
    # 4,680.
    "resnet50_imagenet_post_local": Config(sync=replace(_AVERAGED, name="post_local_sgd", start=4680)),
    # The paper tunes the slow momentum in each case and calls 0.4 to 0.8 usual; the middle of this range is our choice.
    "resnet50_imagenet_slowmo": Config(sync=replace(_AVERAGED, name="slowmo", momentum=0.6)),
}

PRESETS: dict[str, Config] = {
    "toy": _TOY,
    # Larger digits, a wider network and eight workers with slow momentum; `recipes cook local_sgd` stores the result.
    "simmer": replace(
        _TOY,
        data=replace(_TOY.data, image_size=16, train_size=12000),
        views=replace(_TOY.views, image_size=16, global_scale=(0.7, 1.0)),
        model=replace(_TOY.model, width=256),
        sync=Agreement(name="slowmo", period=16, momentum=0.3, workers=8),
        train=replace(_TOY.train, steps=3000, batch_size=128, checkpoint_every=500),
    ),
    # CIFAR-10 in about an hour of one core: two simulated workers; or start two processes with --sync.workers 0.
    "laptop": Config(
        data=DataConfig(name="cifar10", image_size=32),
        views=OneView(image_size=32, global_scale=(0.5, 1.0)),
        model=ModelConfig(arch="vit_nano", patch_size=8, stem="patch", classes=10),
        optim=replace(
            _TOY.optim, name="adamw", lr=1e-3, warmup_epochs=2.0, weight_decay=0.05, weight_decay_final=0.05, clip=1.0
        ),
        sync=Agreement(name="local_sgd", period=16, workers=2),
        train=TrainConfig(epochs=None, steps=8000, batch_size=256, checkpoint_every=500),
        eval=ClassEval(baselines="all"),
    ),
    **_PAPER,
}


RECIPE = Recipe(
    name="local_sgd",
    config=Config,
    presets=PRESETS,
    method=LocalClassifier,
    load=class_scores.load,
    fit=fit,
    score=class_scores.score,
    probes=("accuracy", *PROBES),
    simulated_workers=lambda config: config.sync.workers,
)
