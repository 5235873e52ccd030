# SPDX-License-Identifier: Apache-2.0
"""Canonical correlation: views agree, and the statistics of the batch keep the embeddings from collapsing."""

from torch import Tensor

from recipes_lib.objectives.redundancy import vicreg_loss
from recipes_lib.pretraining.recipe import Method
from recipes_lib.recipes.families.ladder import small
from recipes_lib.recipes.families.network import Siamese
from recipes_lib.recipes.families.settings import Config, LossConfig


class VICReg(Siamese):
    """VICReg: views agree, each dimension varies over the batch, and no two dimensions are correlated.

    Source: Bardes, Ponce, LeCun, arXiv 2105.04906.
    """

    def forward(self, views: dict) -> dict[str, Tensor]:
        """The loss of one micro-batch and its parts. ``views`` is the output of :meth:`views`."""
        loss = self.config.loss
        return vicreg_loss(
            *self.embeddings(views),
            invariance_weight=loss.invariance_weight,
            variance_weight=loss.variance_weight,
            covariance_weight=loss.covariance_weight,
        )


METHODS: dict[str, type[Method]] = {"vicreg": VICReg}

PRESETS: dict[str, Config] = {**small(LossConfig(objective="vicreg"))}
