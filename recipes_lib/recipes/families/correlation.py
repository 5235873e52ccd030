# SPDX-License-Identifier: Apache-2.0
"""Canonical correlation: views agree, and the statistics of the batch keep the embeddings from collapsing."""

from dataclasses import replace

from torch import Tensor

from recipes_lib.models import heads
from recipes_lib.objectives.gauges import embedding_std
from recipes_lib.objectives.redundancy import barlow_twins_loss, vicreg_loss
from recipes_lib.objectives.swapped import swav_loss
from recipes_lib.objectives.whitening import w_mse_loss
from recipes_lib.optim import groups
from recipes_lib.pretraining.recipe import Method
from recipes_lib.recipes.families.ladder import CONVNET, small
from recipes_lib.recipes.families.network import Siamese
from recipes_lib.recipes.families.settings import Config, LossConfig

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

    @property
    def least_batch(self) -> int:
        """Sinkhorn cannot use all prototypes equally often with fewer images, in batch and queue, than prototypes."""
        loss = self.config.loss
        return max(1, self.config.model.prototypes - loss.queue) if loss.sinkhorn_iterations else 1

    def forward(self, views: dict) -> dict[str, Tensor]:
        """The loss of one micro-batch and its parts. ``views`` is the output of :meth:`views`."""
        loss, z = self.config.loss, self.embeddings(views)
        parts = swav_loss(
            z,
            self.prototypes.weight,
            code_views=1 + self.config.views.global_views,
            temperature=loss.temperature,
            epsilon=loss.epsilon,
            sinkhorn_iterations=loss.sinkhorn_iterations,
        )
        return parts | {"std": embedding_std(z)}

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

PRESETS: dict[str, Config] = {
    **small(LossConfig(objective="barlow_twins"), model=replace(CONVNET, dim=256)),
    **small(LossConfig(objective="vicreg"), model=replace(CONVNET, dim=256)),
    **small(LossConfig(objective="swav"), model=replace(CONVNET, prototypes=64)),
    **small(LossConfig(objective="w_mse", whitening_size=128), model=replace(CONVNET, dim=32)),
}
