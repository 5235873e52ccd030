# SPDX-License-Identifier: Apache-2.0
"""Self-distillation: a network predicts what it, or an average of itself, says of another view of the image."""

import copy
from dataclasses import replace

import torch
from torch import Tensor, nn

from recipes_lib.models import heads
from recipes_lib.objectives import distillation
from recipes_lib.optim import groups, schedules
from recipes_lib.pretraining.recipe import Method
from recipes_lib.recipes.families.ladder import CONVNET, small
from recipes_lib.recipes.families.network import Siamese, Taught
from recipes_lib.recipes.families.settings import Config, LossConfig, ModelConfig


class BYOL(Taught):
    """BYOL: a predictor must find the embedding that the teacher, a moving average, gives the other view.

    Source: Grill et al., arXiv 2006.07733.
    Differs: the teacher starts with the encoder's weights; the authors' code draws it anew.
    """

    def __init__(self, config: Config, steps: int) -> None:
        super().__init__(config, steps)
        self.predictor = predictor(config.model, self.encoder.projector.out_dim)

    def forward(self, views: dict) -> dict[str, Tensor]:
        """The loss of one micro-batch and its parts. ``views`` is the output of :meth:`views`."""
        predictions = self.predictor(self.encoder(views["large"]))  # [2 * batch, dim]
        with torch.no_grad():  # the paper's stop-gradient
            targets = self.teacher(views["large"])  # [2 * batch, dim]
        return distillation.byol_loss(predictions.unflatten(0, (2, -1)), targets.unflatten(0, (2, -1)))


class SimSiam(Siamese):
    """SimSiam: BYOL without a teacher. The stop-gradient alone keeps the embeddings apart.

    Source: Chen, He, arXiv 2011.10566.
    Differs: the authors' code lets biases and batch norms decay too.
    """

    def __init__(self, config: Config, steps: int) -> None:
        super().__init__(config, steps)
        self.predictor = predictor(config.model, self.encoder.projector.out_dim)

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
    Differs: the prototypes are normalised at each use and have no learned length (``norm_last_layer`` of the authors'
    code); the gradient is clipped by its norm over all parameters, not of each.
    """

    def __init__(self, config: Config, steps: int) -> None:
        super().__init__(config, steps)
        model = config.model
        self.prototypes = heads.Prototypes(model.prototypes, self.encoder.projector.out_dim)
        self.teacher_prototypes = copy.deepcopy(self.prototypes).requires_grad_(False)
        self.register_buffer("centre", torch.zeros(model.prototypes))

    @property
    def backbone(self) -> nn.Module:
        """The teacher's backbone, which is evaluated and exported."""
        return self.teacher.backbone

    def embed(self, features: Tensor) -> Tensor:
        """The teacher's embeddings of its features.  [batch, features] -> [batch, dim]"""
        return self.teacher.projector(features)

    def forward(self, views: dict) -> dict[str, Tensor]:
        """The loss of one micro-batch and its parts. ``views`` is the output of :meth:`views`."""
        loss, large = self.config.loss, 1 + self.config.views.global_views
        embeddings = self.embeddings(views)  # [V, batch, dim]
        student = self.prototypes(embeddings.flatten(0, 1), 1.0).unflatten(0, (len(embeddings), -1))
        with torch.no_grad():  # the paper's stop-gradient
            teacher = self.teacher_prototypes(self.teacher(views["large"]), 1.0).unflatten(0, (large, -1))
        parts = distillation.dino_loss(
            student,
            teacher,
            self.centre,
            temperature=loss.temperature,
            teacher_temperature=self.teacher_temperature(views["step"]),
        )
        self.centre.copy_(distillation.moved_centre(self.centre, teacher, momentum=loss.centre_momentum))
        return {**parts, "std": distillation.spread(embeddings[:large])}

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
        return [
            *groups.decay_groups(self.encoder),
            {"params": [self.prototypes.weight], "decays": False, "frozen": self.config.loss.freeze_prototypes},
        ]


def predictor(model: ModelConfig, dim: int) -> heads.MLPHead:
    """The predictor: hidden layers with batch norm and ReLU, then a plain layer; with 0 layers the identity."""
    return heads.MLPHead(dim, model.predictor_hidden, dim, layers=model.predictor_layers)


METHODS: dict[str, type[Method]] = {"byol": BYOL, "simsiam": SimSiam, "dino": DINO}

PREDICTED = replace(CONVNET, predictor_layers=2, predictor_hidden=256)

PRESETS: dict[str, Config] = {
    **small(LossConfig(objective="byol"), model=replace(PREDICTED, ema=0.9)),
    **small(LossConfig(objective="simsiam"), model=replace(PREDICTED, last_norm=True)),
    **small(
        LossConfig(objective="dino", freeze_prototypes=0.1),
        model=replace(CONVNET, projector_layers=3, projector_norm="none", prototypes=64, ema=0.9),
    ),
}
