# SPDX-License-Identifier: Apache-2.0
"""Deep metric learning: a view must be nearer to the other view of its image than to views of other images."""

from torch import Tensor

from recipes_lib.objectives.contrastive import nt_xent
from recipes_lib.pretraining.recipe import Method
from recipes_lib.recipes.families.ladder import small
from recipes_lib.recipes.families.network import Siamese
from recipes_lib.recipes.families.settings import Config, LossConfig


class SimCLR(Siamese):
    """SimCLR: each view must find its partner among all views of the batch.

    Source: Chen et al., arXiv 2002.05709.
    """

    def forward(self, views: dict) -> dict[str, Tensor]:
        """The loss of one micro-batch and its parts. ``views`` is the output of :meth:`views`."""
        return nt_xent(*self.embeddings(views), temperature=self.config.loss.temperature)


METHODS: dict[str, type[Method]] = {"simclr": SimCLR}

PRESETS: dict[str, Config] = {
    **small(LossConfig(objective="simclr", temperature=0.2)),
    # 69.3 after 1,000 epochs is the paper's (card); the defaults of the config are its 100 epochs at batch 4,096.
    "simclr_rn50_imagenet": Config(),
}
