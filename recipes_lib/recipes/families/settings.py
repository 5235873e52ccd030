# SPDX-License-Identifier: Apache-2.0
"""The config of the families: one set of groups for all methods, and which fields each method reads.

A field that the chosen method does not read must keep its default: a changed one is a mistake and is refused.
"""

import math
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Literal, get_args

from recipes_lib.config import DataConfig, EvalConfig, OptimConfig, SyncConfig, TrainConfig
from recipes_lib.errors import Faults
from recipes_lib.models import backbones, layers
from recipes_lib.views import masking
from recipes_lib.views.multicrop import ViewsConfig

Objective = Literal[
    "simclr",
    "dcl",
    "nnclr",
    "moco_v2",
    "moco_v3",
    "byol",
    "simsiam",
    "dino",
    "barlow_twins",
    "vicreg",
    "swav",
    "w_mse",
    "mae",
    "simmim",
    "beit",
    "ijepa",
    "lejepa",
    "rotation",
]
"""The methods, in the order of the chapter."""

TWO_VIEWS = ("simclr", "dcl", "nnclr", "moco_v2", "moco_v3", "byol", "simsiam", "barlow_twins", "vicreg")
"""The methods that compare exactly two views."""
ONE_VIEW = ("mae", "simmim", "beit", "ijepa", "rotation")
"""The methods that see one view of an image."""
WITH_TEACHER = ("moco_v2", "moco_v3", "byol", "dino", "ijepa")
"""The methods whose targets come from a moving average of the network."""
MASKED = ("mae", "simmim", "beit", "ijepa")
"""The methods that hide patches, and so need a Vision Transformer with a stem of patches."""
_PREDICT = ("nnclr", "moco_v3", "byol", "simsiam")
_EMBED = (*TWO_VIEWS, "dino", "swav", "w_mse", "lejepa")


@dataclass(frozen=True, kw_only=True)
class FamiliesViews(ViewsConfig):
    """The views of an image, and what is hidden of them. The defaults are SimCLR's, with colour jitter of strength 1."""

    global_scale: tuple[float, float] = (0.08, 1.0)
    """Smallest and largest area of a large crop, as a share of the image's area."""
    local_views: int = 0
    """Number of small views; ``dino``, ``swav``, ``w_mse`` and ``lejepa`` only."""
    brightness: float = 0.8
    """Strength of the brightness jitter, at least 0: the factor is drawn between 1 - strength and 1 + strength."""
    contrast: float = 0.8
    """Strength of the contrast jitter, at least 0: the factor is drawn between 1 - strength and 1 + strength."""
    saturation: float = 0.8
    """Strength of the saturation jitter, at least 0: the factor is drawn between 1 - strength and 1 + strength."""
    hue: float = 0.2
    """Largest rotation of the hue in either direction, in full circles, in [0, 0.5]."""
    second_blur: float | None = None
    """Probability of blurring the second large view; None: that of ``blur``. BYOL blurs 1.0 and 0.1."""
    second_solarize: float | None = None
    """Probability of solarizing the second large view; None: that of ``solarize``. BYOL solarizes 0.0 and 0.2."""
    local_blur: float | None = None
    """Probability of blurring a small view; None: that of ``blur``. DINO's is 0.5."""
    mask_ratio: float = 0.0
    """Share of the patches that are hidden, in [0, 1). ``mae``: 0.75; ``simmim``: 0.6; ``beit``: 0.4 in blocks
    (75 of 196 patches are 0.38); ``dino`` with ``loss.patch_weight``: iBOT's student does not see the share 0.3 of
    half of the large views."""
    mask_unit: int = 1
    """Patches along the side of a square that is hidden as a whole; ``simmim`` only, whose 2 x 16 pixels make 32."""
    target_blocks: int = 4
    """Number of blocks whose embeddings are predicted; ``ijepa`` only."""
    target_scale: tuple[float, float] = (0.15, 0.2)
    """Smallest and largest area of a target block, as a share of the image's; ``ijepa`` only."""
    target_aspect: tuple[float, float] = (0.75, 1.5)
    """Smallest and largest ratio of a target block's height to its width; ``ijepa`` only."""
    context_scale: tuple[float, float] = (0.85, 1.0)
    """Smallest and largest area of the context, before the targets are taken out of it; ``ijepa`` only."""

    def check_anchors(self, faults: Faults) -> None:
        """Adds nothing: the number of views depends on the method, and :class:`Config` checks it."""

    def check(self, faults: Faults) -> None:
        """Adds every fault of this group to ``faults``."""
        super().check(faults)
        for name in ("second_blur", "second_solarize", "local_blur"):
            value = getattr(self, name)
            faults.need(value is None or 0 <= value <= 1, f"views.{name}", value, "in [0, 1], or None")
        faults.need(0 <= self.mask_ratio < 1, "views.mask_ratio", self.mask_ratio, "in [0, 1)")
        for name in ("mask_unit", "target_blocks"):
            faults.need(getattr(self, name) >= 1, f"views.{name}", getattr(self, name), "of at least 1")
        for name in ("target_scale", "context_scale"):
            low, high = getattr(self, name)
            faults.need(0 < low <= high <= 1, f"views.{name}", (low, high), "pair with 0 < first <= second <= 1")
        low, high = self.target_aspect
        faults.need(0 < low <= high, "views.target_aspect", (low, high), "pair with 0 < first <= second")


@dataclass(frozen=True, kw_only=True)
class ModelConfig(backbones.BackboneConfig):
    """The backbone, the heads behind it, and the teacher's momentum. The defaults are SimCLR's ResNet-50."""

    projector_layers: int = 2
    """Number of linear layers of the projector, at least 0; 0: the loss is computed on the features themselves."""
    hidden: int = 2048
    """Width of the projector's hidden layers, at least 2."""
    dim: int = 128
    """Dimension of the embeddings that the loss compares, at least 2."""
    projector_norm: Literal["batch", "none"] = "batch"
    """Batch norm and ReLU after each hidden layer of the projector, or (as in DINO) GELU alone."""
    last_norm: bool = False
    """Whether the projector's last layer has a batch norm without learned scale too, as in SimSiam and MoCo v3."""
    predictor_layers: int = 0
    """Number of linear layers of the predictor behind the projector, at least 0; 0: none."""
    predictor_hidden: int = 4096
    """Width of the predictor's hidden layers, at least 2."""
    predictor_last_norm: bool = False
    """Whether the predictor's last layer has a batch norm without learned scale too, as MoCo v3's for transformers."""
    freeze_patch: bool = False
    """Whether a Vision Transformer's map from a patch to a token keeps its random start, as in MoCo v3."""
    prototypes: int = 3000
    """Number of prototypes; ``swav`` and ``dino`` only (DINO's paper: 65,536)."""
    ema: float = 0.996
    """Momentum of the teacher at the first step, in [0, 1]."""
    ema_final: float = 1.0
    """Momentum of the teacher at the end of a cosine (``ijepa``: a straight line) over the run, in [0, 1]."""
    decoder_width: int = 512
    """Width of the decoder (``mae``) or of the predictor (``ijepa``: 384), a multiple of 4 and of ``decoder_heads``."""
    decoder_depth: int = 8
    """Blocks of the decoder (``mae``) or of the predictor (``ijepa``: 12), at least 1."""
    decoder_heads: int = 16
    """Attention heads of the decoder (``mae``) or of the predictor (``ijepa``: as many as the encoder), at least 1."""

    def check(self, faults: Faults) -> None:
        """Adds every fault of this group to ``faults``."""
        super().check(faults)
        if self.has_blocks:
            layers.refuse_equal_features(faults, self)
        patches = self.drops_patches and self.stem == "patch"
        faults.need(
            patches or not self.freeze_patch,
            "model.freeze_patch",
            self.freeze_patch,
            f"of False with {self.arch} and model.stem {self.stem}",
            "Choose a vit with stem patch.",
        )
        for name in ("projector_layers", "predictor_layers"):
            faults.need(getattr(self, name) >= 0, f"model.{name}", getattr(self, name), "of at least 0")
        for name in ("hidden", "dim", "predictor_hidden", "prototypes"):
            faults.need(getattr(self, name) >= 2, f"model.{name}", getattr(self, name), "of at least 2")
        for name in ("decoder_depth", "decoder_heads"):
            faults.need(getattr(self, name) >= 1, f"model.{name}", getattr(self, name), "of at least 1")
        if self.decoder_heads >= 1:
            whole = self.decoder_width >= 1 and self.decoder_width % math.lcm(4, self.decoder_heads) == 0
            allowed = f"that is a multiple of 4 and of model.decoder_heads = {self.decoder_heads}"
            faults.need(whole, "model.decoder_width", self.decoder_width, allowed)
        for name in ("ema", "ema_final"):
            faults.need(0 <= getattr(self, name) <= 1, f"model.{name}", getattr(self, name), "in [0, 1]")


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The method and the numbers of its loss. Each field names the methods that read it."""

    objective: Objective = "simclr"
    """The method."""
    temperature: float = 0.1
    """Temperature of the cosines, above 0: ``simclr``, ``dcl``, ``nnclr``, ``moco_v2``, ``moco_v3``, ``swav``; of the
    student's logits in ``dino``."""
    negatives: bool = True
    """Whether views of other images push an image's views away; ``simclr`` only. False shows the collapse: the loss
    then asks for agreement alone."""
    stop_gradient: bool = True
    """Whether the target branch passes no gradient; ``simsiam`` and ``ijepa`` only. False shows the collapse. With
    ``ijepa``, whose teacher gets no gradient in any case, the encoder itself then computes the targets, as with
    ``model.ema`` and ``model.ema_final`` 0, which must be set too."""
    queue: int = 0
    """Number of earlier embeddings that are kept: the candidates for neighbours (``nnclr``), the negatives
    (``moco_v2``: 65,536) or more images for the codes (``swav``: 3,840). A multiple of the batch size."""
    queue_start: float = 0.0
    """Share of the run after which the queue is used, in [0, 1); ``swav`` only."""
    teacher_temperature: float = 0.04
    """Temperature of the teacher's logits, above 0; ``dino`` only."""
    teacher_temperature_start: float = 0.04
    """Temperature of the teacher at the first step, which rises linearly; ``dino`` only."""
    teacher_warmup: float = 0.0
    """Share of the run in which the teacher's temperature rises, in [0, 1]; ``dino`` only."""
    centre_momentum: float = 0.9
    """Momentum of the mean of the teacher's logits, in [0, 1]; ``dino`` only. With 1 nothing is subtracted."""
    patch_weight: float = 0.0
    """Weight of iBOT's loss on hidden patches, at least 0; ``dino`` with a Vision Transformer only."""
    koleo_weight: float = 0.0
    """Weight of the KoLeo regulariser, which spreads a batch's features evenly (DINOv2: 0.1); ``dino`` only."""
    freeze_prototypes: float = 0.0
    """Share of the run in which the prototypes do not move, in [0, 1); ``swav`` and ``dino`` only."""
    epsilon: float = 0.05
    """Entropy weight of the codes, at least 0.025; ``swav`` only."""
    sinkhorn_iterations: int = 3
    """Number of Sinkhorn iterations, which use all prototypes equally often; ``swav`` only. 0 shows the collapse."""
    redundancy_weight: float = 0.0051
    """Weight of the off-diagonal correlations (lambda), at least 0; ``barlow_twins`` only."""
    invariance_weight: float = 25.0
    """Weight of the two views' distance (lambda), at least 0; ``vicreg`` only."""
    variance_weight: float = 25.0
    """Weight of the variance term (mu), at least 0; ``vicreg`` only. 0 shows the collapse."""
    covariance_weight: float = 1.0
    """Weight of the covariance term (nu), at least 0; ``vicreg`` only."""
    whiten: bool = True
    """Whether embeddings are whitened before they are compared; ``w_mse`` only. False shows the collapse."""
    whitening_size: int = 256
    """Number of images that are whitened together, above ``model.dim``; ``w_mse`` only. It divides the batch size."""
    normalise_targets: bool = True
    """Whether each patch to predict is brought to mean 0 and variance 1; ``mae`` only."""
    codes: int = 64
    """Number of visual words, at least 2, which k-means finds among the training images' patches; ``beit`` only."""
    sigreg_weight: float = 0.05
    """Weight (lambda) of SIGReg against the prediction term, in [0, 1]; ``lejepa`` only. 0 shows the collapse."""
    slices: int = 1024
    """Number of random directions in which SIGReg compares the embeddings with a Gaussian; ``lejepa`` only."""
    knots: int = 17
    """Number of points of SIGReg's integral, odd and at least 3; ``lejepa`` only."""

    def check(self, faults: Faults) -> None:
        """Adds every fault of this group to ``faults``."""
        if self.objective not in get_args(Objective):
            faults.need(False, "loss.objective", self.objective, f"one of {', '.join(get_args(Objective))}")
            return
        for name in ("temperature", "teacher_temperature", "teacher_temperature_start"):
            value = getattr(self, name)
            faults.need(0 < value < math.inf, f"loss.{name}", value, "above 0")
        for name in (
            "patch_weight",
            "koleo_weight",
            "redundancy_weight",
            "invariance_weight",
            "variance_weight",
            "covariance_weight",
            "queue",
            "sinkhorn_iterations",
        ):
            faults.need(getattr(self, name) >= 0, f"loss.{name}", getattr(self, name), "of at least 0")
        for name in ("teacher_warmup", "centre_momentum", "sigreg_weight"):
            faults.need(0 <= getattr(self, name) <= 1, f"loss.{name}", getattr(self, name), "in [0, 1]")
        for name in ("freeze_prototypes", "queue_start"):
            faults.need(0 <= getattr(self, name) < 1, f"loss.{name}", getattr(self, name), "in [0, 1)")
        faults.need(self.epsilon >= 0.025, "loss.epsilon", self.epsilon, "of at least 0.025", "The paper uses 0.05.")
        for name in ("whitening_size", "codes"):
            faults.need(getattr(self, name) >= 2, f"loss.{name}", getattr(self, name), "of at least 2")
        faults.need(self.slices >= 1, "loss.slices", self.slices, "of at least 1")
        faults.need(self.knots >= 3 and self.knots % 2 == 1, "loss.knots", self.knots, "that is odd and at least 3")


READ_BY: dict[str, tuple[str, ...]] = {
    "loss.temperature": ("simclr", "dcl", "nnclr", "moco_v2", "moco_v3", "swav", "dino"),
    "loss.negatives": ("simclr",),
    "loss.stop_gradient": ("simsiam", "ijepa"),
    "loss.queue": ("nnclr", "moco_v2", "swav"),
    "loss.queue_start": ("swav",),
    "loss.teacher_temperature": ("dino",),
    "loss.teacher_temperature_start": ("dino",),
    "loss.teacher_warmup": ("dino",),
    "loss.centre_momentum": ("dino",),
    "loss.patch_weight": ("dino",),
    "loss.koleo_weight": ("dino",),
    "loss.freeze_prototypes": ("swav", "dino"),
    "loss.epsilon": ("swav",),
    "loss.sinkhorn_iterations": ("swav",),
    "loss.redundancy_weight": ("barlow_twins",),
    "loss.invariance_weight": ("vicreg",),
    "loss.variance_weight": ("vicreg",),
    "loss.covariance_weight": ("vicreg",),
    "loss.whiten": ("w_mse",),
    "loss.whitening_size": ("w_mse",),
    "loss.normalise_targets": ("mae",),
    "loss.codes": ("beit",),
    "loss.sigreg_weight": ("lejepa",),
    "loss.slices": ("lejepa",),
    "loss.knots": ("lejepa",),
    "views.local_views": ("dino", "swav", "w_mse", "lejepa"),
    "views.second_blur": (*TWO_VIEWS, "dino", "swav", "w_mse", "lejepa"),
    "views.second_solarize": (*TWO_VIEWS, "dino", "swav", "w_mse", "lejepa"),
    "views.local_blur": ("dino", "swav", "w_mse", "lejepa"),
    "views.mask_ratio": ("mae", "simmim", "beit", "dino"),
    "views.mask_unit": ("simmim",),
    "views.target_blocks": ("ijepa",),
    "views.target_scale": ("ijepa",),
    "views.target_aspect": ("ijepa",),
    "views.context_scale": ("ijepa",),
    "model.projector_layers": _EMBED,
    "model.hidden": _EMBED,
    "model.dim": _EMBED,
    "model.projector_norm": _EMBED,
    "model.last_norm": _EMBED,
    "model.freeze_patch": _EMBED,
    "model.predictor_layers": _PREDICT,
    "model.predictor_hidden": _PREDICT,
    "model.predictor_last_norm": ("nnclr", "moco_v3"),
    "model.prototypes": ("swav", "dino"),
    "model.ema": WITH_TEACHER,
    "model.ema_final": WITH_TEACHER,
    "model.decoder_width": ("mae", "ijepa"),
    "model.decoder_depth": ("mae", "ijepa"),
    "model.decoder_heads": ("mae", "ijepa"),
}
"""The fields that not all methods read, and the methods that do."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """The config of a method; the defaults are SimCLR's ResNet-50 on ImageNet, 100 epochs."""

    data: DataConfig = field(default_factory=DataConfig)
    views: FamiliesViews = field(default_factory=FamiliesViews)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(
            # 0.075 x sqrt(4096) = 4.8, which is also 0.3 x 4096 / 256
            name="lars",
            lr=4.8,
            lr_start=0.0,
            lr_final=0.0,
            warmup_epochs=10.0,
            weight_decay=1e-4,
            weight_decay_final=1e-4,
            stretch=1.0,
            first_count=0,
            lr_in_momentum=True,
            clip=None,
        )
    )
    sync: SyncConfig = field(default_factory=SyncConfig)
    train: TrainConfig = field(default_factory=lambda: TrainConfig(epochs=100.0, batch_size=4096))
    eval: EvalConfig = field(default_factory=lambda: EvalConfig(probes=("knn", "linear")))

    def validate(self) -> None:
        """Raises ``ConfigError`` with a line for each fault."""
        faults = Faults()
        for group in (self.data, self.views, self.model, self.loss, self.optim, self.sync, self.train, self.eval):
            group.check(faults)
        sides = {"views.image_size": self.views.image_size, "data.image_size": self.data.image_size}
        small = {"views.local_size": self.views.local_size} if self.views.local_views else {}
        self.model.check_sides(faults, sides | small)
        if self.loss.objective in get_args(Objective):
            self._check_objective(faults)
        faults.raise_any()

    def _check_objective(self, faults: Faults) -> None:
        """Adds the faults of values that do not fit the method."""
        objective = self.loss.objective
        for path, readers in READ_BY.items():
            group, name = path.split(".")
            value, default = getattr(getattr(self, group), name), _default(type(getattr(self, group)), name)
            if objective not in readers and value != default:
                faults.add(
                    f"{path} = {value} has no use with loss.objective {objective}: leave it at {default}, or choose "
                    f"{_either(readers)}."
                )
        views, loss = self.views, self.loss
        batch = max(self.train.batch_size // max(self.train.accumulate, 1), 1)  # train.check refuses a batch of 0
        count = views.global_views + 1
        if objective in TWO_VIEWS:
            faults.need(
                count == 2, "views.global_views", views.global_views, "of 1", f"{objective} compares two views."
            )
        elif objective in ONE_VIEW:
            faults.need(count == 1, "views.global_views", views.global_views, "of 0", f"{objective} sees one view.")
        else:
            faults.need(
                views.global_views >= 1 or views.local_views >= 1,
                "views.global_views",
                views.global_views,
                "of at least 1",
                f"{objective} compares views.",
            )
        if objective in MASKED or loss.patch_weight > 0:
            fits = self.model.drops_patches and self.model.stem == "patch"
            who = f"loss.objective {objective}" if objective in MASKED else "loss.patch_weight above 0"
            faults.need(
                fits,
                "model.arch and model.stem",
                f"{self.model.arch}, {self.model.stem}",
                f"of a vit with stem patch: {who} hides patches",
            )
        if objective == "dino":
            hides, used = views.mask_ratio > 0, loss.patch_weight > 0
            allowed = "above 0 with loss.patch_weight above 0" if used else "of 0 with loss.patch_weight 0"
            faults.need(hides == used, "views.mask_ratio", views.mask_ratio, allowed, "iBOT hides 0.3.")
            faults.need(
                not used or self.model.pool == "cls",
                "model.pool",
                self.model.pool,
                "of cls with loss.patch_weight above 0",
                "iBOT compares the class tokens of views, and patches by themselves.",
            )
        if objective in ("mae", "simmim", "beit"):
            faults.need(
                views.mask_ratio > 0,
                "views.mask_ratio",
                views.mask_ratio,
                "above 0",
                "With 0 there is nothing to predict.",
            )
        if objective in MASKED and not faults.lines:
            self._check_mask(faults)
        if objective == "ijepa" and not loss.stop_gradient:
            own = self.model.ema == self.model.ema_final == 0
            allowed = "of 0 with loss.stop_gradient False: the encoder itself computes the targets"
            faults.need(own, "model.ema and model.ema_final", (self.model.ema, self.model.ema_final), allowed)
        if objective in ("moco_v2", "nnclr"):
            faults.need(loss.queue > 0, "loss.queue", loss.queue, f"above 0: {objective} compares with earlier images")
        if loss.queue:
            whole = loss.queue % batch == 0
            faults.need(whole, "loss.queue", loss.queue, f"that is a multiple of a micro-batch of {batch} images")
        if objective == "w_mse" and loss.whiten and loss.whitening_size >= 2:
            faults.need(
                batch % loss.whitening_size == 0,
                "loss.whitening_size",
                loss.whitening_size,
                f"that divides a micro-batch of {batch} images",
            )
            faults.need(
                loss.whitening_size > self.model.dim,
                "loss.whitening_size",
                loss.whitening_size,
                f"above model.dim = {self.model.dim}",
                "With fewer images than dimensions the covariance has no inverse.",
            )

    def _check_mask(self, faults: Faults) -> None:
        """Adds a fault if the mask leaves nothing visible or its squares do not tile the patches."""
        views = self.views
        grid = views.image_size // self.model.patch_size
        try:
            if self.loss.objective == "ijepa":
                masking.refuse_no_context(grid, views.target_blocks, views.target_scale, views.target_aspect)
            else:
                masking.hidden_count(grid, views.mask_ratio, unit=views.mask_unit)
        except ValueError as error:
            faults.add(f"The masks of {self.loss.objective} do not fit {grid} x {grid} patches: {error}")


def _default(group: type, name: str) -> Any:
    """The default value of a field of a config group."""
    found = next(each for each in fields(group) if each.name == name)
    return found.default if found.default is not MISSING else found.default_factory()


def _either(names: tuple[str, ...]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
