# SPDX-License-Identifier: Apache-2.0
"""PAWS: two views of an image must be most like the same labelled images, a few of which come with every step.

Assran, Caron, Misra, Bojanowski, Joulin, Ballas, Rabbat, "Semi-Supervised Learning of Visual Features by
Non-Parametrically Predicting View Assignments with Support Samples", ICCV 2021, arXiv 2104.13963.
Chapter: ``notebooks/paws.py``.

1. Cut two large and some small views of each image, most of which have no label, and one view of each *support*: an
   equal number of labelled images of some classes, drawn anew at every step.
2. A view's prediction is the mean of the supports' labels, weighted by how like them its embedding is.
3. A large view's target is the other one's prediction, sharpened, without gradient; a small one's the mean of both.
4. The mean sharpened prediction of all views is pushed towards uniform (ME-MAX), so that no class takes all images.
5. One network embeds everything; no average of it, no classifier, no negatives. The supports carry gradient too.
"""

from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn

from recipes_lib.config import EvalConfig, OptimConfig, SyncConfig, TrainConfig
from recipes_lib.data.images import UNLABELLED, ImageFiles, ImageSet
from recipes_lib.data.load import Splits
from recipes_lib.data.loader import Batch, Crop
from recipes_lib.data.support import SupportBatches
from recipes_lib.distributed import collectives
from recipes_lib.errors import Faults
from recipes_lib.evaluation import snn as snn_probe
from recipes_lib.evaluation.features import Features
from recipes_lib.models import backbones, heads, layers
from recipes_lib.objectives import snn
from recipes_lib.objectives.contrastive import nt_xent
from recipes_lib.pretraining import few_labels
from recipes_lib.pretraining.few_labels import FewLabels
from recipes_lib.pretraining.recipe import Method, Recipe
from recipes_lib.views.multicrop import MultiCrop, ViewsConfig


@dataclass(frozen=True, kw_only=True)
class PawsViews(ViewsConfig):
    """Multi-crop views. The defaults are the paper's: the colour jitter is of strength 1, that is .8, .8, .8, .2."""

    global_views: int = 1
    """Always 1: PAWS swaps the predictions of two large views, and the first of them is not counted here."""
    global_scale: tuple[float, float] = (0.14, 1.0)
    """Range of a large crop's share of the image's area; without small views the paper uses 0.08 to 1."""
    local_views: int = 6
    """Small views."""
    local_scale: tuple[float, float] = (0.05, 0.14)
    """Range of a small crop's share of the image's area."""
    brightness: float = 0.8
    contrast: float = 0.8
    saturation: float = 0.8
    hue: float = 0.2

    def check(self, faults: Faults) -> None:
        """Notes every fault of this group in ``faults``."""
        super().check(faults)
        faults.need(
            self.global_views == 1, "views.global_views", self.global_views, "of 1", "PAWS has two large views."
        )


@dataclass(frozen=True, kw_only=True)
class ModelConfig(backbones.BackboneConfig):
    """The network: a backbone, a projection head, and a prediction head that the target branch does without."""

    hidden: int = 2048
    """Width of the projection head's two hidden layers."""
    dim: int = 2048
    """Dimension of the embeddings."""
    predictor: bool = True
    """Whether anchors pass through a prediction head; the paper's CIFAR-10 runs have none. Built with ``loss.objective``
    paws only: SimCLR would not train it, and ``snn`` would score through a random one."""

    def check(self, faults: Faults) -> None:
        """Notes every fault of this group in ``faults``."""
        super().check(faults)
        if self.has_blocks:
            layers.refuse_equal_features(faults, self)
        for name in ("hidden", "dim"):
            faults.need(getattr(self, name) >= 2, f"model.{name}", getattr(self, name), "of at least 2")
        if self.predictor:
            faults.need(
                self.dim % 4 == 0, "model.dim", self.dim, "that is a multiple of 4 for the predictor's bottleneck"
            )


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The objective; symbols as in the paper."""

    objective: Literal["paws", "simclr"] = "paws"
    """simclr: a control that learns from no label, on the same network and large views; of what follows it uses
    ``temperature`` alone."""
    temperature: float = 0.1
    """tau, of the similarities to the supports."""
    sharpen_temperature: float = 0.25
    """T in (0, 1]: the target is raised to the power 1/T and normalised again; 1 leaves it as it is."""
    smoothing: float = 0.1
    """Share of a support's label that is spread over all classes, in [0, 1)."""
    me_max_weight: float = 1.0
    """Weight of the mean-entropy maximisation; the paper uses 1."""

    def check(self, faults: Faults) -> None:
        """Notes every fault of this group in ``faults``."""
        faults.need(self.temperature > 0, "loss.temperature", self.temperature, "above 0", "The paper uses 0.1.")
        sharpen = self.sharpen_temperature
        faults.need(0 < sharpen <= 1, "loss.sharpen_temperature", sharpen, "in (0, 1]", "The paper uses 0.25.")
        faults.need(0 <= self.smoothing < 1, "loss.smoothing", self.smoothing, "in [0, 1)", "The paper uses 0.1.")
        faults.need(self.me_max_weight >= 0, "loss.me_max_weight", self.me_max_weight, "of at least 0")


# Momentum 0.9 and trust coefficient 0.001 are those of our LARS; gradients are not clipped.
_DECAY = {"weight_decay": 1e-6, "weight_decay_final": 1e-6}
_FORM = {"stretch": 1.0, "first_count": 0, "lr_in_momentum": True, "clip": None}
_LARS = OptimConfig(name="lars", lr=6.4, lr_start=0.3, lr_final=0.064, warmup_epochs=10.0, **_DECAY, **_FORM)


@dataclass(frozen=True, kw_only=True)
class Config:
    """PAWS's config; the defaults are the paper's ResNet-50 on ImageNet with 10 % of the labels, 300 epochs."""

    data: FewLabels = field(default_factory=lambda: FewLabels(label_share=0.1))
    views: PawsViews = field(default_factory=PawsViews)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = _LARS
    sync: SyncConfig = field(default_factory=SyncConfig)
    train: TrainConfig = field(default_factory=lambda: TrainConfig(epochs=300.0, batch_size=4096))
    eval: EvalConfig = field(default_factory=lambda: EvalConfig(probes=("snn", "linear")))

    def validate(self) -> None:
        """Raises ``ConfigError`` with a line for each fault."""
        faults = Faults()
        for group in (self.data, self.views, self.model, self.loss, self.optim, self.sync, self.train, self.eval):
            group.check(faults)
        sides = {"views.image_size": self.views.image_size, "data.image_size": self.data.image_size}
        small = {"views.local_size": self.views.local_size} if self.views.local_views else {}
        self.model.check_sides(faults, sides | small)
        faults.raise_any()


class PAWS(Method):
    """One network for anchors, targets and supports; ``forward`` is one evaluation of the paper's loss."""

    def __init__(self, config: Config, steps: int) -> None:
        super().__init__()
        self.config, model = config, config.model
        self.backbone = backbones.build(model, image_size=config.views.image_size)
        self.projection = heads.ProjectionHead(self.backbone.num_features, model.hidden, model.dim, activation="relu")
        trained = model.predictor and config.loss.objective == "paws"
        self.predictor = heads.Predictor(model.dim) if trained else nn.Identity()
        self._crop = MultiCrop(config.views, config.train.seed)

    @property
    def finetune_layer(self) -> nn.Module:
        """What the paper's fine-tuning keeps of the projection head: its first Linear, norm and activation."""
        return nn.Sequential(self.projection.fc1, self.projection.bn1, nn.ReLU())

    @property
    def embedder(self) -> nn.Module:
        """What makes embeddings of the backbone's features: all of the heads, as :meth:`embed` calls them."""
        return nn.Sequential(self.projection, self.predictor)

    @property
    def crop_one(self) -> Crop:
        """Cuts the views of one image file in a loader's worker."""
        return self._crop.crop_one

    def views(self, batch: Batch, step: int) -> dict[str, object]:
        """Cuts the views of a batch and of its support; draws come from ``(seed, epoch, index)``, ``(seed, row, position)``.

        ``large`` [2 * batch, 3, side, side] and ``small`` (or None), both view-major; ``support`` [rows, 3, side, side]
        with their ``labels`` [rows, classes], smoothed.
        """
        config, columns = self.config, batch.support.labels
        views = self._crop(batch)
        supports = few_labels.support_crop(config.data, config.views, config.train.seed)(batch.support)
        # a rank may have some of the classes only
        count = config.data.support_classes or int(collectives.all_gather(columns).max()) + 1
        return {
            "large": torch.cat(views[:2]),
            "small": torch.cat(views[2:]) if views[2:] else None,
            "support": torch.cat(supports),
            "labels": snn.support_labels(columns.repeat(len(supports)), count, config.loss.smoothing),
        }

    def forward(self, views: dict[str, Tensor | None]) -> dict[str, Tensor]:
        """The loss of one micro-batch and its parts; the shapes are those of :meth:`views`."""
        rows = len(views["support"])
        # supports and large views in one call: their batch statistics are those of both; small views have their own
        projected = self.projection(
            self.backbone(torch.cat([views["support"], views["large"]]))
        )  # [S + 2 * batch, dim]
        if self.config.loss.objective == "simclr":
            return nt_xent(*projected[rows:].chunk(2), temperature=self.config.loss.temperature)
        predicted = self.predictor(projected)
        anchors = [predicted[rows:]]  # [2 * batch, dim]
        if views["small"] is not None:
            anchors.append(self.predictor(self.projection(self.backbone(views["small"]))))
        targets = projected.detach()  # the paper's stop-gradient
        loss = self.config.loss
        how = {"temperature": loss.temperature, "sharpen_temperature": loss.sharpen_temperature}
        branches = torch.cat(anchors), targets[rows:], predicted[:rows], targets[:rows]
        return snn.paws_loss(*branches, views["labels"], me_max_weight=loss.me_max_weight, **how)

    def embed(self, features: Tensor) -> Tensor:
        """What the nearest-neighbour classifier compares: [batch, features of the backbone] -> [batch, dim]."""
        return self.embedder(features)


def cautions(config: Config) -> list[str]:
    """What is allowed and yet may not be meant, a line each."""
    if config.model.predictor and config.loss.objective == "simclr":
        return [
            "model.predictor = True has no effect: loss.objective simclr trains no prediction head, so none is built."
        ]
    return []


def hide_labels(config: Config, images: Splits) -> Splits:
    """The images of a run, of which few have labels in training."""
    return few_labels.hide_labels(config.data, images, config.train.seed)


def support(config: Config, train: ImageSet | ImageFiles, *, rank: int, world_size: int) -> SupportBatches:
    """The labelled images that come with each step."""
    seed = config.train.seed
    return few_labels.support(config.data, config.views, train, seed=seed, rank=rank, world_size=world_size)


def diagnostics(method: PAWS, features: tuple[Features, Features], images: Splits) -> dict[str, float]:
    """How the head's nearest-neighbour classifier decides on the test images; what each number means: ``evaluation.snn``."""
    train, test, known = images.train, images.test, images.train.labels != UNLABELLED
    rows = features[0].embedding[known], train.labels[known], features[1].embedding, test.labels
    return snn_probe.describe(*rows, classes=len(train.class_names), temperature=method.config.loss.temperature)


# Views of 32 pixels, with colour jitter of half the strength.
_HALF = PawsViews(image_size=32, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, grayscale=0.0, blur=0.0)
_CIFAR10 = FewLabels(name="cifar10", image_size=32, support_classes=10)

# Digits at 16 pixels, one label per class. A minute of one CPU core.
_DIGITS = FewLabels(name="digits", image_size=16, train_size=1297, test_size=500, labels_per_class=1)
_SHAPES = replace(_HALF, image_size=16, local_views=0, global_scale=(0.8, 1.0), flip=0.0, jitter=0.0)
_TOY = Config(
    data=replace(_DIGITS, support_classes=None, support_images=4, replacement=True),
    # ink may be lighter than its paper
    views=replace(_SHAPES, rotate=10.0, invert=0.5, noise=0.05, normalize="grey"),
    model=ModelConfig(arch="convnet", hidden=256, dim=64, predictor=False),
    optim=OptimConfig(lr=2e-3, lr_start=0.0, lr_final=0.0, warmup_epochs=1.0, weight_decay_final=0.04, stretch=1.0),
    train=TrainConfig(epochs=None, steps=400, batch_size=128, threads=1, device="cpu", checkpoint_every=100),
    eval=EvalConfig(baselines="all", probes=("snn", "linear"), neighbours=10),
)


def _imagenet(share: float, epochs: float) -> Config:
    return Config(data=FewLabels(label_share=share), train=TrainConfig(epochs=epochs, batch_size=4096))


PRESETS: dict[str, Config] = {
    "toy": _TOY,
    # The same for longer.
    "simmer": replace(_TOY, train=replace(_TOY.train, steps=2000, checkpoint_every=500)),
    # CIFAR-10 with 40 labels per class.
    "laptop": replace(
        _TOY,
        data=replace(_CIFAR10, labels_per_class=40, support_images=16),
        views=replace(_HALF, local_views=0, global_scale=(0.5, 1.0), grayscale=0.2),
        model=replace(_TOY.model, dim=128),
        optim=replace(_TOY.optim, warmup_epochs=5.0),
        train=TrainConfig(epochs=None, steps=6000, batch_size=256, checkpoint_every=500),
    ),
    # The paper's CIFAR-10: 4,000 labels, one GPU, as the released config has it: CIFAR's mean and deviation, solarising from a
    # random threshold, and 30 epochs of SuNCEt on the labelled images before soft nearest neighbours classify. That is what
    # 4.0 +- 0.25 % errors are measured after (public leaderboard; the paper's appendix C, second hand: 96.0 +- 0.2 %). The
    # five published label splits are files of image numbers: --data.labels-per-class None --data.labelled FILE; without one,
    # labels are drawn. Differs: float32 throughout, where the released config has half precision; of fine-tuning the last
    # epoch counts, not the one that is best on the test images.
    "wrn28_2_cifar10": Config(
        data=replace(_CIFAR10, labels_per_class=400, support_images=64, support_views=2),
        views=replace(
            _HALF,
            global_scale=(0.75, 1.0),
            local_size=18,
            local_scale=(0.3, 0.75),
            solarize=0.2,
            solarize_threshold=(0.0, 1.0),
            equalize=0.2,
            normalize="cifar10",
        ),
        model=ModelConfig(arch="wide_resnet28_2", stem="cifar", hidden=128, dim=128, predictor=False),
        optim=replace(_LARS, lr=3.2, lr_start=0.8, lr_final=0.032),
        train=TrainConfig(epochs=600.0, batch_size=256),
        eval=EvalConfig(
            probes=("snn", "finetune"),
            finetune_objective="suncet",
            finetune_epochs=30.0,
            finetune_lr=0.1,
            finetune_batch_size=640,
        ),
    ),
    # The paper's ResNet-50: 64 GPUs, 64 images each. Top-1 by nearest neighbours / fine-tuned (official README):
    # 61.5 / 63.8 after 100 epochs with 1 % of the labels, 63.2 / 66.1 after 200, 64.2 / 66.5 after 300; 10 %:
    # 71.0 / 73.9, 71.9 / 75.0, 73.1 / 75.5
    "rn50_imagenet_1pct_100": _imagenet(0.01, 100.0),
    "rn50_imagenet_1pct_200": _imagenet(0.01, 200.0),
    "rn50_imagenet_1pct": _imagenet(0.01, 300.0),
    "rn50_imagenet_10pct_100": _imagenet(0.1, 100.0),
    "rn50_imagenet_10pct_200": _imagenet(0.1, 200.0),
    "rn50_imagenet_10pct": Config(),
}


RECIPE = Recipe(
    name="paws",
    config=Config,
    presets=PRESETS,
    method=PAWS,
    hide_labels=hide_labels,
    support=support,
    needs_labels=True,
    diagnostics=diagnostics,
    cautions=cautions,
)
