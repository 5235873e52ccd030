# SPDX-License-Identifier: Apache-2.0
"""What the methods of the families share: a backbone, a projector, the views, and for some a teacher."""

import copy
from dataclasses import replace

import torch
from torch import Tensor, nn

from recipes_lib.data.loader import Batch, Crop
from recipes_lib.models import backbones, heads
from recipes_lib.optim import groups, schedules
from recipes_lib.pretraining.recipe import Method, Teaching
from recipes_lib.recipes.families.settings import Config, FamiliesViews
from recipes_lib.views.multicrop import MultiCrop


class Encoder(nn.Module):
    """A backbone and its projector.  [batch, 3, side, side] -> [batch, dim]"""

    def __init__(self, config: Config) -> None:
        super().__init__()
        model = config.model
        self.backbone = backbones.build(model, image_size=config.views.image_size)
        if model.freeze_patch:
            self.backbone.patch_embed.requires_grad_(False)
        self.projector = heads.MLPHead(
            self.backbone.num_features,
            model.hidden,
            model.dim,
            layers=model.projector_layers,
            norm=model.projector_norm,
            last_norm=model.last_norm,
        )

    def forward(self, images: Tensor) -> Tensor:
        """The embeddings of views of one size.  [batch, 3, side, side] -> [batch, dim]"""
        return self.projector(self.backbone(images))


class FamilyMethod(Method):
    """A method of the families: it has a config, the total number of steps, and cuts the config's views."""

    def __init__(self, config: Config, steps: int) -> None:
        super().__init__()
        self.config, self.steps = config, steps
        ways = config.views
        # a convolution on a CPU is a quarter faster if the channels of a pixel lie side by side
        self.layout = torch.contiguous_format if config.model.has_blocks else torch.channels_last
        self._crop = MultiCrop(ways, config.train.seed, second=second_look(ways), local=local_look(ways))

    @property
    def crop_one(self) -> Crop:
        """Cuts the views of one image file in a loader's worker process."""
        return self._crop.crop_one

    def views(self, batch: Batch, step: int) -> dict[str, object]:
        """Cuts the views of a batch, from ``(seed, epoch, index)``, and adds the step's number.

        ``large`` [V * batch, 3, side, side] and ``small`` (or ``None``), both view-major; ``step`` an integer, for
        schedules inside the loss.
        """
        views = self._crop(batch)
        count = 1 + self.config.views.global_views
        large, small = (
            torch.cat(some).contiguous(memory_format=self.layout) if some else None
            for some in (views[:count], views[count:])
        )
        return {"large": large, "small": small, "step": step}


class Siamese(FamilyMethod):
    """A method whose loss compares embeddings of the views, all computed by one encoder."""

    def __init__(self, config: Config, steps: int) -> None:
        super().__init__(config, steps)
        self.encoder = Encoder(config)

    @property
    def backbone(self) -> nn.Module:
        """The backbone, which is evaluated and exported."""
        return self.encoder.backbone

    def embed(self, features: Tensor) -> Tensor:
        """The embeddings of the evaluated backbone's features.  [batch, features] -> [batch, dim]"""
        return self.encoder.projector(features)

    def embeddings(self, views: dict) -> Tensor:
        """The embeddings of all views, large ones first: [V, batch, dim], one encoder call per resolution."""
        large = self.encoder(views["large"])
        count = 1 + self.config.views.global_views
        z = large.unflatten(0, (count, -1))  # [count, batch, dim]
        if views["small"] is None:
            return z
        return torch.cat([z, self.encoder(views["small"]).unflatten(0, (-1, z.shape[1]))])


class Taught(Siamese):
    """A siamese method whose targets come from a teacher: an exponential moving average (EMA) of the encoder.

    The online encoder is evaluated; a method that evaluates its teacher overrides ``backbone``.
    """

    def __init__(self, config: Config, steps: int) -> None:
        super().__init__(config, steps)
        self.teacher = copy.deepcopy(self.encoder).requires_grad_(False)

    @property
    def teaching(self) -> Teaching:
        """The teacher, the encoder, and the momentum of the moving average at the first step."""
        return Teaching(self.teacher, self.encoder, self.config.model.ema)

    def after_step(self, step: int) -> None:
        """Moves the teacher's parameters towards the encoder's; its batch norms keep their own running statistics."""
        self.follow(self.teacher, self.encoder, step)

    @torch.no_grad()
    def follow(self, teacher: nn.Module, student: nn.Module, step: int) -> None:
        """Moves the parameters of ``teacher`` towards those of ``student``, with the momentum of the step."""
        model = self.config.model
        momentum = schedules.cosine(step, model.ema, model.ema_final, self.steps)
        torch._foreach_lerp_(list(teacher.parameters()), list(student.parameters()), 1 - momentum)

    def param_groups(self) -> list[dict]:
        """The optimiser's groups, without the teacher: weights decay; biases and norms do not."""
        return groups.decay_groups(self)  # it leaves out what needs no gradient


def predictor(config: Config, dim: int) -> heads.MLPHead:
    """The predictor of ``config`` for embeddings of ``dim`` dimensions, which it keeps."""
    model = config.model
    return heads.MLPHead(
        dim, model.predictor_hidden, dim, layers=model.predictor_layers, last_norm=model.predictor_last_norm
    )


def second_look(views: FamiliesViews) -> FamiliesViews:
    """The config of the second large view."""
    return replace(
        views,
        blur=views.blur if views.second_blur is None else views.second_blur,
        solarize=views.solarize if views.second_solarize is None else views.second_solarize,
    )


def local_look(views: FamiliesViews) -> FamiliesViews:
    """The config of the small views."""
    return replace(views, blur=views.blur if views.local_blur is None else views.local_blur)
