# SPDX-License-Identifier: Apache-2.0
"""ConViT: a Vision Transformer that starts as a convolution and may leave it.

d'Ascoli, Touvron, Leavitt, Morcos, Biroli, Sagun, "ConViT: Improving Vision Transformers with Soft Convolutional
Inductive Biases", ICML 2021, arXiv 2103.10697. Chapter: ``notebooks/convit.py``.

1. A Vision Transformer knows nothing of neighbours and needs many images to find out; a convolution knows nothing else.
2. A layer of gated positional self-attention mixes two attentions: to content, and to relative positions.
3. At the start each head looks at one neighbour, so that the layer is a soft convolution.
4. A gate per head says how much each attention counts. It is learned, so that a head may leave its neighbourhood.
5. The last blocks are plain self-attention, and the class token enters before them.

The network is trained with labels, by DeiT's recipe. It is a backbone for every other recipe too: ``model.arch convit_small``.
"""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from recipes_lib.config import PROBES, DataConfig, OptimConfig, SyncConfig, TrainConfig
from recipes_lib.config.views import StrongView
from recipes_lib.data.load import Splits
from recipes_lib.errors import Faults
from recipes_lib.evaluation import locality
from recipes_lib.evaluation.features import Features, read_chunks, some
from recipes_lib.models import backbones
from recipes_lib.models.convit import ConViT
from recipes_lib.models.vit import VisionTransformer
from recipes_lib.pretraining import class_scores
from recipes_lib.pretraining.class_scores import ClassEval
from recipes_lib.pretraining.classify import ClassLoss, MixingClassifier
from recipes_lib.pretraining.recipe import Recipe
from recipes_lib.views.multicrop import eval_view

ANALYSED_IMAGES = 256
"""Number of test images over which the attention maps of the diagnostics are averaged."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig(backbones.BackboneConfig):
    """The classifier; any backbone, by default ConViT-S. The last four fields are for the paper's ablations and for short runs."""

    arch: backbones.Arch = "convit_small"
    stem: backbones.Stem = "patch"
    drop_path: float = 0.1
    classes: int = 1000
    """Number of classes, at least 2."""
    local_init: bool = True
    """Whether a ConViT's heads start at neighbours of the query; otherwise their positions are drawn at random."""
    gate_init: float = 1.0
    """Logit of a ConViT's gates at the start: 1 gives positions a share of 0.73; 0 of one half."""
    fixed: Literal["none", "gate", "attention"] = "none"
    """What a ConViT's first blocks do not learn. gate: the gates; attention: gates, positions, queries and keys, so that
    only values and outputs are learned."""
    gate_lr_scale: float = 1.0
    """Factor, above 0, on the learning rate of a ConViT's gates. The paper's runs have hundreds of thousands of steps in
    which a gate can move; a run of some hundred steps needs a larger rate."""

    def check(self, faults: Faults) -> None:
        """Adds every fault of this group to ``faults``."""
        super().check(faults)
        faults.need(self.classes >= 2, "model.classes", self.classes, "of at least 2")
        faults.need(self.gate_lr_scale > 0, "model.gate_lr_scale", self.gate_lr_scale, "above 0")
        if not self.arch.startswith("convit"):
            for name, only in (("local_init", True), ("gate_init", 1.0), ("fixed", "none"), ("gate_lr_scale", 1.0)):
                value = getattr(self, name)
                faults.need(value == only, f"model.{name}", value, f"of {only} with {self.arch}", "Choose a convit.")


@dataclass(frozen=True, kw_only=True)
class Config:
    """ConViT's config; the defaults are ConViT-S on ImageNet, with DeiT's training recipe."""

    data: DataConfig = field(default_factory=lambda: DataConfig(repeats=3))
    views: StrongView = field(default_factory=StrongView)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: ClassLoss = field(default_factory=ClassLoss)
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(
            lr=1e-3,  # 5e-4 x 1,024 / 512
            lr_start=1e-6,
            lr_final=1e-5,
            warmup_epochs=5.0,
            weight_decay=0.05,
            weight_decay_final=0.05,
            stretch=1.0,
            first_count=0,
            clip=None,
        )
    )
    sync: SyncConfig = field(default_factory=SyncConfig)
    train: TrainConfig = field(default_factory=lambda: TrainConfig(epochs=300.0, batch_size=1024))
    eval: ClassEval = field(default_factory=ClassEval)

    def validate(self) -> None:
        """Raises ``ConfigError`` with a line for each fault."""
        faults = Faults()
        for group in (self.data, self.views, self.model, self.loss, self.optim, self.sync, self.train, self.eval):
            group.check(faults)
        sides = {"data.image_size": self.data.image_size, "views.image_size": self.views.image_size}
        self.model.check_sides(faults, sides)
        faults.raise_any()


class ConViTClassifier(MixingClassifier):
    """A ConViT (or any other backbone) with a linear head, trained by DeiT's recipe."""

    def __init__(self, config: Config, steps: int) -> None:
        super().__init__(config, backbones.build(config.model, image_size=config.views.image_size))

    def forward(self, views: dict[str, Tensor]) -> dict[str, Tensor]:
        """The loss of one micro-batch, its accuracy in [0, 1], and the mean gate of each block with GPSA."""
        return super().forward(views) | _gates(self.backbone)

    def param_groups(self) -> list[dict[str, Any]]:
        """The optimiser's groups: weights decay; biases, norms, gates, class tokens and tables of positions do not."""
        weights, spared, gates = [], [], []
        for name, parameter in self.named_parameters():
            own = name.rpartition(".")[2]
            if not parameter.requires_grad:
                continue
            if own == "gating_param":
                gates.append(parameter)
            elif parameter.ndim == 1 or own in ("pos_embed", "cls_token", "reg_token"):
                spared.append(parameter)
            else:
                weights.append(parameter)
        scale = self.config.model.gate_lr_scale
        groups: list[dict[str, Any]] = [
            {"params": weights, "decays": True},
            {"params": spared, "decays": False},
            {"params": gates, "decays": False, "lr_scale": scale},
        ]
        return [group for group in groups if group["params"]]


def _gates(backbone: nn.Module) -> dict[str, Tensor]:
    """The mean gate of each block with GPSA, by name: ``gate_1``, ...; none of a backbone without GPSA."""
    if not isinstance(backbone, ConViT) or backbone.gpsa_layers == 0:
        return {}
    shares = locality.gates(backbone).mean(dim=1)
    return {f"gate_{block}": share for block, share in enumerate(shares, start=1)}


@torch.no_grad()
def diagnostics(
    method: ConViTClassifier, features: tuple[Features, Features] | None, splits: Splits
) -> dict[str, float]:
    """The locality of each block's attention, on test images: ``distance_1``, ... and, with GPSA, ``gate_1``, ...

    ``distance_K``: the mean distance in patches between a patch and what it attends to, in block K, over heads.
    ``gate_K``: the mean share of attention that goes to positions. A backbone without attention has none of them.
    """
    config, backbone = method.config, method.eval().backbone
    if not isinstance(backbone, VisionTransformer | ConViT):
        return {}
    device = next(method.parameters()).device
    images = some(splits.test, ANALYSED_IMAGES)
    chunks = read_chunks(images, config.data.image_size, 64, config.data.workers, config.views.resize)
    views = (
        eval_view(chunk.to(device), config.data.image_size, config.views.normalize, config.views.resize)
        for chunk in chunks
    )
    found = locality.non_localities(backbone, views).mean(dim=1)
    numbers = {f"distance_{block}": value for block, value in enumerate(found.tolist(), start=1)}
    return numbers | {name: float(share) for name, share in _gates(backbone).items()}


_UNMIXED = ClassLoss(label_smoothing=0.0, mixup=0.0, cutmix=0.0)
_SMALL_OPTIM = OptimConfig(
    lr=3e-3,
    lr_start=0.0,
    lr_final=0.0,
    warmup_epochs=0.0,
    warmup_steps=15,
    weight_decay=1e-4,
    weight_decay_final=1e-4,
    stretch=1.0,
    first_count=0,
    clip=3.0,
)

# Patterns of 8x8 pixels, each pixel a patch: only neighbours tell the class. 20 seconds of one core.
_TOY = Config(
    data=DataConfig(name="neighbour_pairs", image_size=8, train_size=1000, test_size=500),
    views=StrongView(
        image_size=8, global_scale=(1.0, 1.0), flip=0.0, rand_augment=None, erase=0.0, normalize="imagenet"
    ),
    model=ModelConfig(arch="convit_pico", patch_size=1, drop_path=0.0, locality_strength=2.0, classes=4),
    loss=_UNMIXED,
    optim=_SMALL_OPTIM,
    train=TrainConfig(epochs=None, steps=150, batch_size=48, threads=1, device="cpu", checkpoint_every=75),
    eval=ClassEval(baselines="all"),
)

_SMALL = Config()
_TINY = replace(_SMALL, model=ModelConfig(arch="convit_tiny"))
_BASE = replace(_SMALL, model=ModelConfig(arch="convit_base"))
# the larger heads: 4e-4 x 512 / 512
_PLUS = replace(_SMALL, optim=replace(_SMALL.optim, lr=4e-4), train=replace(_SMALL.train, batch_size=512))
_DEIT = replace(_SMALL, model=ModelConfig(arch="vit_small"))


def _share(config: Config, share: float) -> Config:
    """The same run on a share of each class, with so many more epochs that it has as many steps, as in the paper."""
    return replace(
        config,
        data=replace(config.data, share=share),
        train=replace(config.train, epochs=config.train.epochs / share),
    )


# DeiT's recipe for ImageNet, which the paper leaves as it is: 300 epochs, batches of 1,024, learning rate 5e-4 per 512
# images, warm-up of 5 epochs from 1e-6, weight decay 0.05 except on biases, norms, gates, positions and class token, no
# clipping. DeiT's colour jitter has no effect beside RandAugment, and its 10 cool-down epochs lie after the last epoch.
# Differs: the learning rate changes at every step and not once an epoch, and its cosine begins after the warm-up.
_PAPER = {
    "deit_small_imagenet_10": _share(_DEIT, 0.1),
    "small_imagenet_10": _share(_SMALL, 0.1),
    "deit_small_imagenet": _DEIT,
    "tiny_imagenet": _TINY,
    "small_imagenet": _SMALL,
    "base_imagenet": _BASE,
    "tiny_plus_imagenet": replace(_PLUS, model=ModelConfig(arch="convit_tiny_plus")),
    "small_plus_imagenet": replace(_PLUS, model=ModelConfig(arch="convit_small_plus")),
    "base_plus_imagenet": replace(_PLUS, model=ModelConfig(arch="convit_base_plus")),
}

PRESETS: dict[str, Config] = {
    "toy": _TOY,
    # Four digits on a canvas, of which the brightest counts: this needs a comparison across the image. The gates have 30 times
    # the network's rate, so that they move in so few steps. Seven minutes of one core.
    "simmer": replace(
        _TOY,
        data=DataConfig(name="four_digits", image_size=32, train_size=5000, test_size=1000),
        views=replace(_TOY.views, image_size=32),
        model=ModelConfig(arch="convit_pico", patch_size=4, drop_path=0.0, classes=10, gate_lr_scale=30.0),
        optim=replace(_SMALL_OPTIM, lr=1e-3),
        train=replace(_TOY.train, steps=3000, batch_size=64, checkpoint_every=500),
    ),
    # CIFAR-10 with all of DeiT's augmentation, about an hour of a laptop.
    "laptop": replace(
        _TOY,
        data=DataConfig(name="cifar10", image_size=32, repeats=3),
        views=StrongView(image_size=32),
        model=ModelConfig(arch="convit_nano", patch_size=4, drop_path=0.1, classes=10),
        loss=ClassLoss(),
        optim=replace(_SMALL.optim, lr=1e-3, warmup_epochs=5.0, clip=1.0),
        train=TrainConfig(epochs=None, steps=10_000, batch_size=128, checkpoint_every=500),
    ),
    **_PAPER,
}


RECIPE = Recipe(
    name="convit",
    config=Config,
    presets=PRESETS,
    method=ConViTClassifier,
    load=class_scores.load,
    score=class_scores.score,
    probes=("accuracy", *PROBES),
    diagnostics=diagnostics,
)
