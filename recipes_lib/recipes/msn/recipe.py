# SPDX-License-Identifier: Apache-2.0
"""Masked Siamese Networks: an image with patches missing must choose the same prototypes as a view with none missing.

Assran, Caron, Misra, Bojanowski, Bordes, Vincent, Joulin, Rabbat, Ballas, "Masked Siamese Networks for
Label-Efficient Learning", ECCV 2022, arXiv 2204.07141. Chapter: ``notebooks/msn.py``.

1. Cut several views of an image; the *target* view keeps all its patches, the *anchor* views lose some (random mask)
   or are small crops (focal mask). Dropped patches are not replaced: the anchor's encoder is cheaper by their share.
2. Both sides are softly assigned to the same learnable prototypes.
3. The target's assignment is sharpened, balanced (Sinkhorn) and passes no gradient; the anchors must predict it.
4. The mean assignment of all anchors is pushed towards uniform (ME-MAX), so that no prototype takes all images.
5. The target encoder is an exponential moving average (EMA) of the anchor encoder; it is what is evaluated.
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
from recipes_lib.models import heads, layers, vit
from recipes_lib.objectives import prototypes
from recipes_lib.optim import groups, schedules
from recipes_lib.pretraining.recipe import Method, Recipe
from recipes_lib.views import masking
from recipes_lib.views.multicrop import MultiCrop, ViewsConfig


@dataclass(frozen=True, kw_only=True)
class MSNViews(ViewsConfig):
    """Multi-crop views, and the random mask of the anchor's global views."""

    mask_ratio: float = 0.15
    """Share of a global anchor view's patches that is dropped, in [0, 1); the target and the small views keep all."""
    mask_per_image: bool = True
    """A mask of its own for each image, as in the paper; False: one mask per step, as in the official code."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig(vit.ViTConfig):
    """The encoder: a Vision Transformer, a projection head, prototypes, and the moving average that is the target."""

    hidden: int = 2048
    """Width of the projection head's two hidden layers."""
    dim: int = 256
    """Dimension of embeddings and prototypes."""
    prototypes: int = 1024
    """How many prototypes there are."""
    ema: float = 0.996
    """Momentum of the target encoder at the first step."""
    ema_final: float = 1.0
    """Momentum that ``ema`` rises to linearly; it would be reached after ``optim.stretch`` times the run."""

    def check(self, faults: Faults) -> None:
        """Notes every fault of this group in ``faults``."""
        super().check(faults)
        layers.refuse_equal_features(faults, self)
        for name in ("hidden", "dim", "prototypes"):
            faults.need(getattr(self, name) >= 2, f"model.{name}", getattr(self, name), "of at least 2")
        for name in ("ema", "ema_final"):
            faults.need(0 <= getattr(self, name) <= 1, f"model.{name}", getattr(self, name), "in [0, 1]")


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The objective; symbols as in the paper."""

    temperature: float = 0.1
    """tau, of both assignments."""
    sharpen_temperature: float = 0.25
    """T in (0, 1]: the target's assignment is raised to the power 1/T and normalised again; 1 leaves it as it is."""
    sinkhorn_iterations: int = 3
    """Rounds of balancing the targets over the prototypes; 0: none."""
    me_max_weight: float = 1.0
    """lambda, of the mean-entropy maximisation."""
    entropy_weight: float = 0.0
    """mu, of the mean entropy of the anchors' assignments; the official runs log it with weight 0."""

    def check(self, faults: Faults) -> None:
        """Notes every fault of this group in ``faults``."""
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
        """Notes every fault of the groups, and of what they are together, in ``faults``."""
        for group in (self.data, self.views, self.model, self.loss, self.optim, self.sync, self.train, self.eval):
            group.check(faults)
        sides = [self.views.image_size] + [self.views.local_size] * (self.views.local_views > 0)
        for name, side in zip(("views.image_size", "views.local_size"), sides, strict=False):
            self.model.check_side(faults, name, side)
        if self.data.image_size != self.views.image_size:
            self.model.check_side(faults, "data.image_size", self.data.image_size)  # features are computed at this side
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
        self.backbone = vit.build(config.model, image_size=config.views.image_size)
        self.head = heads.ProjectionHead(self.backbone.num_features, config.model.hidden, config.model.dim)

    def forward(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Embeddings of views of one size: [batch, 3, side, side], patches kept int64 [batch, kept] -> [batch, dim]."""
        return self.head(self.backbone(images, keep))


class MSN(Method):
    """Anchor encoder, target encoder and prototypes; ``forward`` is one evaluation of the paper's loss."""

    def __init__(self, config: Config, steps: int) -> None:
        super().__init__()
        self.config, self.steps = config, steps
        self.anchor = Encoder(config)
        self.target = copy.deepcopy(self.anchor).requires_grad_(False)
        self.prototypes = heads.Prototypes(config.model.prototypes, config.model.dim)
        self._crop = MultiCrop(config.views, config.train.seed)

    @property
    def backbone(self) -> vit.VisionTransformer:
        """What is evaluated: the target's backbone."""
        return self.target.backbone

    @property
    def crop_one(self) -> Crop:
        """Cuts the views of one image file in a loader's worker."""
        return self._crop.crop_one

    def views(self, batch: Batch, step: int) -> dict[str, object]:
        """Cuts and masks the views of a batch; every draw comes from ``(seed, epoch, index)`` or ``(seed, step)``."""
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
        """The loss of one micro-batch and its parts; the shapes are those of :meth:`views`."""
        return self.objective(*self.embeddings(views))

    def embeddings(self, views: dict[str, Tensor | None]) -> tuple[Tensor, Tensor]:
        """Embeddings of the anchor views [V * batch, dim], view-major, and of the target view [batch, dim]."""
        anchors = []  # view-major; a head call per resolution, so batch statistics are those of one resolution
        if views["global"] is not None:
            anchors.append(self.anchor(views["global"], views["keep"]))
        if views["local"] is not None:
            anchors.append(self.anchor(views["local"]))
        with torch.no_grad():  # the paper's stop-gradient
            targets = self.target(views["target"])
        return torch.cat(anchors), targets

    def objective(self, anchors: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """The loss of anchors [V * batch, dim], view-major, and targets [batch, dim], and its parts."""
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
        """Weights with decay; biases and norms without; prototypes without."""
        return [
            *groups.decay_groups(self.anchor),
            {"params": [self.prototypes.weight], "decays": False},
        ]

    def clipped_parameters(self) -> list[nn.Parameter]:
        """The anchor encoder; prototypes are not clipped."""
        return list(self.anchor.parameters())

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Moves the target's parameters towards the anchor's; running statistics of batch norm stay its own."""
        model, stretch = self.config.model, self.config.optim.stretch
        momentum = schedules.linear(step, model.ema, model.ema_final, self.steps, stretch=stretch)
        torch._foreach_lerp_(list(self.target.parameters()), list(self.anchor.parameters()), 1 - momentum)


@torch.no_grad()
def diagnostics(method: MSN, features: tuple[Features, Features], images: Splits) -> dict[str, float]:
    """How the target assigns the test images to prototypes; what each number means: ``evaluation.assignments``."""
    test = images.test
    embeddings = method.target.eval().head(features[1].final.to(method.prototypes.weight.device))
    p = prototypes.assign(embeddings, method.prototypes.weight, method.config.loss.temperature)  # [N, K]
    factors = {} if test.labels is None else {"label": test.labels}
    for ground in ("paper", "table_colour"):  # of the digits, of the Pantry
        if isinstance(test, ImageSet) and ground in test.factors:
            factors["tint"] = assignments.tint(test.factors[ground])
    return assignments.describe(p, factors)


# The Pantry at 32 pixels, 16 tokens, under a minute of one CPU core: a network that starts to learn, beside its baselines and
# the network cooked earlier, which shows where that leads.
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
    # The same network for longer, on more images: what `recipes cook msn` stores.
    "simmer": replace(
        _TOY,
        data=replace(_TOY.data, train_size=6000, test_size=1000),
        model=replace(_TOY.model, ema_final=1.0),
        train=replace(_TOY.train, steps=3000, checkpoint_every=500),
        eval=EvalConfig(baselines="all"),
    ),
    # CIFAR-10 in about an hour of one core: a convolutional stem down to 16 tokens in place of the paper's patches.
    "laptop": Config(
        data=DataConfig(name="cifar10", image_size=32),
        views=MSNViews(image_size=32, local_views=0, grayscale=0.3, blur=0.0),
        model=ModelConfig(arch="vit_nano", patch_size=8, stem="conv", hidden=256, dim=64, prototypes=128, ema=0.9),
        optim=OptimConfig(lr=5e-3, lr_start=0.0, lr_final=0.0, warmup_epochs=5.0, weight_decay_final=0.04, stretch=1.0),
        train=TrainConfig(epochs=None, steps=8000, batch_size=256, checkpoint_every=500),
        eval=EvalConfig(baselines="all"),
    ),
    # The paper's ViT-S/16 with Sinkhorn and lambda 1, the default of the paper and of the released config: 16 GPUs, 64
    # images each. Top-1 with 1 % of the labels: 66.4 (the paper's Table 11, read in full).
    "vits16_imagenet": Config(),
    # The same without Sinkhorn and with lambda 5: 67.2 with 1 % of the labels, the paper's best and the number in its Table 2.
    # lambda has to rise when Sinkhorn goes: without it, lambda 1 gives 60.8 (all three from Table 11).
    "vits16_imagenet_no_sinkhorn": Config(loss=LossConfig(sinkhorn_iterations=0, me_max_weight=5.0)),
    # The paper's ViT-B/4 with 70 % of the patches dropped: 300 epochs (Table 1) of 1,024 images per step (appendix A.1), 75.7
    # with 1 % of the labels (Table 2). A config that its authors posted has 400 epochs of 1,152 images on 384 GPUs.
    "vitb4_imagenet": Config(
        views=MSNViews(mask_ratio=0.7),
        model=ModelConfig(arch="vit_base", patch_size=4),
        train=TrainConfig(epochs=300.0, batch_size=1024),
    ),
}


RECIPE = Recipe(name="msn", config=Config, presets=PRESETS, method=MSN, diagnostics=diagnostics)
