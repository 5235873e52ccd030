# SPDX-License-Identifier: Apache-2.0
"""Transformed CNNs: a trained convnet becomes attention that computes the same, and learns on from there.

d'Ascoli, Sagun, Biroli, Morcos, "Transformed CNNs: recasting pre-trained convolutional layers with self-attention",
arXiv 2106.05795, 2021. Chapter: ``notebooks/tcnn.py``.

1. A convolution is an attention whose heads each look at one pixel of the kernel.
2. So the last convolutions of a trained network can be replaced by attention that computes the same.
3. A gate per head mixes this attention to positions with attention to content. It starts closed.
4. The network is trained on. Where a comparison across the image helps, the gates open.

The network is trained with labels. It starts from the weights that ``model.init`` names, or from new ones. The same recipe
trains the convnet itself: without ``tcnn_`` in ``model.arch`` nothing is recast.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from recipes_lib.config import PROBES, DataConfig, OptimConfig, SyncConfig, TrainConfig
from recipes_lib.config.views import StrongView
from recipes_lib.data.load import Splits
from recipes_lib.distributed.sync import Traffic
from recipes_lib.errors import Faults
from recipes_lib.evaluation.features import Features, read_chunks, some
from recipes_lib.models import backbones, tcnn
from recipes_lib.models.recast import recast_layers
from recipes_lib.optim import groups
from recipes_lib.pretraining import class_scores
from recipes_lib.pretraining.class_scores import ClassEval
from recipes_lib.pretraining.classify import ClassLoss, MixingClassifier
from recipes_lib.pretraining.recipe import Recipe
from recipes_lib.recipes.tcnn import start
from recipes_lib.training import checkpoint, loop
from recipes_lib.training.folder import RunFolder
from recipes_lib.views.multicrop import eval_view

ANALYSED_IMAGES = 256
"""Number of test images over which the diagnostics are averaged."""
NEARLY_CLOSED = 3.0
"""The logit of a gate of 0.95, from which on a layer is much the same as its convolution."""

Arch = Literal[
    "convnet_small",
    "resnet18",
    "resnet50",
    "resnetrs50",
    "tcnn_convnet_small",
    "tcnn_resnet18",
    "tcnn_resnet50",
    "tcnn_resnetrs50",
]


@dataclass(frozen=True, kw_only=True)
class ModelConfig(backbones.BackboneConfig):
    """The classifier: a convnet, or its T-CNN."""

    arch: Arch = "tcnn_resnetrs50"
    gate: Literal["linear", "near"] = "near"
    init: Path | None = None
    """The weights to start from: the run folder of any recipe that trained the same convnet (or the same T-CNN), or a folder of
    weights that ``recipes export`` or timm wrote. A classifier of as many classes is taken over too. None: new weights."""
    classes: int = 1000
    """Number of classes, at least 2."""
    gate_lr_scale: float = 1000.0
    """Factor, above 0, on the learning rate of the gates. A nearly closed gate has a small gradient, and AdamW moves it by about
    one learning rate per step."""

    def check(self, faults: Faults) -> None:
        """Adds every fault of this group to ``faults``."""
        super().check(faults)
        faults.need(self.classes >= 2, "model.classes", self.classes, "of at least 2")
        faults.need(self.gate_lr_scale > 0, "model.gate_lr_scale", self.gate_lr_scale, "above 0")


@dataclass(frozen=True, kw_only=True)
class Config:
    """T-CNN's config; the defaults fine-tune a ResNet-RS-50 on ImageNet, after its last stage became attention."""

    data: DataConfig = field(default_factory=lambda: DataConfig(repeats=3))
    views: StrongView = field(default_factory=StrongView)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: ClassLoss = field(default_factory=ClassLoss)
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(
            lr=1e-4,
            lr_start=1e-6,
            lr_final=1e-6,
            warmup_epochs=5.0,
            weight_decay=0.05,
            weight_decay_final=0.05,
            stretch=1.0,
            first_count=0,
            clip=None,
        )
    )
    sync: SyncConfig = field(default_factory=SyncConfig)
    train: TrainConfig = field(default_factory=lambda: TrainConfig(epochs=50.0, batch_size=1024))
    eval: ClassEval = field(default_factory=ClassEval)

    def validate(self) -> None:
        """Raises ``ConfigError`` with a line for each fault."""
        faults = Faults()
        for group in (self.data, self.views, self.model, self.loss, self.optim, self.sync, self.train, self.eval):
            group.check(faults)
        faults.raise_any()


class TCNNClassifier(MixingClassifier):
    """A convnet or its T-CNN with a linear head, trained with labels."""

    def __init__(self, config: Config, steps: int) -> None:
        super().__init__(config, backbones.build(config.model, image_size=config.views.image_size))

    def forward(self, views: dict[str, Tensor]) -> dict[str, Tensor]:
        """The loss of one micro-batch, its accuracy in [0, 1], and the mean gate of each recast layer."""
        return super().forward(views) | _gates(self.backbone)

    def param_groups(self) -> list[dict[str, Any]]:
        """The optimiser's groups: weights decay; biases, norms, gates and positions do not; gates have a rate of their own."""
        own = tcnn.param_groups(self.backbone, gate_lr_scale=self.config.model.gate_lr_scale)
        elsewhere = [parameter for group in own for parameter in group["params"]]
        return [*groups.decay_groups(self, without=elsewhere), *own]


def fit(given: loop.Training, folder: RunFolder) -> Traffic:
    """Trains as :func:`loop.fit` does, from the weights that ``model.init`` names; a resumed run has them in its checkpoint.

    Raises: as :func:`loop.fit` and :func:`start.take_over`.
    """
    init = given.method.config.model.init
    if init is not None and not checkpoint.newest_step(folder.checkpoints):
        start.take_over(given.method, init, folder.warn)
    return loop.fit(given, folder)


def cautions(config: Config) -> Sequence[str]:
    """A line for a T-CNN that starts as a convolution which has learned nothing."""
    model = config.model
    closed = model.gate == "linear" or model.gate_logit >= NEARLY_CLOSED
    if model.init is None and model.arch.startswith("tcnn") and closed:
        return (
            "model.init is not given, so the convolutions that become attention have not learned anything. Name the run of a "
            "trained convnet, or train a hybrid from scratch with model.gate near, model.gate_logit 1 and "
            "model.locality_strength 1.",
        )
    return ()


def _gates(backbone: nn.Module) -> dict[str, Tensor]:
    """The mean gate of each recast layer, from the first to the last: ``gate_1``, ...; none of a convnet."""
    found = tcnn.gates(backbone).values()
    return {f"gate_{number}": gate.mean() for number, gate in enumerate(found, start=1)}


@torch.no_grad()
def diagnostics(method: TCNNClassifier, features: tuple[Features, Features] | None, splits: Splits) -> dict[str, float]:
    """What the recast layers learned, from the first layer to the last one; empty for a convnet.

    ``gate_K``: the mean gate of layer K; 1 is the convolution. ``distance_K``: the mean distance, in pixels of its feature map,
    between a query and what its content attention looks at, on test images. ``closed_K``: the accuracy on test images with the
    gates of layer K closed, so that it attends to positions alone.
    """
    config, backbone = method.config, method.eval().backbone
    names = [name for name, _ in recast_layers(backbone)]
    if not names:
        return {}
    device = next(method.parameters()).device
    images = some(splits.test, ANALYSED_IMAGES)
    chunks = read_chunks(images, config.data.image_size, ANALYSED_IMAGES, config.data.workers, config.views.resize)
    chunk = next(iter(chunks)).to(device)
    views = eval_view(chunk, config.data.image_size, config.views.normalize, config.views.resize)
    found = {name: float(gate) for name, gate in _gates(backbone).items()}
    distances = tcnn.content_distances(backbone, views)
    found |= {f"distance_{number}": float(distances[name].mean()) for number, name in enumerate(names, start=1)}
    for number, name in enumerate(names, start=1):
        closed = deepcopy(method)
        tcnn.reset_gates(closed.backbone, [name])
        found[f"closed_{number}"] = class_scores.accuracy(closed, config, splits.test)
    return found


# Four digits on a canvas; the class is that of the brightest, so that it takes a comparison across the image. A hybrid is
# trained from scratch, with the start of a ConViT. 40 seconds of one core.
_TOY = Config(
    data=DataConfig(name="four_digits", image_size=32, train_size=5000, test_size=1000),
    views=StrongView(
        image_size=32, global_scale=(1.0, 1.0), flip=0.0, rand_augment=None, erase=0.0, noise=0.03, normalize="imagenet"
    ),
    model=ModelConfig(
        arch="tcnn_convnet_small",
        stem="cifar",
        gate_logit=1.0,
        locality_strength=1.0,
        classes=10,
        gate_lr_scale=10.0,
    ),
    loss=ClassLoss(label_smoothing=0.0, mixup=0.0, cutmix=0.0),
    optim=OptimConfig(
        lr=0.01,
        lr_start=0.0,
        lr_final=0.0,
        warmup_epochs=0.0,
        warmup_steps=20,
        weight_decay=1e-4,
        weight_decay_final=1e-4,
        stretch=1.0,
        first_count=0,
        clip=5.0,
    ),
    train=TrainConfig(epochs=None, steps=150, batch_size=64, threads=1, device="cpu", checkpoint_every=75),
)

# 50 epochs and the network are the paper's. Its text could not be read, so the rest is DeiT's augmentation, a batch of 1,024
# and a small learning rate, and gates that open by up to 0.1 per step.
_FINETUNE = Config()
_HYBRID = replace(
    _FINETUNE,
    model=ModelConfig(gate_logit=1.0, locality_strength=1.0, gate_lr_scale=1.0),
    optim=replace(_FINETUNE.optim, lr=1e-3, lr_final=1e-5),
    train=replace(_FINETUNE.train, epochs=300.0),
)
_PAPER = {
    "cnn_imagenet": replace(_HYBRID, model=ModelConfig(arch="resnetrs50", gate="linear")),
    "cnn_finetune_imagenet": replace(_FINETUNE, model=ModelConfig(arch="resnetrs50", gate="linear")),
    "hybrid_imagenet": _HYBRID,
    "finetune_imagenet": _FINETUNE,
}
_NET = {"stem": "cifar", "classes": 10, "gate_lr_scale": 10.0}

PRESETS: dict[str, Config] = {
    "toy": _TOY,
    # The convnet to start from; a minute of one core.
    "simmer": replace(
        _TOY,
        model=ModelConfig(arch="convnet_small", gate="linear", **_NET),
        train=replace(_TOY.train, steps=400, checkpoint_every=200),
    ),
    # The convnet as attention, trained on; needs --model.init.
    "finetune": replace(
        _TOY,
        model=ModelConfig(arch="tcnn_convnet_small", gate_logit=4.0, **_NET),
        train=replace(_TOY.train, steps=250, checkpoint_every=125),
    ),
    # CIFAR-10 with all of DeiT's augmentation: two hours of a laptop, or minutes of a GPU.
    "laptop": replace(
        _TOY,
        data=DataConfig(name="cifar10", image_size=32, repeats=3),
        views=StrongView(image_size=32),
        model=ModelConfig(
            arch="tcnn_resnet18", gate_logit=1.0, locality_strength=1.0, stem="cifar", classes=10, gate_lr_scale=1.0
        ),
        loss=ClassLoss(),
        optim=replace(_FINETUNE.optim, lr=1e-3, lr_final=1e-5, clip=1.0),
        train=TrainConfig(epochs=None, steps=10_000, batch_size=128, checkpoint_every=500),
    ),
    **_PAPER,
}


RECIPE = Recipe(
    name="tcnn",
    config=Config,
    presets=PRESETS,
    method=TCNNClassifier,
    load=class_scores.load,
    fit=fit,
    score=class_scores.score,
    probes=("accuracy", *PROBES),
    diagnostics=diagnostics,
    cautions=cautions,
)
