# SPDX-License-Identifier: Apache-2.0
"""A classic pretext task: which way up is the image? It needs no second view, no negatives and no teacher."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recipes_lib.config import OptimConfig, TrainConfig
from recipes_lib.models import backbones
from recipes_lib.objectives.precision import at_least_float32
from recipes_lib.pretraining.recipe import Method
from recipes_lib.recipes.families.ladder import ONE_VIEW, small
from recipes_lib.recipes.families.network import FamilyMethod
from recipes_lib.recipes.families.settings import Config, LossConfig, ModelConfig


class Rotation(FamilyMethod):
    """RotNet: each view is shown in four rotations, and a linear layer on the features tells which is which.

    It can only learn from images that have an upright: photographs do, and objects that lie on a table have less of
    one. A network may also solve the task without any object, by the direction of light and shadows.

    Source: Gidaris, Singh, Komodakis, "Unsupervised Representation Learning by Predicting Image Rotations", arXiv
    1803.07728.
    """

    def __init__(self, config: Config, steps: int) -> None:
        super().__init__(config, steps)
        self.backbone = backbones.build(config.model, image_size=config.views.image_size)
        self.head = nn.Linear(self.backbone.num_features, 4)

    def forward(self, views: dict) -> dict[str, Tensor]:
        """The cross-entropy of one micro-batch, and the share of the rotations that were told rightly."""
        images = views["large"]  # [batch, 3, side, side]
        turned = torch.cat([images.rot90(quarters, dims=(2, 3)) for quarters in range(4)])  # [4 * batch, ...]
        turned = turned.contiguous(memory_format=self.layout)
        answers = torch.arange(4, device=images.device).repeat_interleave(len(images))
        logits = at_least_float32(self.head(self.backbone(turned)))  # [4 * batch, 4]
        right = (logits.detach().argmax(dim=1) == answers).to(logits.dtype).mean()
        return {"loss": F.cross_entropy(logits, answers), "rotation_accuracy": right}


METHODS: dict[str, type[Method]] = {"rotation": Rotation}

PRESETS: dict[str, Config] = {
    **small(
        LossConfig(objective="rotation"),
        views=ONE_VIEW,
        model=ModelConfig(arch="convnet"),
        laptop_model=ModelConfig(arch="resnet18", stem="cifar"),
    ),
    # The optimiser, crops and length of the authors' code. Their network is an AlexNet, which this house has not.
    "rotation_rn50_imagenet": replace(
        Config(),
        views=replace(Config().views, global_views=0, jitter=0.0, grayscale=0.0, blur=0.0),
        model=ModelConfig(),
        loss=LossConfig(objective="rotation"),
        optim=OptimConfig(
            name="sgd",  # with Nesterov momentum 0.9, as theirs
            lr=0.1,
            lr_start=0.1,
            lr_final=0.0,
            lr_drops=(15.0, 30.0, 45.0),
            warmup_epochs=0.0,
            weight_decay=5e-4,
            weight_decay_final=5e-4,
            stretch=1.0,
            first_count=0,
            clip=None,
        ),
        train=TrainConfig(epochs=50.0, batch_size=192),  # 768 rotated images a step
    ),
}
