# SPDX-License-Identifier: Apache-2.0
"""Self-distillation: a network predicts what it, or an average of itself, says of another view of the image."""

import copy
from dataclasses import replace

import torch
from torch import Tensor, nn

from recipes_lib import randomness
from recipes_lib.config import EvalConfig, OptimConfig, TrainConfig
from recipes_lib.data.loader import Batch
from recipes_lib.models import heads
from recipes_lib.objectives import distillation
from recipes_lib.objectives.gauges import embedding_std
from recipes_lib.optim import groups, schedules
from recipes_lib.pretraining.recipe import Method
from recipes_lib.recipes.families.ladder import CONVNET, VIEWS, VIT, small
from recipes_lib.recipes.families.network import Siamese, Taught, predictor
from recipes_lib.recipes.families.settings import Config, FamiliesViews, LossConfig, ModelConfig
from recipes_lib.views import masking

MASKED_VIEWS = 0.5
"""Share of the large views of which iBOT hides patches: its authors' command draws the ratio 0 as often as 0.3."""


class BYOL(Taught):
    """BYOL: a predictor must find the embedding that the teacher, a moving average, gives the other view.

    Source: Grill et al., arXiv 2006.07733.
    Differs: the teacher starts with the encoder's weights, while the authors' code draws it anew; both views share
    their batch statistics, while theirs computes them view by view.
    """

    def __init__(self, config: Config, steps: int) -> None:
        super().__init__(config, steps)
        self.predictor = predictor(config, self.encoder.projector.out_dim)

    def forward(self, views: dict) -> dict[str, Tensor]:
        """The loss of one micro-batch and its parts. ``views`` is the output of :meth:`views`."""
        predictions = self.predictor(self.encoder(views["large"]))  # [2 * batch, dim]
        with torch.no_grad():  # the paper's stop-gradient
            targets = self.teacher(views["large"])  # [2 * batch, dim]
        return distillation.byol_loss(predictions.unflatten(0, (2, -1)), targets.unflatten(0, (2, -1)))


class SimSiam(Siamese):
    """SimSiam: BYOL without a teacher. The stop-gradient alone keeps the embeddings apart.

    Source: Chen, He, arXiv 2011.10566.
    Differs: both views share their batch statistics, while the authors' code computes them view by view; it also lets
    biases and batch norms decay.
    """

    def __init__(self, config: Config, steps: int) -> None:
        super().__init__(config, steps)
        self.predictor = predictor(config, self.encoder.projector.out_dim)

    def forward(self, views: dict) -> dict[str, Tensor]:
        """The loss of one micro-batch and its parts. ``views`` is the output of :meth:`views`."""
        embeddings = self.encoder(views["large"])  # [2 * batch, dim]
        predictions = self.predictor(embeddings)
        return distillation.simsiam_loss(
            predictions.unflatten(0, (2, -1)),
            embeddings.unflatten(0, (2, -1)),
            stop_gradient=self.config.loss.stop_gradient,
        )

    def param_groups(self) -> list[dict]:
        """The optimiser's groups; the predictor's learning rate stays at its peak, so that it keeps up (Sec. 4.2)."""
        ahead = [group | {"constant_lr": True} for group in groups.decay_groups(self.predictor)]
        return [*groups.decay_groups(self.encoder), *ahead]


class DINO(Taught):
    """DINO: student and teacher assign views to prototypes; the student must assign as the teacher does.

    The teacher's logits are centred, so that no prototype takes all images, and sharpened, so that not all prototypes
    take the same share. The teacher is evaluated.

    Source: Caron et al., arXiv 2104.14294.
    Options: iBOT's loss on patches (Zhou et al., arXiv 2111.07832; ``loss.patch_weight``), with one head for views and
    patches; KoLeo on the features of the large views (``loss.koleo_weight``), as in DINOv2 (Oquab et al., arXiv
    2304.07193); registers (``model.registers``).
    Differs: the prototypes have no learned length (``norm_last_layer`` of the authors' code) and do not decay; the
    gradient is clipped by its norm over all parameters, not of each; no block is dropped (their drop path is 0.1).
    iBOT's code draws the share of hidden patches of a view from 0.1 to 0.5; here it is ``views.mask_ratio`` for all.
    """

    def __init__(self, config: Config, steps: int) -> None:
        super().__init__(config, steps)
        model = config.model
        self.prototypes = heads.Prototypes(model.prototypes, self.encoder.projector.out_dim)
        self.teacher_prototypes = copy.deepcopy(self.prototypes).requires_grad_(False)
        self.register_buffer("centre", torch.zeros(model.prototypes))
        if config.loss.patch_weight > 0:
            self.mask_token = nn.Parameter(torch.zeros(self.encoder.backbone.num_features))
            self.register_buffer("patch_centre", torch.zeros(model.prototypes))

    @property
    def backbone(self) -> nn.Module:
        """The teacher's backbone, which is evaluated and exported."""
        return self.teacher.backbone

    def embed(self, features: Tensor) -> Tensor:
        """The teacher's embeddings of its features.  [batch, features] -> [batch, dim]"""
        return self.teacher.projector(features)

    def views(self, batch: Batch, step: int) -> dict[str, object]:
        """Adds ``masked`` to the views: the patches of the large views that iBOT's student does not see, or ``None``.

        Shapes: bool [V * batch, N], view-major. Half of the views hide the share ``views.mask_ratio`` in blocks.
        """
        views, masked = super().views(batch, step), None
        if self.config.loss.patch_weight > 0:
            ways = self.config.views
            keys = randomness.sample_keys(self.config.train.seed, batch.epoch, batch.indices)
            masked = torch.cat([self._mask(randomness.sample_keys(i, 0, keys)) for i in range(1 + ways.global_views)])
        return views | {"masked": masked}

    def _mask(self, keys: Tensor) -> Tensor:
        grid = self.config.views.image_size // self.config.model.patch_size
        blocks = masking.block_mask(keys, grid, max(1, round(self.config.views.mask_ratio * grid**2)))  # [batch, N]
        return blocks & (randomness.uniform(keys, "view is masked", 1) < MASKED_VIEWS)

    def forward(self, views: dict) -> dict[str, Tensor]:
        """The loss of one micro-batch and its parts. ``views`` is the output of :meth:`views`."""
        loss, large = self.config.loss, 1 + self.config.views.global_views
        features, patches = self.features(self.encoder.backbone, views["large"], views["masked"])
        embeddings = [self.encoder.projector(features)]  # one call per resolution
        if views["small"] is not None:
            embeddings.append(self.encoder(views["small"]))
        student = self.prototypes(torch.cat(embeddings), 1.0)  # [V * batch, prototypes]
        with torch.no_grad():  # the paper's stop-gradient
            seen, seen_patches = self.features(self.teacher.backbone, views["large"])
            teacher = self.teacher_prototypes(self.teacher.projector(seen), 1.0).unflatten(0, (large, -1))
        temperatures = {
            "temperature": loss.temperature,
            "teacher_temperature": self.teacher_temperature(views["step"]),
        }
        parts = distillation.dino_loss(
            student.unflatten(0, (-1, teacher.shape[1])), teacher, self.centre, **temperatures
        )
        total = parts["loss"]
        self.centre.copy_(distillation.moved_centre(self.centre, teacher, momentum=loss.centre_momentum))
        if patches is not None:
            patch = self.patch_loss(patches, seen_patches, views["masked"], temperatures)
            total = total + loss.patch_weight * patch
            parts["patch"] = patch.detach()
        if loss.koleo_weight > 0:  # neighbours are other images, so each view has its own term
            koleo = sum(distillation.koleo_loss(view) for view in features.unflatten(0, (large, -1)))
            total = total + loss.koleo_weight * koleo
            parts["koleo"] = koleo.detach()
        return {**parts, "loss": total, "std": embedding_std(embeddings[0].unflatten(0, (large, -1)))}

    def features(
        self, backbone: nn.Module, images: Tensor, masked: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """The features [B, D] of images and, if iBOT's term is asked for, those of their patches [B, N, D]."""
        if self.config.loss.patch_weight == 0:
            return backbone(images), None
        tokens = backbone.tokens(images, masked=masked, mask_token=None if masked is None else self.mask_token)
        return tokens[:, 0], tokens[:, backbone.num_prefix_tokens :]

    def patch_loss(self, patches: Tensor, seen: Tensor, masked: Tensor, temperatures: dict[str, float]) -> Tensor:
        """iBOT's loss on patches, with the head of the views and a centre of their own, which it moves."""
        student = self.prototypes(self.encoder.projector(patches.flatten(0, 1)), 1.0).unflatten(0, masked.shape)
        with torch.no_grad():  # the paper's stop-gradient
            teacher = self.teacher_prototypes(self.teacher.projector(seen.flatten(0, 1)), 1.0).unflatten(
                0, masked.shape
            )
        loss = distillation.ibot_patch_loss(student, teacher, self.patch_centre, masked, **temperatures)["loss"]
        momentum = self.config.loss.centre_momentum
        self.patch_centre.copy_(distillation.moved_centre(self.patch_centre, teacher, momentum=momentum))
        return loss

    def teacher_temperature(self, step: int) -> float:
        """The teacher's temperature at ``step``: it rises over the first steps, because a high one collapses early."""
        loss = self.config.loss
        return schedules.linear(
            step, loss.teacher_temperature_start, loss.teacher_temperature, loss.teacher_warmup * self.steps
        )

    def after_step(self, step: int) -> None:
        """Moves the teacher's parameters and prototypes towards the student's."""
        super().after_step(step)
        self.follow(self.teacher_prototypes, self.prototypes, step)

    def param_groups(self) -> list[dict]:
        """The optimiser's groups: weights decay; biases, norms and prototypes do not. The prototypes stand still first."""
        mask_token = [self.mask_token] if self.config.loss.patch_weight > 0 else []
        return [
            *groups.decay_groups(self.encoder),
            *({"params": [token], "decays": False} for token in mask_token),
            {"params": [self.prototypes.weight], "decays": False, "frozen": self.config.loss.freeze_prototypes},
        ]


METHODS: dict[str, type[Method]] = {"byol": BYOL, "simsiam": SimSiam, "dino": DINO}

PREDICTED = replace(CONVNET, predictor_layers=2, predictor_hidden=256)
TOY_HEAD = {"projector_layers": 3, "projector_norm": "none", "prototypes": 64}


_PLAIN = {"lr_start": 0.0, "stretch": 1.0, "first_count": 0}
"""The schedules of these papers start at 0, count from 0 and end with the run."""
_BYOL_VIEWS = FamiliesViews(
    brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, blur=1.0, second_blur=0.1, second_solarize=0.2
)
_DINO_VIEWS = replace(_BYOL_VIEWS, global_scale=(0.4, 1.0), local_views=8, local_scale=(0.05, 0.4), local_blur=0.5)
_DINO_HEAD = {"projector_layers": 3, "hidden": 2048, "dim": 256, "projector_norm": "none", "prototypes": 65_536}
_DINO = Config(
    views=_DINO_VIEWS,
    model=ModelConfig(arch="vit_small", stem="patch", **_DINO_HEAD),
    loss=LossConfig(objective="dino", freeze_prototypes=0.01),  # 1 of 100 epochs
    # 5e-4 x 512 / 256
    optim=OptimConfig(lr=1e-3, lr_final=1e-6, warmup_epochs=10.0, **_PLAIN),
    train=TrainConfig(epochs=100.0, batch_size=512),  # 8 GPUs x 64 images
    eval=EvalConfig(probes=("knn", "linear")),
)

_BYOL_SMALL = small(LossConfig(objective="byol"), model=replace(PREDICTED, ema=0.5, ema_final=0.9, last_norm=True))
_DINO_SMALL = small(
    LossConfig(objective="dino", freeze_prototypes=0.1), model=replace(CONVNET, ema=0.9, **TOY_HEAD), simmer_steps=3000
)

PRESETS: dict[str, Config] = {
    # Not the paper's: a momentum of 0.5 to 0.9, since with 0.996 the teacher would average over 1 / (1 - 0.996) = 250 of
    # the 300 steps; and a batch norm behind the projector. With 0.9 to 1, and with or without that norm, k-NN on held-out
    # training images stayed below that of the network before training.
    **_BYOL_SMALL,
    # In 1,000 steps a slower teacher fits: k-NN on held-out training images is 0.71, and 0.68 with 0.99 to 1.
    "byol_simmer": replace(
        _BYOL_SMALL["byol_simmer"], model=replace(_BYOL_SMALL["byol_simmer"].model, ema=0.9, ema_final=0.99)
    ),
    **small(LossConfig(objective="simsiam"), model=replace(PREDICTED, last_norm=True)),
    **_DINO_SMALL,
    # It needs more steps than the others. k-NN on held-out training images, with this rate, head and temperature: 0.46 after
    # 1,000 steps and 0.66 after 3,000; at most 0.44 in all runs of 300. The untrained network has 0.50.
    "dino_simmer": replace(
        _DINO_SMALL["dino_simmer"],
        model=replace(_DINO_SMALL["dino_simmer"].model, projector_norm="batch"),
        loss=replace(_DINO_SMALL["dino_simmer"].loss, teacher_temperature=0.02, teacher_temperature_start=0.02),
        optim=replace(_DINO_SMALL["dino_simmer"].optim, lr=1e-3),
    ),
    **small(
        LossConfig(objective="dino", freeze_prototypes=0.1, patch_weight=1.0),
        views=replace(VIEWS, mask_ratio=0.3),
        model=replace(VIT, ema=0.9, **TOY_HEAD),
        name="ibot",
    ),
    # 1,000 epochs of 4,096 images; the authors' code says 74.0 to 74.5 after 8 hours on 512 TPU cores (v3). Their presets
    # for 100 and 300 epochs: lr 7.2 and 4.8, decay 1e-6, momentum of the teacher 0.99.
    "byol_rn50_imagenet": Config(
        views=_BYOL_VIEWS,
        model=ModelConfig(hidden=4096, dim=256, predictor_layers=2),
        loss=LossConfig(objective="byol"),
        # 0.2 x 4096 / 256
        optim=OptimConfig(
            name="lars",
            lr=3.2,
            lr_final=0.0,
            warmup_epochs=10.0,
            weight_decay=1.5e-6,
            weight_decay_final=1.5e-6,
            clip=None,
            **_PLAIN,
        ),
        train=TrainConfig(epochs=1000.0, batch_size=4096),
        eval=EvalConfig(probes=("knn", "linear")),
    ),
    # 100 epochs of 512 images on 8 V100 reach 68.1 (the authors' code, with the predictor's rate held constant).
    "simsiam_rn50_imagenet": Config(
        views=FamiliesViews(global_scale=(0.2, 1.0), brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1),
        model=ModelConfig(projector_layers=3, dim=2048, last_norm=True, predictor_layers=2, predictor_hidden=512),
        loss=LossConfig(objective="simsiam"),
        # 0.05 x 512 / 256, without warm-up
        optim=OptimConfig(
            name="sgd",
            nesterov=False,
            lr=0.1,
            lr_final=0.0,
            warmup_epochs=0.0,
            weight_decay=1e-4,
            weight_decay_final=1e-4,
            clip=None,
            **_PLAIN,
        ),
        train=TrainConfig(epochs=100.0, batch_size=512),
        eval=EvalConfig(probes=("knn", "linear")),
    ),
    # The command for one node: 100 epochs in 1.75 days of 8 GPUs, 69.3 with k-NN, 74.0 linear. 300 epochs of 1,024 images
    # and a teacher's temperature that rises from 0.04 to 0.07 over 30 of them reach 73.3 and 76.0 (the authors' code).
    "dino_vits16_imagenet": _DINO,
    # The authors' command for a ResNet-50, also 100 epochs. The network that they released reaches 67.5 with k-NN and 75.3
    # linear.
    "dino_rn50_imagenet": replace(
        _DINO,
        views=replace(_DINO_VIEWS, global_scale=(0.14, 1.0), local_scale=(0.05, 0.14)),
        model=ModelConfig(**_DINO_HEAD),
        # 0.03 x 512 / 256
        optim=OptimConfig(
            name="sgd",
            nesterov=False,
            lr=0.06,
            lr_final=1e-6,
            warmup_epochs=10.0,
            weight_decay=1e-4,
            weight_decay_final=1e-4,
            **_PLAIN,
        ),
    ),
    # 800 epochs of 1,024 images on 16 GPUs: 75.2 with k-NN, 77.9 linear, 82.3 fine-tuned (the authors' code).
    "ibot_vits16_imagenet": replace(
        _DINO,
        views=replace(_DINO_VIEWS, global_scale=(0.25, 1.0), local_views=10, local_scale=(0.05, 0.25), mask_ratio=0.3),
        model=replace(_DINO.model, prototypes=8192),
        # 30 of 800 epochs of warm-up for the temperature, and 1 of 800 with frozen prototypes
        loss=LossConfig(
            objective="dino",
            patch_weight=1.0,
            teacher_temperature=0.07,
            teacher_warmup=0.0375,
            freeze_prototypes=0.00125,
        ),
        optim=replace(_DINO.optim, lr=2e-3),  # 5e-4 x 1024 / 256
        train=TrainConfig(epochs=800.0, batch_size=1024),
    ),
}
