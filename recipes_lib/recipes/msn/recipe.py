# SPDX-License-Identifier: Apache-2.0
"""Masked Siamese Networks: a view with patches missing must get the same prototypes as a view with all patches.

Assran, Caron, Misra, Bojanowski, Bordes, Vincent, Joulin, Rabbat, Ballas, "Masked Siamese Networks for
Label-Efficient Learning", ECCV 2022, arXiv 2204.07141. Chapter: ``notebooks/msn.py``.

1. Several views of an image are cut. The *target* view keeps all its patches; the *anchor* views lose some (random
   mask) or are small crops (focal mask). Dropped patches are not replaced, so the anchor's encoder has less to compute.
2. The embeddings of all views are softly assigned to the same learnable prototypes.
3. The target's assignment is sharpened, balanced (Sinkhorn) and passes no gradient; the anchors must predict it.
4. The mean assignment of all anchors is pushed towards uniform (ME-MAX), so that no prototype takes all images.
5. The target encoder is an exponential moving average (EMA) of the anchor encoder; the target is evaluated.
"""

import copy
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from recipes_lib import randomness
from recipes_lib.config import DataConfig, EvalConfig, OptimConfig, SyncConfig, TrainConfig
from recipes_lib.data.images import ImageSet
from recipes_lib.data.load import Splits
from recipes_lib.data.loader import Batch, Crop
from recipes_lib.errors import Faults
from recipes_lib.evaluation import assignments
from recipes_lib.evaluation.features import Features
from recipes_lib.models import backbones, heads, interchange, layers
from recipes_lib.objectives import prototypes
from recipes_lib.optim import groups, schedules
from recipes_lib.pretraining.recipe import Method, Recipe, Teaching
from recipes_lib.views import masking
from recipes_lib.views.multicrop import MultiCrop, ViewsConfig


@dataclass(frozen=True, kw_only=True)
class MSNViews(ViewsConfig):
    """Multi-crop views, and the random mask of the anchor's global views."""

    mask_ratio: float = 0.15
    """Share of a global anchor view's patches that is dropped, in [0, 1). The target and the local views keep all."""
    mask_per_image: bool = True
    """True: each image has its own mask, as in the paper. False: one mask per step, as in the official code."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig(backbones.BackboneConfig):
    """The backbone, its projection head, the prototypes, and the momentum of the target encoder.

    Masks need a Vision Transformer, which can leave out patches; with ``views.mask_ratio`` 0 any backbone will do.
    """

    arch: backbones.Arch = "vit_small"
    stem: backbones.Stem = "patch"
    hidden: int = 2048
    """Width of the projection head's two hidden layers, at least 2."""
    dim: int = 256
    """Dimension of embeddings and prototypes, at least 2."""
    prototypes: int = 1024
    """Number of prototypes, at least 2."""
    ema: float = 0.996
    """Momentum of the target encoder at the first step, in [0, 1]; with 1 the target never moves."""
    ema_final: float = 1.0
    """Momentum at the end of a linear schedule that starts at ``ema`` and lasts ``optim.stretch`` times the run."""

    def check(self, faults: Faults) -> None:
        """Adds every fault of this group to ``faults``."""
        super().check(faults)
        layers.refuse_equal_features(faults, self)
        for name in ("hidden", "dim", "prototypes"):
            faults.need(getattr(self, name) >= 2, f"model.{name}", getattr(self, name), "of at least 2")
        for name in ("ema", "ema_final"):
            faults.need(0 <= getattr(self, name) <= 1, f"model.{name}", getattr(self, name), "in [0, 1]")


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Temperatures and weights of the loss. Greek letters and T are the paper's symbols."""

    temperature: float = 0.1
    """Temperature tau of the anchors' and the targets' assignments, above 0."""
    sharpen_temperature: float = 0.25
    """Sharpening temperature T, in (0, 1]: the target's assignment is raised to the power 1/T and normalised again.
    1: no sharpening."""
    sinkhorn_iterations: int = 3
    """Number of Sinkhorn iterations, which balance the targets over the prototypes; 0: no balancing."""
    me_max_weight: float = 1.0
    """Weight lambda of the mean-entropy maximisation, at least 0."""
    entropy_weight: float = 0.0
    """Weight mu of the mean entropy of the anchors' assignments, at least 0; the official runs log it with weight 0."""

    def check(self, faults: Faults) -> None:
        """Adds every fault of this group to ``faults``."""
        faults.need(self.temperature > 0, "loss.temperature", self.temperature, "above 0", "The paper uses 0.1.")
        sharpen = self.sharpen_temperature
        faults.need(0 < sharpen <= 1, "loss.sharpen_temperature", sharpen, "in (0, 1]", "The paper uses 0.25.")
        faults.need(
            self.sinkhorn_iterations >= 0, "loss.sinkhorn_iterations", self.sinkhorn_iterations, "of at least 0"
        )
        for name in ("me_max_weight", "entropy_weight"):
            faults.need(getattr(self, name) >= 0, f"loss.{name}", getattr(self, name), "of at least 0")


@dataclass(frozen=True, kw_only=True)
class Config:
    """MSN's config; the defaults are the paper's ViT-S/16 on ImageNet."""

    data: DataConfig = field(default_factory=DataConfig)
    views: MSNViews = field(default_factory=MSNViews)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    sync: SyncConfig = field(default_factory=SyncConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)

    def validate(self) -> None:
        """Raises ``ConfigError`` with a line for each fault."""
        faults = Faults()
        self.check(faults)
        faults.raise_any()

    def check(self, faults: Faults) -> None:
        """Adds to ``faults`` every fault of the groups, and of values of two groups that do not fit together."""
        for group in (self.data, self.views, self.model, self.loss, self.optim, self.sync, self.train, self.eval):
            group.check(faults)
        sides = {"views.image_size": self.views.image_size}
        if self.views.local_views > 0:
            sides["views.local_size"] = self.views.local_size
        if self.data.image_size != self.views.image_size:
            sides["data.image_size"] = self.data.image_size  # features are computed at this side
        self.model.check_sides(faults, sides)
        if not self.model.drops_patches:
            fine, hint = self.views.mask_ratio == 0, "Only a vit can leave out patches."
            faults.need(fine, "views.mask_ratio", self.views.mask_ratio, f"of 0 with {self.model.arch}", hint)
            return
        ratio, patches = self.views.mask_ratio, (self.views.image_size // max(self.model.patch_size, 1)) ** 2
        faults.need(0 <= ratio < 1, "views.mask_ratio", ratio, "in [0, 1)", "The paper uses 0.15 to 0.7.")
        if 0 <= ratio < 1 and patches and int(patches * (1 - ratio)) == 0:
            faults.add(
                f"views.mask_ratio = {ratio} leaves no visible patch ({patches} patches, 0 kept). "
                f"Use a value of at most {1 - 1 / patches:.3g}; the paper uses 0.15 to 0.7."
            )


class Encoder(nn.Module):
    """A backbone and its projection head."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.backbone = backbones.build(config.model, image_size=config.views.image_size)
        self.head = heads.ProjectionHead(self.backbone.num_features, config.model.hidden, config.model.dim)

    def forward(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Embeddings of views of one size: [batch, 3, side, side] -> [batch, dim].

        ``keep``: numbers of the patches that are not dropped, int64 [batch, kept]; ``None``: all patches.
        """
        return self.head(self.backbone(images) if keep is None else self.backbone(images, keep))


class MSN(Method):
    """Anchor encoder, target encoder and prototypes; ``forward`` computes the paper's loss."""

    def __init__(self, config: Config, steps: int) -> None:
        super().__init__()
        self.config, self.steps = config, steps
        self.anchor = Encoder(config)
        self.target = copy.deepcopy(self.anchor).requires_grad_(False)
        self.prototypes = heads.Prototypes(config.model.prototypes, config.model.dim)
        self._crop = MultiCrop(config.views, config.train.seed)

    @property
    def backbone(self) -> interchange.Backbone:
        """The target's backbone, which is evaluated and exported."""
        return self.target.backbone

    @property
    def teaching(self) -> Teaching:
        """The target encoder, the anchor encoder, and the momentum of the moving average."""
        return Teaching(self.target, self.anchor, self.config.model.ema)

    @property
    def sinkhorn_prototypes(self) -> int:
        """The number of prototypes that Sinkhorn uses equally often for the targets of a micro-batch; 0 without it."""
        return self.config.model.prototypes if self.config.loss.sinkhorn_iterations else 0

    @property
    def crop_one(self) -> Crop:
        """Cuts the views of one image file in a loader's worker process."""
        return self._crop.crop_one

    def views(self, batch: Batch, step: int) -> dict[str, object]:
        """Cuts the views of a batch and draws their masks, from ``(seed, epoch, index)`` or ``(seed, step)``.

        Shapes, for V views: ``target`` [batch, 3, side, side]; ``global`` and ``local`` [V * batch, 3, side, side],
        view-major, or ``None``; ``keep`` int64 [V * batch, kept] for the global views, or ``None``.
        """
        target, *anchors = self._crop(batch)
        ways = self.config.views
        wide, narrow = anchors[: ways.global_views], anchors[ways.global_views :]
        keep = None
        if ways.mask_ratio > 0 and wide:
            keep = torch.cat([self._keep(batch, view, step) for view in range(len(wide))])
        whole, crops = (torch.cat(views) if views else None for views in (wide, narrow))  # [V * batch, 3, side, side]
        return {"target": target, "global": whole, "local": crops, "keep": keep}

    def _keep(self, batch: Batch, view: int, step: int) -> Tensor:
        ways, seed = self.config.views, self.config.train.seed
        patches = self.backbone.patch_embed.num_patches
        if ways.mask_per_image:
            keys = randomness.sample_keys(seed, batch.epoch, batch.indices)
            return masking.random_keep(patches, ways.mask_ratio, keys=randomness.sample_keys(view, 0, keys))
        generator = randomness.generator(seed, step, f"mask of view {view}")
        shared = masking.random_keep(patches, ways.mask_ratio, generator=generator).to(batch.indices.device)
        return shared.expand(len(batch.indices), -1)

    def forward(self, views: dict[str, Tensor | None]) -> dict[str, Tensor]:
        """The loss of one micro-batch and its parts. ``views`` is the output of :meth:`views`."""
        return self.objective(*self.embeddings(views))

    def embeddings(self, views: dict[str, Tensor | None]) -> tuple[Tensor, Tensor]:
        """Embeddings of the anchor views [V * batch, dim], view-major, and of the target view [batch, dim]."""
        anchors = []  # one encoder call per resolution, so that batch statistics are over views of one resolution
        if views["global"] is not None:
            anchors.append(self.anchor(views["global"], views["keep"]))
        if views["local"] is not None:
            anchors.append(self.anchor(views["local"]))
        with torch.no_grad():  # the paper's stop-gradient
            targets = self.target(views["target"])  # [batch, dim]
        return torch.cat(anchors), targets

    def objective(self, anchors: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """The loss and its parts, from embeddings of anchors [V * batch, dim], view-major, and targets [batch, dim]."""
        loss = self.config.loss
        return prototypes.msn_loss(
            anchors,
            targets,
            self.prototypes.weight,
            temperature=loss.temperature,
            sharpen_temperature=loss.sharpen_temperature,
            sinkhorn_iterations=loss.sinkhorn_iterations,
            me_max_weight=loss.me_max_weight,
            entropy_weight=loss.entropy_weight,
        )

    def param_groups(self) -> list[dict]:
        """The optimiser's groups: weights decay; biases, norms and prototypes do not."""
        return [
            *groups.decay_groups(self.anchor),
            {"params": [self.prototypes.weight], "decays": False},
        ]

    def clipped_parameters(self) -> list[nn.Parameter]:
        """The parameters of the anchor encoder: the prototypes' gradient is not clipped."""
        return list(self.anchor.parameters())

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Moves the target's parameters towards the anchor's; its batch norms keep their own running statistics."""
        model, stretch = self.config.model, self.config.optim.stretch
        momentum = schedules.linear(step, model.ema, model.ema_final, self.steps, stretch=stretch)
        torch._foreach_lerp_(list(self.target.parameters()), list(self.anchor.parameters()), 1 - momentum)


@torch.no_grad()
def diagnostics(method: MSN, features: tuple[Features, Features], images: Splits) -> dict[str, float]:
    """Statistics of the target's assignments of test images to prototypes; ``evaluation.assignments`` defines them."""
    test = images.test
    embeddings = method.target.eval().head(features[1].final.to(method.prototypes.weight.device))
    p = prototypes.assign(embeddings, method.prototypes.weight, method.config.loss.temperature)  # [N, K]
    factors = {} if test.labels is None else {"label": test.labels}
    for ground in ("paper", "table_colour"):  # the background's colour in the digits and in the Pantry
        if isinstance(test, ImageSet) and ground in test.factors:
            factors["tint"] = assignments.tint(test.factors[ground])
    return assignments.describe(p, factors)


# The Pantry at 32 pixels with 16 tokens, in under a minute of one CPU core. The network has only begun to learn; it is
# scored beside its baselines and beside the same network that was trained longer by `recipes cook`.
# Not the paper's: no local views, since 32 x 96 / 224 = 14 pixels are less than 2 tokens; a momentum of 0.9, since with
# 0.996 the target would average over the last 1 / (1 - 0.996) = 250 steps, more than the 120 of the run; and schedules
# that end with the run (stretch 1).
_TOY = Config(
    data=DataConfig(name="pantry", image_size=32, train_size=3000, test_size=500),
    views=MSNViews(image_size=32, local_views=0, blur=0.0, mask_ratio=0.15),
    model=ModelConfig(
        arch="vit_pico", patch_size=8, stem="conv", hidden=256, dim=64, prototypes=128, ema=0.9, ema_final=0.9
    ),
    optim=OptimConfig(lr=5e-3, lr_start=0.0, lr_final=0.0, warmup_epochs=1.0, weight_decay_final=0.04, stretch=1.0),
    train=TrainConfig(epochs=None, steps=120, batch_size=256, threads=1, device="cpu", checkpoint_every=60),
    eval=EvalConfig(baselines="all", cooked=True, probes=("knn", "lowshot")),  # a linear probe of raw pixels takes 20 s
)

PRESETS: dict[str, Config] = {
    "toy": _TOY,
    # The same network trained longer, on more images; `recipes cook msn` stores the result.
    "simmer": replace(
        _TOY,
        data=replace(_TOY.data, train_size=6000, test_size=1000),
        model=replace(_TOY.model, ema_final=1.0),
        train=replace(_TOY.train, steps=3000, checkpoint_every=500),
        eval=EvalConfig(baselines="all"),
    ),
    # CIFAR-10 in about an hour of one core. A convolutional stem makes 16 tokens, where the paper cuts patches.
    "laptop": Config(
        data=DataConfig(name="cifar10", image_size=32),
        views=MSNViews(image_size=32, local_views=0, grayscale=0.3, blur=0.0),
        model=ModelConfig(arch="vit_nano", patch_size=8, stem="conv", hidden=256, dim=64, prototypes=128, ema=0.9),
        optim=OptimConfig(lr=5e-3, lr_start=0.0, lr_final=0.0, warmup_epochs=5.0, weight_decay_final=0.04, stretch=1.0),
        train=TrainConfig(epochs=None, steps=8000, batch_size=256, checkpoint_every=500),
        eval=EvalConfig(baselines="all"),
    ),
    # The paper's ViT-S/16 with Sinkhorn and lambda 1, the default of the paper and of the released config, on 16 GPUs x
    # 64 images. Top-1 accuracy with 1 % of the labels: 66.4 (the paper's Table 11).
    "vits16_imagenet": Config(),
    # The same without Sinkhorn and with lambda 5: 67.2 with 1 % of the labels, the paper's best, also in its Table 2.
    # Without Sinkhorn lambda has to be larger: lambda 1 gives only 60.8 (all three numbers are from Table 11).
    "vits16_imagenet_no_sinkhorn": Config(loss=LossConfig(sinkhorn_iterations=0, me_max_weight=5.0)),
    # The paper's ViT-B/4 with 70 % of the patches dropped: 300 epochs (Table 1) with 1,024 images per step (appendix
    # A.1) reach 75.7 with 1 % of the labels (Table 2). A config that the authors posted has 400 epochs and 1,152 images
    # per step on 384 GPUs.
    "vitb4_imagenet": Config(
        views=MSNViews(mask_ratio=0.7),
        model=ModelConfig(arch="vit_base", patch_size=4),
        train=TrainConfig(epochs=300.0, batch_size=1024),
    ),
}


RECIPE = Recipe(name="msn", config=Config, presets=PRESETS, method=MSN, diagnostics=diagnostics)
