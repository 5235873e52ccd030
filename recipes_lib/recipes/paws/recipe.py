# SPDX-License-Identifier: Apache-2.0
"""PAWS: two views of an image must resemble the same labelled images, some of which come with every step.

Assran, Caron, Misra, Bojanowski, Joulin, Ballas, Rabbat, "Semi-Supervised Learning of Visual Features by
Non-Parametrically Predicting View Assignments with Support Samples", ICCV 2021, arXiv 2104.13963.
Chapter: ``notebooks/paws.py``.

1. Two large (global) and some small (local) views are cut of each image; most images have no label. Each step also
   draws *supports*: equally many labelled images of each of some classes, with one view each.
2. A view's prediction is the mean of the supports' labels, weighted by the similarity of its embedding to theirs.
3. The target of a large view is the sharpened prediction of the other large view, without gradient. The target of a
   small view is the mean of both large views' targets.
4. The mean sharpened prediction of all views is pushed towards uniform (ME-MAX), so that no class takes all images.
5. One network embeds all views. There is no moving average of it, no classifier and no negative pair. Gradient also
   flows through the supports.
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
    """Multi-crop views. The defaults are the paper's, with colour jitter of strength 1: 0.8, 0.8, 0.8 and 0.2."""

    global_views: int = 1
    """Always 1: PAWS has two large views, of which the first, like MSN's target view, is not counted here."""
    global_scale: tuple[float, float] = (0.14, 1.0)
    """Smallest and largest area of a large crop, as a share of the image's area;
    without small views the paper uses 0.08 to 1."""
    local_views: int = 6
    """Number of small views."""
    local_scale: tuple[float, float] = (0.05, 0.14)
    """Smallest and largest area of a small crop, as a share of the image's area."""
    brightness: float = 0.8
    """Strength of the brightness jitter, at least 0: the factor is drawn between 1 - strength and 1 + strength."""
    contrast: float = 0.8
    """Strength of the contrast jitter, at least 0: the factor is drawn between 1 - strength and 1 + strength."""
    saturation: float = 0.8
    """Strength of the saturation jitter, at least 0: the factor is drawn between 1 - strength and 1 + strength."""
    hue: float = 0.2
    """Largest rotation of the hue in either direction, in full circles, in [0, 0.5]."""

    def check(self, faults: Faults) -> None:
        """Adds every fault of this group to ``faults``."""
        super().check(faults)
        faults.need(
            self.global_views == 1, "views.global_views", self.global_views, "of 1", "PAWS has two large views."
        )


@dataclass(frozen=True, kw_only=True)
class ModelConfig(backbones.BackboneConfig):
    """The network: a backbone, a projection head, and a prediction head that only the anchor branch uses."""

    hidden: int = 2048
    """Width of the projection head's two hidden layers, at least 2."""
    dim: int = 2048
    """Dimension of the embeddings, at least 2; with ``predictor`` a multiple of 4."""
    predictor: bool = True
    """Whether anchors pass through a prediction head; the paper's CIFAR-10 runs have none.
    It is not built for ``loss.objective`` simclr, which would leave it untrained for the probe ``snn``."""

    def check(self, faults: Faults) -> None:
        """Adds every fault of this group to ``faults``."""
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
    """The objective, its temperatures and weights. Greek letters and T are the paper's symbols."""

    objective: Literal["paws", "simclr"] = "paws"
    """paws: the method. simclr: a control without labels, with the same network and large views;
    of the other fields of ``loss`` it uses only ``temperature``."""
    temperature: float = 0.1
    """Temperature tau of the similarities to the supports, above 0."""
    sharpen_temperature: float = 0.25
    """Sharpening temperature T, in (0, 1]: the target is raised to the power 1/T and normalised again.
    1: no sharpening."""
    smoothing: float = 0.1
    """Share of a support's label that is spread over all classes (label smoothing), in [0, 1)."""
    me_max_weight: float = 1.0
    """Weight of the mean-entropy maximisation, at least 0; the paper uses 1."""

    def check(self, faults: Faults) -> None:
        """Adds every fault of this group to ``faults``."""
        faults.need(self.temperature > 0, "loss.temperature", self.temperature, "above 0", "The paper uses 0.1.")
        sharpen = self.sharpen_temperature
        faults.need(0 < sharpen <= 1, "loss.sharpen_temperature", sharpen, "in (0, 1]", "The paper uses 0.25.")
        faults.need(0 <= self.smoothing < 1, "loss.smoothing", self.smoothing, "in [0, 1)", "The paper uses 0.1.")
        faults.need(self.me_max_weight >= 0, "loss.me_max_weight", self.me_max_weight, "of at least 0")


# The paper's optimiser. Momentum 0.9 and trust coefficient 0.001 are defaults of our LARS; gradients are not clipped.
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
    """One network for anchors, targets and supports; ``forward`` computes the paper's loss."""

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
        """The part of the projection head that the paper's fine-tuning keeps: first linear layer, norm, activation."""
        return nn.Sequential(self.projection.fc1, self.projection.bn1, nn.ReLU())

    @property
    def embedder(self) -> nn.Module:
        """Both heads, which map the backbone's features to the embeddings of :meth:`embed`."""
        return nn.Sequential(self.projection, self.predictor)

    @property
    def crop_one(self) -> Crop:
        """Cuts the views of one image file in a loader's worker process."""
        return self._crop.crop_one

    def views(self, batch: Batch, step: int) -> dict[str, object]:
        """Cuts the views of a batch and its support, drawn from ``(seed, epoch, index)`` and ``(seed, row, position)``.

        ``large`` [2 * batch, 3, side, side] and ``small`` [V * batch, 3, side, side] (or ``None``), both view-major;
        ``support`` [rows, 3, side, side] with its smoothed ``labels`` [rows, classes].
        """
        config, columns = self.config, batch.support.labels
        views = self._crop(batch)
        supports = few_labels.support_crop(config.data, config.views, config.train.seed)(batch.support)
        # the largest number over all ranks, because a rank may have images of some of the classes only
        count = config.data.support_classes or int(collectives.all_gather(columns).max()) + 1
        return {
            "large": torch.cat(views[:2]),
            "small": torch.cat(views[2:]) if views[2:] else None,
            "support": torch.cat(supports),
            "labels": snn.support_labels(columns.repeat(len(supports)), count, config.loss.smoothing),
        }

    def forward(self, views: dict[str, Tensor | None]) -> dict[str, Tensor]:
        """The loss of one micro-batch and its parts. ``views`` is the output of :meth:`views`."""
        rows = len(views["support"])
        # supports and large views in one call, so that batch statistics are over both; small views have their own
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
        """The embeddings that the nearest-neighbour classifier compares: [batch, features] -> [batch, dim]."""
        return self.embedder(features)


def cautions(config: Config) -> list[str]:
    """Lines about settings that are allowed but perhaps not intended."""
    if config.model.predictor and config.loss.objective == "simclr":
        return [
            "model.predictor = True has no effect: loss.objective simclr trains no prediction head, so none is built."
        ]
    return []


def hide_labels(config: Config, images: Splits) -> Splits:
    """The same images, but only the chosen few of the training images keep their label."""
    return few_labels.hide_labels(config.data, images, config.train.seed)


def support(config: Config, train: ImageSet | ImageFiles, *, rank: int, world_size: int) -> SupportBatches:
    """Makes the supports of a run: the labelled images that come with each step."""
    seed = config.train.seed
    return few_labels.support(config.data, config.views, train, seed=seed, rank=rank, world_size=world_size)


def diagnostics(method: PAWS, features: tuple[Features, Features], images: Splits) -> dict[str, float]:
    """Statistics of the soft nearest-neighbour classifier on the test images; ``evaluation.snn`` defines them."""
    train, test, known = images.train, images.test, images.train.labels != UNLABELLED
    rows = features[0].embedding[known], train.labels[known], features[1].embedding, test.labels
    return snn_probe.describe(*rows, classes=len(train.class_names), temperature=method.config.loss.temperature)


# Views of 32 pixels, with half the strength of colour jitter.
_HALF = PawsViews(image_size=32, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, grayscale=0.0, blur=0.0)
_CIFAR10 = FewLabels(name="cifar10", image_size=32, support_classes=10)

# Digits at 16 pixels with one label per class, in a minute of one CPU core.
# Not the paper's: AdamW, since LARS is made for batches of thousands of images; no small views, since half of 16 pixels
# shows hardly a stroke; no mirroring, since a mirrored digit is no digit.
_DIGITS = FewLabels(name="digits", image_size=16, train_size=1297, test_size=500, labels_per_class=1)
_SHAPES = replace(_HALF, image_size=16, local_views=0, global_scale=(0.8, 1.0), flip=0.0, jitter=0.0)
_TOY = Config(
    data=replace(_DIGITS, support_classes=None, support_images=4, replacement=True),
    # inverted in half of the views, since the ink may be lighter than its paper
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
    # The toy run with five times the steps.
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
    # The paper's CIFAR-10 run with 4,000 labels on one GPU, as in the released config: CIFAR-10's mean and standard
    # deviation, solarizing with a random threshold, and 30 epochs of fine-tuning with SuNCEt on the labelled images
    # before soft nearest neighbours classify. The error rate after that is 4.0 +- 0.25 % (public leaderboard);
    # second-hand from the paper's appendix C: an accuracy of 96.0 +- 0.2 %. The five published label splits are files
    # of image numbers: --data.labels-per-class None --data.labelled FILE. Without such a file, labels are drawn.
    # Differs: float32 throughout, where the released config uses half precision; and fine-tuning is scored after its
    # last epoch, not after the epoch that is best on the test images.
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
    # The paper's ResNet-50 on 64 GPUs x 64 images. Top-1 accuracy by nearest neighbours / after fine-tuning (official
    # README) after 100, 200 and 300 epochs: with 1 % of the labels 61.5 / 63.8, 63.2 / 66.1 and 64.2 / 66.5; with 10 %
    # 71.0 / 73.9, 71.9 / 75.0 and 73.1 / 75.5.
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
