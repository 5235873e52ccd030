# SPDX-License-Identifier: Apache-2.0
"""Canonical correlation: views agree, and the statistics of the batch keep the embeddings from collapsing."""

from dataclasses import replace

import torch
from torch import Tensor

from recipes_lib.config import DataConfig, OptimConfig, TrainConfig
from recipes_lib.distributed import collectives
from recipes_lib.models import heads
from recipes_lib.models.queue import Queue
from recipes_lib.objectives.gauges import embedding_std
from recipes_lib.objectives.redundancy import barlow_twins_loss, vicreg_loss
from recipes_lib.objectives.swapped import swav_loss
from recipes_lib.objectives.whitening import w_mse_loss
from recipes_lib.optim import groups
from recipes_lib.pretraining.recipe import Method
from recipes_lib.recipes.families.ladder import CONVNET, small
from recipes_lib.recipes.families.network import Siamese
from recipes_lib.recipes.families.settings import Config, FamiliesViews, LossConfig, ModelConfig

BIAS_LR = 0.0048 / 0.2
"""Barlow Twins' learning rate of biases and norms, as a share of that of weights."""


class BarlowTwins(Siamese):
    """Barlow Twins: the cross-correlation matrix of the two views' embeddings should be the identity.

    Source: Zbontar, Jing, Misra, LeCun, Deny, arXiv 2103.03230.
    """

    def forward(self, views: dict) -> dict[str, Tensor]:
        """The loss of one micro-batch and its parts. ``views`` is the output of :meth:`views`."""
        z = self.embeddings(views)
        parts = barlow_twins_loss(*z, redundancy_weight=self.config.loss.redundancy_weight)
        return parts | {"std": embedding_std(z)}

    def param_groups(self) -> list[dict]:
        """The optimiser's groups. With LARS, biases and norms have a learning rate of 0.024 times that of weights.

        LARS scales the steps of weights down to their norm, by a factor of a few thousandths, and leaves those of
        tensors of one dimension as they are.
        """
        both = super().param_groups()
        if self.config.optim.name == "lars":
            for group in both:
                group["lr_scale"] = 1.0 if group["decays"] else BIAS_LR
        return both


class VICReg(Siamese):
    """VICReg: views agree, each dimension varies over the batch, and no two dimensions are correlated.

    Source: Bardes, Ponce, LeCun, arXiv 2105.04906.
    """

    def forward(self, views: dict) -> dict[str, Tensor]:
        """The loss of one micro-batch and its parts. ``views`` is the output of :meth:`views`."""
        loss, z = self.config.loss, self.embeddings(views)
        parts = vicreg_loss(
            *z,
            invariance_weight=loss.invariance_weight,
            variance_weight=loss.variance_weight,
            covariance_weight=loss.covariance_weight,
        )
        return parts | {"std": embedding_std(z)}


class SwAV(Siamese):
    """SwAV: each view predicts which prototypes another view is assigned to; the assignments use all equally often.

    Source: Caron et al., arXiv 2006.09882.
    """

    def __init__(self, config: Config, steps: int) -> None:
        super().__init__(config, steps)
        dim = self.encoder.projector.out_dim
        self.prototypes = heads.Prototypes(config.model.prototypes, dim)
        # one queue for each view that gives codes, as in the authors' code
        count = 1 + config.views.global_views if config.loss.queue else 0
        self.queues = torch.nn.ModuleList(Queue(config.loss.queue, dim) for _ in range(count))

    @property
    def sinkhorn_prototypes(self) -> int:
        """The number of prototypes that the codes use equally often, less the queued images; 0 without Sinkhorn."""
        loss = self.config.loss
        return max(0, self.config.model.prototypes - loss.queue) if loss.sinkhorn_iterations else 0

    def forward(self, views: dict) -> dict[str, Tensor]:
        """The loss of one micro-batch and its parts; then the large views' embeddings enter the queues."""
        loss, z = self.config.loss, self.embeddings(views)
        parts = swav_loss(
            z,
            self.prototypes.weight,
            code_views=1 + self.config.views.global_views,
            temperature=loss.temperature,
            epsilon=loss.epsilon,
            sinkhorn_iterations=loss.sinkhorn_iterations,
            earlier=self._earlier(views["step"]),
        )
        for queue, view in zip(self.queues, z, strict=False):
            queue.push(view)
        return parts | {"std": embedding_std(z)}

    def _earlier(self, step: int) -> Tensor | None:
        """This rank's share of the queues, or ``None`` while they are not used or not yet full."""
        start, full = self.config.loss.queue_start * self.steps, self.config.loss.queue / self.config.train.batch_size
        if not self.queues or step < max(start, full):
            return None
        ranks, rank = collectives.world_size(), collectives.rank()
        return torch.stack([queue.rows[rank::ranks] for queue in self.queues])

    def param_groups(self) -> list[dict]:
        """The optimiser's groups: weights decay; biases, norms and prototypes do not; prototypes are frozen at first."""
        prototypes = {"params": [self.prototypes.weight], "decays": False, "frozen": self.config.loss.freeze_prototypes}
        return [*groups.decay_groups(self.encoder), prototypes]


class WMSE(Siamese):
    """W-MSE: views agree after whitening, which gives the embeddings of a sub-batch the covariance matrix I.

    Source: Ermolov, Siarohin, Sangineto, Sebe, arXiv 2007.06346.
    """

    def forward(self, views: dict) -> dict[str, Tensor]:
        """The loss of one micro-batch and its parts. ``views`` is the output of :meth:`views`."""
        loss, z = self.config.loss, self.embeddings(views)
        parts = w_mse_loss(z, whitening_size=loss.whitening_size, whiten_first=loss.whiten)
        return parts | {"std": embedding_std(z)}


METHODS: dict[str, type[Method]] = {"barlow_twins": BarlowTwins, "vicreg": VICReg, "swav": SwAV, "w_mse": WMSE}

# Barlow Twins and VICReg cut the same views. Batch norms see all ranks' images; biases and norms do not decay.
_VIEWS = FamiliesViews(
    brightness=0.4,
    contrast=0.4,
    saturation=0.2,
    hue=0.1,
    blur=1.0,
    second_blur=0.1,
    solarize=0.0,
    second_solarize=0.2,
)
_EXPANDER = ModelConfig(projector_layers=3, hidden=8192, dim=8192)


def _lars(peak: float, **changes: float) -> OptimConfig:
    """LARS as these papers use it: 10 epochs of warm-up, a cosine to a thousandth of the peak, weight decay 1e-6."""
    given = {"lr_start": 0.0, "lr_final": peak / 1000, "warmup_epochs": 10.0} | changes
    return OptimConfig(
        name="lars", lr=peak, weight_decay=1e-6, weight_decay_final=1e-6, stretch=1.0, first_count=0, clip=None, **given
    )


_TWO_CROPS_AND_SIX = FamiliesViews(
    global_scale=(0.14, 1.0), local_views=6, local_size=96, local_scale=(0.05, 0.14), blur=0.5
)
_SWAV = LossConfig(objective="swav", freeze_prototypes=1 / 400)
_CIFAR = FamiliesViews(
    image_size=32,
    global_views=3,
    global_scale=(0.2, 1.0),
    brightness=0.4,
    contrast=0.4,
    saturation=0.4,
    hue=0.1,
    grayscale=0.1,
    blur=0.0,
    normalize="cifar10",
)
_W_MSE_CIFAR = ModelConfig(arch="resnet18", stem="cifar", hidden=1024, dim=64)
# The paper's Adam has an L2 penalty of 1e-6, which AdamW decouples; at this size it hardly matters.
_W_MSE_ADAM = OptimConfig(
    lr=3e-3, lr_start=0.0, warmup_steps=500, weight_decay=1e-6, weight_decay_final=1e-6, stretch=1.0, clip=None
)

PRESETS: dict[str, Config] = {
    # Wide embeddings: VICReg's k-NN accuracy on held-out images was 0.51 with 64 dimensions and 0.64 with 256.
    **small(LossConfig(objective="barlow_twins"), model=replace(CONVNET, dim=256)),
    **small(LossConfig(objective="vicreg"), model=replace(CONVNET, dim=256)),
    # Sharp codes: with epsilon 0.05 they stay near uniform. k-NN accuracy on held-out images after 300 steps, with the
    # prototypes frozen for the first 30 %: 0.52 with 64 prototypes and epsilon 0.05, 0.59 with 32 and 0.03, 0.65 with 256
    # and 0.03; an untrained network has 0.50.
    **small(LossConfig(objective="swav", epsilon=0.03, freeze_prototypes=0.3), model=replace(CONVNET, prototypes=256)),
    # As many images in a sub-batch as in a batch, and a quarter as many dimensions.
    **small(
        LossConfig(objective="w_mse", whitening_size=128), model=replace(CONVNET, dim=32), laptop_model=_W_MSE_CIFAR
    ),
    # 4 views; 1,000 epochs. The code multiplies the learning rate by 0.2 at epochs 950 and 975, here it is divided by 10.
    "w_mse_rn18_cifar10": Config(
        data=DataConfig(name="cifar10", image_size=32),
        views=_CIFAR,
        model=_W_MSE_CIFAR,
        loss=LossConfig(objective="w_mse", whitening_size=128),
        optim=replace(_W_MSE_ADAM, lr_drops=(950.0, 975.0)),
        train=TrainConfig(epochs=1000.0, batch_size=256),
    ),
    # ImageNet-100: give the folder of these 100 classes. 2 views of 512 images, 240 epochs.
    "w_mse_rn18_imagenet100": Config(
        views=FamiliesViews(blur=0.5),
        model=ModelConfig(arch="resnet18", hidden=1024, dim=128),
        loss=LossConfig(objective="w_mse", whitening_size=256),
        optim=replace(_W_MSE_ADAM, lr=2e-3, lr_drops=(190.0, 215.0)),
        train=TrainConfig(epochs=240.0, batch_size=512),
    ),
    # 73.5 linear (README of the authors' code), about 7 days on 16 V100: 0.2 x 2048 / 256 = 1.6.
    "barlow_twins_rn50_imagenet": Config(
        views=_VIEWS,
        model=_EXPANDER,
        loss=LossConfig(objective="barlow_twins"),
        optim=_lars(1.6),
        train=TrainConfig(epochs=1000.0, batch_size=2048),
    ),
    # One machine of 8 GPUs: 0.3 x 512 / 256 = 0.6.
    "vicreg_rn50_100ep_imagenet": Config(
        views=_VIEWS,
        model=_EXPANDER,
        loss=LossConfig(objective="vicreg"),
        optim=_lars(0.6),
        train=TrainConfig(epochs=100.0, batch_size=512),
    ),
    # 73.2 linear (README of the authors' code), on 4 machines of 8 GPUs: 0.2 x 2048 / 256 = 1.6.
    "vicreg_rn50_imagenet": Config(
        views=_VIEWS,
        model=_EXPANDER,
        loss=LossConfig(objective="vicreg"),
        optim=_lars(1.6),
        train=TrainConfig(epochs=1000.0, batch_size=2048),
    ),
    # 74.3 linear (authors' README), 4 GPUs. 3,840 / 256 = 15 batches in the queue, from epoch 15 on; prototypes frozen for an epoch.
    "swav_rn50_b256_imagenet": Config(
        views=_TWO_CROPS_AND_SIX,
        loss=replace(_SWAV, queue=3840, queue_start=15 / 400),
        optim=_lars(0.6, warmup_epochs=0.0),
        train=TrainConfig(epochs=400.0, batch_size=256),
    ),
    # 74.6 linear (authors' README), 64 GPUs. Prototypes frozen for 313 steps, an epoch. The authors' LARS scales biases and norms too.
    "swav_rn50_imagenet": Config(
        views=_TWO_CROPS_AND_SIX,
        loss=_SWAV,
        optim=_lars(4.8, lr_start=0.3),
        train=TrainConfig(epochs=400.0, batch_size=4096),
    ),
}
