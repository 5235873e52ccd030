# SPDX-License-Identifier: Apache-2.0
"""Local SGD: workers that step alone and average their weights every so often, and the slow momentum that may mend it.

Ortiz, Frankle, Rabbat, Morcos, Ballas, "Trade-offs of Local SGD at Scale: An Empirical Study", 2021, arXiv 2110.08133;
Wang, Tantia, Ballas, Rabbat, "SlowMo: Improving Communication-Efficient Distributed SGD with Slow Momentum", ICLR 2020,
arXiv 1910.00643. Chapter: ``notebooks/local_sgd.py``.

1. Training in parallel averages the workers' gradients at every step: the network carries the whole model each time.
2. Local SGD lets each worker take H steps alone, then averages the weights: H times fewer bytes.
3. Meanwhile the workers drift apart; their mean is no longer what synchronous steps would have reached.
4. Post-local SGD begins synchronously; SlowMo takes what the mean did in a round as a gradient for one more momentum.

How workers agree is ``sync``, which every recipe has. What is trained here is a plain classifier, as in the study. With
``sync.workers`` one process holds several workers, and takes the steps of as many processes under torchrun.
"""

import copy
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recipes_lib.config import CLASS_PROBES, DataConfig, OptimConfig, SyncConfig, TrainConfig
from recipes_lib.config.views import ViewsConfig
from recipes_lib.data.loader import Batch, Crop
from recipes_lib.distributed import batch_norm
from recipes_lib.distributed.sync import Traffic
from recipes_lib.distributed.world import World
from recipes_lib.errors import ConfigError, Faults
from recipes_lib.models import backbones
from recipes_lib.models.mlp import MLP
from recipes_lib.pretraining import class_scores
from recipes_lib.pretraining.class_scores import ClassEval
from recipes_lib.pretraining.recipe import Method, Recipe
from recipes_lib.recipes.local_sgd import simulated
from recipes_lib.training import loop
from recipes_lib.training.folder import RunFolder
from recipes_lib.views.multicrop import MultiCrop


@dataclass(frozen=True, kw_only=True)
class OneView(ViewsConfig):
    """The one view of each image that the classifier learns from. Defaults: crop and mirror, as usual for ImageNet."""

    global_views: int = 0
    """No view but the one that is classified, which ViewsConfig calls the target's."""
    global_scale: tuple[float, float] = (0.08, 1.0)
    """Range of the crop's share of the image's area."""
    local_views: int = 0
    jitter: float = 0.0
    grayscale: float = 0.0
    blur: float = 0.0

    def check_anchors(self, faults: Faults) -> None:
        """Notes in ``faults`` a second view, which nothing would look at."""
        for name in ("global_views", "local_views"):
            faults.need(getattr(self, name) == 0, f"views.{name}", getattr(self, name), "of 0: one view is classified")


@dataclass(frozen=True, kw_only=True)
class ModelConfig(backbones.BackboneConfig):
    """The classifier. Batch norms have each worker's own statistics: shared ones would be sent at every step."""

    arch: Literal["mlp", backbones.Arch] = "resnet50"
    """mlp: two hidden layers on the brightness of the pixels, for small images; it and the vits can be simulated."""
    width: int = 64
    """Units of a hidden layer; ``mlp`` only."""
    classes: int = 1000
    """Classes that the head tells apart."""

    def check(self, faults: Faults) -> None:
        """Adds every fault of this group to ``faults``."""
        super().check(faults)
        faults.need(self.width >= 1, "model.width", self.width, "of at least 1")
        faults.need(self.classes >= 2, "model.classes", self.classes, "of at least 2")


@dataclass(frozen=True, kw_only=True)
class Agreement(SyncConfig):
    """How the workers agree, and whether they are processes or simulated in one."""

    workers: int = 0
    """0: each process that torchrun starts is a worker. k of at least 1: this one process simulates k workers."""

    def check(self, faults: Faults) -> None:
        """Adds every fault of this group to ``faults``."""
        super().check(faults)
        faults.need(self.workers >= 0, "sync.workers", self.workers, "of at least 0", "0 leaves it to torchrun.")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Local SGD's config; the defaults are ResNet-50 on ImageNet in synchronous steps."""

    data: DataConfig = field(default_factory=DataConfig)
    views: OneView = field(default_factory=OneView)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(
            name="sgd",
            lr=3.2,  # 0.1 for 256 images, scaled with the batch
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
        """Notes in ``faults`` what workers stacked in one process cannot do."""
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


class Classifier(Method):
    """A backbone and a linear head, under cross-entropy."""

    def __init__(self, config: Config, steps: int) -> None:
        super().__init__()
        self.config = config
        model, side = config.model, config.views.image_size
        if model.arch == "mlp":
            self.backbone = MLP(image_size=side, width=model.width)
        else:
            self.backbone = batch_norm.separate(backbones.build(model, image_size=side))
        self.head = nn.Linear(self.backbone.num_features, model.classes)
        self._crop = MultiCrop(config.views, config.train.seed)

    @property
    def crop_one(self) -> Crop:
        """Cuts the view of one image file in a loader's worker."""
        return self._crop.crop_one

    def views(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """The view of each image, float32 [batch, 3, side, side], and its class, int64 [batch]."""
        return {"images": self._crop(batch)[0], "labels": batch.labels}

    def classify(self, images: Tensor) -> Tensor:
        """[batch, 3, side, side] -> logits [batch, classes]"""
        return self.head(self.backbone(images))

    def forward(self, views: dict[str, Tensor]) -> dict[str, Tensor]:
        """The loss of one micro-batch, and the share that is right; the shapes are those of :meth:`views`."""
        logits, labels = self.classify(views["images"]), views["labels"]
        right = (logits.detach().argmax(dim=1) == labels).float().mean()
        return {"loss": F.cross_entropy(logits.float(), labels), "accuracy": right}


def fit(given: loop.Training, folder: RunFolder) -> Traffic:
    """Trains by processes or by simulated workers, as ``sync.workers`` says.

    Raises: ``ConfigError`` for simulated workers in one of several processes, and for one image per process where a batch
    norm of its own has no statistics of it; else as :func:`loop.fit`.
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


def _need_statistics(method: Classifier, train: TrainConfig, world: World) -> None:
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


# Digits at 8 pixels, four simulated workers of 16 images each. A few seconds of one core.
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


# ImageNet as the SlowMo paper trains it (read in its text): ResNet-50, batches of 8,192 images, 90 epochs, 5 of them
# warm-up, a tenth of the learning rate after 30, 60 and 80, Nesterov momentum that is zeroed when weights are averaged, period
# 12 for local SGD, slow learning rate 1. Peak rate, weight decay and no decay of biases and norms are usual for this task and
# were not read there. Its 32 nodes had 8 GPUs each; the commands of the chapter start 32 workers. The tables of
# Ortiz et al. could not be read.
_AVERAGED = Agreement(name="local_sgd", period=12, buffers="reset")
_PAPER = {
    "resnet50_imagenet": Config(),
    "resnet50_imagenet_local": Config(sync=_AVERAGED),
    # Synchronous for a third of the run: our choice.
    "resnet50_imagenet_post_local": Config(sync=replace(_AVERAGED, name="post_local_sgd", start=4680)),
    # The paper tunes the slow momentum in each case and names 0.4 to 0.8 as usual; the middle is our choice.
    "resnet50_imagenet_slowmo": Config(sync=replace(_AVERAGED, name="slowmo", momentum=0.6)),
}

PRESETS: dict[str, Config] = {
    "toy": _TOY,
    # Larger digits and a wider network, eight workers with slow momentum: what `recipes cook local_sgd` stores.
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
    method=Classifier,
    load=class_scores.load,
    fit=fit,
    score=class_scores.score,
    probes=("accuracy", *CLASS_PROBES),
    simulated_workers=lambda config: config.sync.workers,
)
