# SPDX-License-Identifier: Apache-2.0
"""LeJEPA: views agree, and the embeddings of every view are pushed towards a standard normal distribution."""

from dataclasses import replace

from torch import Tensor

from recipes_lib import randomness
from recipes_lib.config import DataConfig, OptimConfig, TrainConfig
from recipes_lib.data.loader import Batch
from recipes_lib.objectives.gauges import embedding_std
from recipes_lib.objectives.gaussian import lejepa_loss, random_directions
from recipes_lib.pretraining.recipe import Method
from recipes_lib.recipes.families.ladder import CONVNET, small
from recipes_lib.recipes.families.network import Siamese
from recipes_lib.recipes.families.settings import Config, FamiliesViews, LossConfig, ModelConfig


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

_ADAMW = OptimConfig(weight_decay=0.05, weight_decay_final=0.05, stretch=1.0, first_count=0, clip=None)

PRESETS: dict[str, Config] = {
    **small(LossConfig(objective="lejepa", slices=256), model=replace(CONVNET, projector_layers=3)),
    # The authors' minimal example: a folder of Imagenette, 90.7 linear after 200 minutes of one GPU (its page).
    # Its transformer has drop path 0.1 and a linear map to 512 before the projector; here it has neither.
    "lejepa_vits8_imagenette": Config(
        data=DataConfig(image_size=128),
        views=FamiliesViews(image_size=128, global_views=3, blur=0.5, solarize=0.2),
        model=ModelConfig(arch="vit_small", stem="patch", patch_size=8, projector_layers=3, dim=16),
        loss=LossConfig(objective="lejepa", sigreg_weight=0.02, slices=256),
        optim=replace(_ADAMW, lr=2e-3, lr_start=2e-5, lr_final=1e-3, warmup_epochs=1.0),
        train=TrainConfig(epochs=800.0, batch_size=256, precision="bf16"),
    ),
    # 77.1 linear (paper, section 6.4). Views, optimiser and loss are the README's; the text that we read does not say the
    # batch size, the projector's width and the warm-up: 512, that of the minimal example, and 10 epochs are ours.
    "lejepa_vitl14_imagenet": Config(
        views=FamiliesViews(
            global_scale=(0.3, 1.0),
            local_views=6,
            local_size=98,
            local_scale=(0.05, 0.3),
            brightness=0.4,
            contrast=0.4,
            saturation=0.2,
            hue=0.1,
            blur=0.5,
            solarize=0.2,
        ),
        model=ModelConfig(arch="vit_large", stem="patch", patch_size=14, projector_layers=3),
        loss=LossConfig(objective="lejepa"),
        optim=replace(_ADAMW, lr=5e-4, lr_start=0.0, lr_final=5e-7, warmup_epochs=10.0),
        train=TrainConfig(epochs=100.0, batch_size=512, precision="bf16"),
    ),
}
