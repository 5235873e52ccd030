# SPDX-License-Identifier: Apache-2.0
"""LeJEPA: views agree, and the embeddings of every view are pushed towards a standard normal distribution."""

from dataclasses import replace

from torch import Tensor

from recipes_lib import randomness
from recipes_lib.data.loader import Batch
from recipes_lib.objectives.gauges import embedding_std
from recipes_lib.objectives.gaussian import lejepa_loss, random_directions
from recipes_lib.pretraining.recipe import Method
from recipes_lib.recipes.families.ladder import CONVNET, small
from recipes_lib.recipes.families.network import Siamese
from recipes_lib.recipes.families.settings import Config, LossConfig


class LeJEPA(Siamese):
    """LeJEPA: views agree with the mean of the global ones, and SIGReg makes every view's embeddings Gaussian.

    It has no teacher, no stop-gradient, no predictor and no negatives.

    Source: Balestriero, LeCun, arXiv 2511.08544.
    """

    def views(self, batch: Batch, step: int) -> dict[str, object]:
        """The views, and ``directions`` [dim, slices], drawn anew from ``(seed, step)``: the same on all ranks."""
        views = super().views(batch, step)
        generator = randomness.generator(self.config.train.seed, step, "slices")
        directions = random_directions(self.encoder.projector.out_dim, self.config.loss.slices, generator)
        return views | {"directions": directions.to(views["large"].device)}

    def forward(self, views: dict) -> dict[str, Tensor]:
        """The loss of one micro-batch and its parts. ``views`` is the output of :meth:`views`."""
        loss, z = self.config.loss, self.embeddings(views)
        parts = lejepa_loss(
            z,
            views["directions"],
            global_views=1 + self.config.views.global_views,
            weight=loss.sigreg_weight,
            knots=loss.knots,
        )
        return parts | {"std": embedding_std(z)}


METHODS: dict[str, type[Method]] = {"lejepa": LeJEPA}

PRESETS: dict[str, Config] = {
    **small(LossConfig(objective="lejepa", slices=256), model=replace(CONVNET, projector_layers=3)),
}
