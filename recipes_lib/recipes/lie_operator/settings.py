# SPDX-License-Identifier: Apache-2.0
"""The config of the Lie operator: data of poses, the backbone and its SSL objective, the operator, and the three weights."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from recipes_lib.config import ClassProbe, DataConfig, EvalConfig, LabelFreeProbe, OptimConfig, SyncConfig, TrainConfig
from recipes_lib.config.views import ViewsConfig
from recipes_lib.errors import Faults
from recipes_lib.models import backbones, layers
from recipes_lib.models.lie_operator import Input, most_generators

Posed = Literal["pantry_poses", "object_poses"]
POSED: tuple[str, ...] = get_args(Posed)
"""Names of the data sets of objects in several poses, which have pairs of their own."""
OF_POSES = ("new_poses", "unknown")
"""Probes that need such a data set."""


@dataclass(frozen=True, kw_only=True)
class PoseData(DataConfig):
    """Where images and pairs come from. With poses, a pair is one object in two poses; else it is two augmented views."""

    name: Literal[
        "pantry_poses",
        "object_poses",
        "digits",
        "pantry",
        "npz",
        "cifar10",
        "stl10",
        "imagenet",
    ] = "imagenet"
    """Name of the data set. pantry_poses: objects of the Pantry in several poses; object_poses: the thousand 3-D objects
    of pybullet; the label of an image is the object. The others are as in all recipes."""
    train_size: int = 6000
    """Number of training images to draw; of objects in several poses always (diverse + typical) * poses."""
    test_size: int = 1000
    """Number of test images to draw; of objects in several poses always typical * poses."""
    diverse: int = 100
    """Number of training objects that are seen in all poses, at least 2."""
    typical: int = 50
    """Number of training objects that are seen in typical poses only, at least 2."""
    unknown: int = 50
    """Number of objects that no training image shows, at least 2."""
    poses: int = 12
    """Number of images of each object in each set, at least 2."""
    azimuth: float = 60.0
    """Largest turn about the upright axis in either direction, in degrees, in [0, 180]."""
    elevation: float = 40.0
    """Largest tilt in either direction, in degrees, in [0, 180]."""
    roll: float = 60.0
    """Largest turn in the image plane in either direction, in degrees, in [0, 180]."""

    def __post_init__(self) -> None:
        if self.posed:  # the plan and the limit of memory read these two
            object.__setattr__(self, "train_size", (self.diverse + self.typical) * self.poses)
            object.__setattr__(self, "test_size", self.typical * self.poses)

    @property
    def posed(self) -> bool:
        """Whether the images are of objects in several poses."""
        return self.name in POSED

    def check(self, faults: Faults) -> None:
        """Adds every fault of this group to ``faults``."""
        super().check(faults)
        if not self.posed:
            return
        for name in ("diverse", "typical", "unknown", "poses"):
            faults.need(getattr(self, name) >= 2, f"data.{name}", getattr(self, name), "of at least 2")
        for name in ("azimuth", "elevation", "roll"):
            faults.need(0 <= getattr(self, name) <= 180, f"data.{name}", getattr(self, name), "in [0, 180] degrees")
        if not (self.azimuth or self.elevation or self.roll):
            faults.add(
                "data.azimuth, data.elevation and data.roll are all 0: every pair would show one image twice. Set one."
            )
        for name, only in (("holdout", 0.0), ("share", 1.0), ("tail", 0.0), ("classes_per_batch", None)):
            value = getattr(self, name)
            faults.need(value == only, f"data.{name}", value, f"of {only} with {self.name}")


@dataclass(frozen=True, kw_only=True)
class ModelConfig(backbones.BackboneConfig):
    """The backbone, the linear map from its features to the embeddings that the operator moves, and the SSL head."""

    arch: backbones.Arch = "vit_base"
    stem: backbones.Stem = "patch"
    init: Path | None = None
    """Folder or file of a pretrained backbone of the same architecture: an exported run of any recipe, or timm's layout.
    None: random weights."""
    frozen: bool = False
    """Whether the backbone keeps its weights, so that only the map, the head and the operator learn."""
    lr_scale: float = 0.1
    """Factor on the learning rate of the backbone, above 0: it is fine-tuned while the rest is new."""
    hidden: int = 2048
    """Width of the projector's hidden layers, at least 2; ``vicreg`` only."""
    dim: int = 2048
    """Dimension of the projections that VICReg compares, at least 2; ``vicreg`` only."""
    decoder_width: int = 512
    """Width of the decoder, a multiple of 4 and of ``decoder_heads``; ``mae`` only."""
    decoder_depth: int = 8
    """Blocks of the decoder, at least 1; ``mae`` only."""
    decoder_heads: int = 16
    """Attention heads of the decoder, at least 1; ``mae`` only."""

    def check(self, faults: Faults) -> None:
        """Adds every fault of this group to ``faults``."""
        super().check(faults)
        if self.has_blocks:
            layers.refuse_equal_features(faults, self)
        faults.need(self.lr_scale > 0, "model.lr_scale", self.lr_scale, "above 0", "model.frozen keeps the weights.")
        for name in ("hidden", "dim"):
            faults.need(getattr(self, name) >= 2, f"model.{name}", getattr(self, name), "of at least 2")
        for name in ("decoder_depth", "decoder_heads"):
            faults.need(getattr(self, name) >= 1, f"model.{name}", getattr(self, name), "of at least 1")
        fits = self.decoder_heads < 1 or (self.decoder_width % 4 == 0 and self.decoder_width % self.decoder_heads == 0)
        faults.need(fits, "model.decoder_width", self.decoder_width, "that is a multiple of 4 and of decoder_heads")


@dataclass(frozen=True, kw_only=True)
class OperatorConfig:
    """The operator g(t), the network that infers t, and the controls. All defaults are ours; the paper's were not found."""

    kind: Literal["lie", "mlp", "random", "none"] = "lie"
    """lie: learned generators; mlp: the control without a group, a residual MLP that gets t; random: generators that keep
    their random start; none: t = 0, so a pair is a plain SSL positive."""
    dim: int = 128
    """Dimension d of the embeddings, at least 2: features are mapped to it linearly."""
    generators: int = 4
    """Number K of generators, at least 1 and at most as many as are linearly independent. Far fewer than dim, or the
    coefficients could carry the whole answer."""
    skew: bool = True
    """Whether generators are skew-symmetric, so that g(t) is a rotation. The paper's are general matrices."""
    unit_norm: bool = True
    """Whether generators have the Frobenius norm sqrt(dim); else it drifts, since (t, L) and (2 t, L / 2) are the same."""
    block_size: int | None = None
    """Side of the blocks of block-diagonal generators, which divides dim. None: dense generators."""
    taylor: bool = False
    """Whether g(t) z is a truncated series without any matrix per pair, in place of the exact matrix exponential: with 128
    dimensions a tenth of the time (``benchmarks/lie_operator.py``), and exact to rounding while A's column sums are below 8."""
    hidden: int = 512
    """Width of the hidden layers of the network that infers t, and of the MLP operator, at least 1."""
    reads: Input = "antisymmetric"
    """What that network reads. pair: both embeddings; antisymmetric: their products z_i z'_j - z_j z'_i, which hands it the
    statistic of a rotation."""
    bound: float | None = 3.0
    """Largest coefficient, above 0: t is bound * tanh(t / bound). None: no bound."""

    def check(self, faults: Faults) -> None:
        """Adds every fault of this group to ``faults``."""
        faults.need(self.dim >= 2, "operator.dim", self.dim, "of at least 2")
        size = self.dim if self.block_size is None else self.block_size
        divides = 1 <= size <= self.dim and self.dim % size == 0
        faults.need(divides, "operator.block_size", self.block_size, f"that divides operator.dim = {self.dim}")
        if divides:
            most = most_generators(self.dim, size, self.skew)
            fits = 1 <= self.generators <= most
            faults.need(fits, "operator.generators", self.generators, f"of 1 to {most} with these dimensions")
        faults.need(self.hidden >= 1, "operator.hidden", self.hidden, "of at least 1")
        faults.need(self.bound is None or self.bound > 0, "operator.bound", self.bound, "above 0, or None")


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The terms of the loss and their weights. Which of them the paper uses, and how weighted, could not be read."""

    objective: Literal["vicreg", "mae"] = "vicreg"
    """The SSL objective. vicreg compares projections of the two images; mae reconstructs hidden patches of the first one."""
    ssl_weight: float = 1.0
    """Weight of the SSL objective of the images themselves, at least 0."""
    lie_weight: float = 0.0
    """Weight of the SSL objective between the moved embedding and the other image's, at least 0; ``vicreg`` only."""
    euclid_weight: float = 1.0
    """Weight of ||z_hat - z'||^2, at least 0. The target z' passes no gradient."""
    spread_weight: float = 1.0
    """Weight of VICReg's variance term on the embeddings themselves, at least 0. Without it they may shrink, which lowers
    the squared distance and explains no motion: watch relative_error and latent_std."""
    penalty: float = 0.0
    """Weight of the mean squared coefficient, at least 0."""
    invariance_weight: float = 25.0
    """Weight of the distance in VICReg, at least 0."""
    variance_weight: float = 25.0
    """Weight of the variance term in VICReg, at least 0."""
    covariance_weight: float = 1.0
    """Weight of the covariance term in VICReg, at least 0."""
    mask_ratio: float = 0.75
    """Share of the patches that are hidden, in (0, 1); ``mae`` only."""

    def check(self, faults: Faults) -> None:
        """Adds every fault of this group to ``faults``."""
        for name in ("ssl_weight", "lie_weight", "euclid_weight", "spread_weight", "penalty"):
            faults.need(getattr(self, name) >= 0, f"loss.{name}", getattr(self, name), "of at least 0")
        for name in ("invariance_weight", "variance_weight", "covariance_weight"):
            faults.need(getattr(self, name) >= 0, f"loss.{name}", getattr(self, name), "of at least 0")
        faults.need(0 < self.mask_ratio < 1, "loss.mask_ratio", self.mask_ratio, "in (0, 1)")
        if self.objective == "mae":
            why = "MAE has no loss between two embeddings."
            faults.need(self.lie_weight == 0, "loss.lie_weight", self.lie_weight, "of 0 with objective mae", why)


@dataclass(frozen=True, kw_only=True)
class LieEval(EvalConfig):
    """The probes that all recipes have, and two for objects in several poses."""

    probes: tuple[Literal["new_poses", "unknown", ClassProbe, LabelFreeProbe], ...] = ("knn", "linear")
    """The probes to score with. new_poses: a linear probe on known objects in poses that were not seen of them; unknown: the
    nearest class mean, from one view, of objects that were never seen. Both with the operator and, as arm still, without."""


_ADAMW = OptimConfig(
    lr=1e-3,
    lr_start=0.0,
    lr_final=0.0,
    warmup_epochs=5.0,
    weight_decay=0.05,
    weight_decay_final=0.05,
    stretch=1.0,
    first_count=0,
    clip=1.0,
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """The Lie operator's config; the defaults fine-tune a ViT-B on ImageNet, and are ours: the paper's were not found."""

    data: PoseData = field(default_factory=PoseData)
    views: ViewsConfig = field(default_factory=lambda: ViewsConfig(local_views=0, global_scale=(0.2, 1.0)))
    model: ModelConfig = field(default_factory=ModelConfig)
    operator: OperatorConfig = field(default_factory=OperatorConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=lambda: _ADAMW)
    sync: SyncConfig = field(default_factory=SyncConfig)
    train: TrainConfig = field(default_factory=lambda: TrainConfig(epochs=100.0, batch_size=1024))
    eval: LieEval = field(default_factory=LieEval)

    def validate(self) -> None:
        """Raises ``ConfigError`` with a line for each fault."""
        faults = Faults()
        groups = (self.data, self.views, self.model, self.operator, self.loss, self.optim, self.sync, self.train)
        for group in (*groups, self.eval):
            group.check(faults)
        views = self.views
        sides = {"data.image_size": self.data.image_size, "views.image_size": views.image_size}
        self.model.check_sides(faults, sides)
        faults.need(views.global_views == 1, "views.global_views", views.global_views, "of 1: a pair has two images")
        faults.need(views.local_views == 0, "views.local_views", views.local_views, "of 0: a pair has two images")
        self._check_pairs(faults)
        self._check_collapse(faults)
        faults.raise_any()

    def _check_pairs(self, faults: Faults) -> None:
        views = self.views
        changes = views.flip or views.jitter or views.grayscale or views.blur or views.noise or views.rotate
        if not self.data.posed and views.global_scale[0] == 1 and not changes:
            faults.add(
                "The two views of an image are equal: the operator would learn the identity. Change views.global_scale or "
                "views.flip, or choose data.name pantry_poses."
            )
        asked = [name for name in OF_POSES if name in self.eval.probes]
        if asked and not self.data.posed:
            faults.add(
                f"eval.probes = {asked[0]} needs objects in several poses: choose data.name {' or '.join(POSED)}, or leave it out."
            )

    def _check_collapse(self, faults: Faults) -> None:
        model, loss = self.model, self.loss
        if not model.frozen and loss.ssl_weight == 0:
            faults.add(
                "loss.ssl_weight = 0.0 with a trained backbone: equal features for all images minimise the rest. Set it above 0, "
                "or model.frozen True."
            )
        if model.frozen and loss.ssl_weight == 0 and loss.spread_weight == 0:
            faults.add(
                "loss.ssl_weight and loss.spread_weight are both 0: embeddings of 0 minimise the rest. Set one of them."
            )
        if loss.objective == "mae":
            patches = model.drops_patches and model.stem == "patch"
            faults.need(patches, "model.arch", model.arch, "a vit with stem patch for objective mae")
            if model.frozen:
                faults.add(
                    "loss.objective = mae trains the backbone, and model.frozen keeps it. Choose vicreg, or leave out frozen."
                )
