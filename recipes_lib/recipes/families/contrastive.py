# SPDX-License-Identifier: Apache-2.0
"""Deep metric learning: a view must be nearer to the other view of its image than to views of other images."""

from dataclasses import replace

import torch
from torch import Tensor

from recipes_lib.config import OptimConfig, TrainConfig
from recipes_lib.models.queue import Queue
from recipes_lib.objectives import contrastive
from recipes_lib.pretraining.recipe import Method
from recipes_lib.recipes.families.ladder import CONVNET, small
from recipes_lib.recipes.families.network import Siamese, Taught, predictor
from recipes_lib.recipes.families.settings import Config, FamiliesViews, LossConfig, ModelConfig


class SimCLR(Siamese):
    """SimCLR: each view must find its partner among all views of the batch.

    Source: Chen et al., arXiv 2002.05709.
    """

    def forward(self, views: dict) -> dict[str, Tensor]:
        """The loss of one micro-batch and its parts. ``views`` is the output of :meth:`views`."""
        loss = self.config.loss
        compare = contrastive.nt_xent if loss.negatives else contrastive.agreement
        return compare(*self.embeddings(views), temperature=loss.temperature)


class DCL(Siamese):
    """DCL: SimCLR whose loss has the partner in the numerator only.

    Source: Yeh et al., arXiv 2110.06848.
    """

    def forward(self, views: dict) -> dict[str, Tensor]:
        """The loss of one micro-batch and its parts. ``views`` is the output of :meth:`views`."""
        return contrastive.dcl_loss(*self.embeddings(views), temperature=self.config.loss.temperature)


class NNCLR(Siamese):
    """NNCLR: the positive of a view is the nearest of the earlier images' embeddings, not the view itself.

    Source: Dwibedi et al., arXiv 2104.14548.
    """

    def __init__(self, config: Config, steps: int) -> None:
        super().__init__(config, steps)
        self.predictor = predictor(config, self.encoder.projector.out_dim)
        self.queue = Queue(config.loss.queue, self.encoder.projector.out_dim)

    def forward(self, views: dict) -> dict[str, Tensor]:
        """The loss of one micro-batch and its parts; then the first views' embeddings enter the queue."""
        z = self.embeddings(views)  # [2, batch, dim]
        p = self.predictor(z.flatten(0, 1)).unflatten(0, (2, -1))
        parts = contrastive.nnclr_loss(
            (z[0], z[1]), (p[0], p[1]), self.queue.rows, temperature=self.config.loss.temperature
        )
        self.queue.push(z[0])
        return parts


class MoCoV2(Taught):
    """MoCo v2: a query must find the teacher's embedding of its image's other view among those of earlier images.

    Source: He et al., arXiv 1911.05722, with the projector, views and schedule of Chen et al., arXiv 2003.04297.
    Differs: batch norms take their statistics from all ranks' images; the authors shuffle the keys between ranks, so that
    a query and its key are not normalised by the statistics of the same images. Here they are: a small batch may give
    the key away, because the keys in the queue were normalised by those of other batches.
    """

    def __init__(self, config: Config, steps: int) -> None:
        super().__init__(config, steps)
        self.queue = Queue(config.loss.queue, self.encoder.projector.out_dim)

    def forward(self, views: dict) -> dict[str, Tensor]:
        """The loss of one micro-batch and its parts; then the keys enter the queue."""
        first, second = views["large"].chunk(2)
        queries = self.encoder(first)
        with torch.no_grad():
            keys = self.teacher(second)
        parts = contrastive.info_nce(queries, keys, temperature=self.config.loss.temperature, queue=self.queue.rows)
        self.queue.push(keys)
        return parts


class MoCoV3(Taught):
    """MoCo v3: a prediction must find the teacher's embedding of its image's other view among those of the batch.

    Source: Chen, Xie, He, arXiv 2104.02057.
    Differs: the authors' code moves the teacher at the start of a step, with the momentum of its epoch. Here the teacher
    moves at the end of the step before, with the momentum of that step.
    """

    def __init__(self, config: Config, steps: int) -> None:
        super().__init__(config, steps)
        self.predictor = predictor(config, self.encoder.projector.out_dim)

    def forward(self, views: dict) -> dict[str, Tensor]:
        """The loss of one micro-batch, the sum over the two directions times 2 tau, and its parts (their means)."""
        temperature = self.config.loss.temperature
        queries = self.predictor(self.encoder(views["large"])).chunk(2)
        with torch.no_grad():
            keys = self.teacher(views["large"]).chunk(2)
        parts = [
            contrastive.info_nce(query, key, temperature=temperature)
            for query, key in zip(queries, reversed(keys), strict=True)
        ]
        # the factor keeps the gradient's size when the temperature changes, as in the authors' code
        loss = 2 * temperature * (parts[0].pop("loss") + parts[1].pop("loss"))
        return {"loss": loss, **{name: (parts[0][name] + parts[1][name]) / 2 for name in parts[0]}}


METHODS: dict[str, type[Method]] = {
    "simclr": SimCLR,
    "dcl": DCL,
    "nnclr": NNCLR,
    "moco_v2": MoCoV2,
    "moco_v3": MoCoV3,
}

PREDICTED = replace(CONVNET, predictor_layers=2, predictor_hidden=256)
_LAPTOP = ModelConfig(arch="resnet18", stem="cifar", hidden=512, dim=128)

# MoCo's views: larger crops than SimCLR's and half of its jitter.
_MOCO_VIEWS = FamiliesViews(global_scale=(0.2, 1.0), brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
# BYOL's, which MoCo v3 shares but for its crops: one view is always blurred, the other seldom, and solarized at times.
_MOCO_V3_VIEWS = replace(_MOCO_VIEWS, saturation=0.2, blur=1.0, second_blur=0.1, second_solarize=0.2)
_PLAIN = {"lr_final": 0.0, "stretch": 1.0, "first_count": 0, "clip": None}

# A teacher of the mean of 20 steps: with the paper's 0.999 it would hardly leave its start in 300 steps. So fast a teacher
# makes keys old soon: with a queue of 1,024 k-NN on held-out training images was .05 lower than with two batches.
_MOCO_V2 = small(
    LossConfig(objective="moco_v2", temperature=0.2, queue=256),
    model=replace(CONVNET, ema=0.95, ema_final=0.95),
    laptop_model=replace(_LAPTOP, ema=0.99, ema_final=0.99),
)

PRESETS: dict[str, Config] = {
    **small(LossConfig(objective="simclr", temperature=0.2)),
    **small(LossConfig(objective="dcl", temperature=0.2)),
    # 1,024 earlier images are eight batches; the paper's queue is a small part of its data, and so is this one.
    **small(
        LossConfig(objective="nnclr", queue=1024),
        model=PREDICTED,
        laptop_model=replace(_LAPTOP, predictor_layers=2, predictor_hidden=512),
    ),
    **_MOCO_V2,
    "moco_v2_laptop": replace(_MOCO_V2["moco_v2_laptop"], loss=replace(_MOCO_V2["moco_v2_laptop"].loss, queue=4096)),
    **small(
        LossConfig(objective="moco_v3", temperature=0.2),
        model=replace(PREDICTED, last_norm=True, ema=0.95),
        laptop_model=replace(_LAPTOP, last_norm=True, predictor_layers=2, predictor_hidden=512, ema=0.99),
    ),
    # Linear accuracy 64.5 by the README of the authors' code. The config's defaults are this run.
    "simclr_rn50_imagenet": Config(),
    # 68.2 by the paper's abstract: 200 epochs, batch 256. Its learning rate was not read: 0.075 x sqrt(256) is SimCLR's.
    "dcl_rn50_imagenet": replace(
        Config(),
        loss=LossConfig(objective="dcl"),
        optim=replace(Config().optim, lr=1.2),
        train=TrainConfig(epochs=200.0, batch_size=256),
    ),
    # The heads are the paper's (its batch norms have a learned scale in the last layer of the projector, too). Its
    # optimiser, queue, batch and length were not read: they are SimCLR's, the queue has 24 batches.
    "nnclr_rn50_imagenet": replace(
        Config(),
        model=ModelConfig(projector_layers=3, dim=256, last_norm=True, predictor_layers=2),
        loss=LossConfig(objective="nnclr", queue=98_304),
        train=TrainConfig(epochs=1000.0, batch_size=4096),
    ),
    # Linear accuracy 67.5 by the README of the authors' code. Theirs decays norms and biases too; their projector has ReLU
    # where ours has GELU.
    "moco_v2_rn50_imagenet": replace(
        Config(),
        views=_MOCO_VIEWS,
        model=ModelConfig(projector_norm="none", ema=0.999, ema_final=0.999),
        loss=LossConfig(objective="moco_v2", temperature=0.2, queue=65_536),
        optim=OptimConfig(
            name="sgd",
            nesterov=False,
            lr=0.03,
            lr_start=0.03,
            warmup_epochs=0.0,
            weight_decay=1e-4,
            weight_decay_final=1e-4,
            **_PLAIN,
        ),
        train=TrainConfig(epochs=200.0, batch_size=256),
    ),
    # Linear accuracy 68.9 by the authors' code. 0.6 x 4096 / 256 = 9.6
    "moco_v3_rn50_imagenet": replace(
        Config(),
        views=_MOCO_V3_VIEWS,
        model=ModelConfig(hidden=4096, dim=256, last_norm=True, predictor_layers=2, ema=0.99),
        loss=LossConfig(objective="moco_v3", temperature=1.0),
        optim=OptimConfig(
            name="lars",
            lr=9.6,
            lr_start=0.0,
            warmup_epochs=10.0,
            weight_decay=1e-6,
            weight_decay_final=1e-6,
            **_PLAIN,
        ),
        train=TrainConfig(epochs=100.0, batch_size=4096),
    ),
    # Linear accuracy 73.2 by the authors' code. Their ViT-S has 12 heads of 32 dimensions and fixed sine-cosine
    # positions, ours 6 heads of 64 and learned ones. 1.5e-4 x 4096 / 256 = 2.4e-3
    "moco_v3_vits16_imagenet": replace(
        Config(),
        views=replace(_MOCO_V3_VIEWS, global_scale=(0.08, 1.0)),
        model=ModelConfig(
            arch="vit_small",
            stem="patch",
            projector_layers=3,
            hidden=4096,
            dim=256,
            last_norm=True,
            predictor_layers=2,
            predictor_last_norm=True,
            freeze_patch=True,
            ema=0.99,
        ),
        loss=LossConfig(objective="moco_v3", temperature=0.2),
        optim=OptimConfig(
            lr=2.4e-3, lr_start=0.0, warmup_epochs=40.0, weight_decay=0.1, weight_decay_final=0.1, **_PLAIN
        ),
        train=TrainConfig(epochs=300.0, batch_size=4096),
    ),
}
