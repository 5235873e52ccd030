# SPDX-License-Identifier: Apache-2.0
"""I-JEPA: the embeddings of hidden blocks are predicted from a visible part of the image; no pixels, no second view."""

import copy
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor, nn

from recipes_lib import randomness
from recipes_lib.data.loader import Batch
from recipes_lib.models import backbones, vit
from recipes_lib.models.predictor import PatchPredictor, fix_positions
from recipes_lib.objectives.latents import ijepa_loss
from recipes_lib.optim import schedules
from recipes_lib.pretraining.recipe import Method, Teaching
from recipes_lib.recipes.families.ladder import ONE_VIEW, small
from recipes_lib.recipes.families.network import FamilyMethod
from recipes_lib.recipes.families.settings import Config, LossConfig, ModelConfig
from recipes_lib.views import masking


class IJEPA(FamilyMethod):
    """I-JEPA: a predictor guesses, block by block, what a moving average of the encoder makes of hidden patches.

    The teacher, the moving average, sees the whole image; it is evaluated and exported, as in the paper.
    """

    def __init__(self, config: Config, steps: int) -> None:
        super().__init__(config, steps)
        model = config.model
        self.encoder = backbones.build(model, image_size=config.views.image_size)
        fix_positions(self.encoder)
        width = self.encoder.num_features
        self.predictor = PatchPredictor(
            width,
            width,
            grid=config.views.image_size // model.patch_size,
            width=model.decoder_width,
            depth=model.decoder_depth,
            heads=model.decoder_heads,
        )
        self.teacher = copy.deepcopy(self.encoder).requires_grad_(False)

    @property
    def backbone(self) -> nn.Module:
        """The teacher, which is evaluated and exported."""
        return self.teacher

    @property
    def teaching(self) -> Teaching:
        """The teacher, the encoder, and the momentum of the moving average at the first step."""
        return Teaching(self.teacher, self.encoder, self.config.model.ema)

    def views(self, batch: Batch, step: int) -> dict[str, object]:
        """The view of each image, the patches of its ``context`` [B, n] and of its ``targets`` [B, blocks, m]."""
        ways, seed = self.config.views, self.config.train.seed
        blocks = masking.context_and_targets(
            randomness.sample_keys(seed, batch.epoch, batch.indices),
            randomness.step_key(seed, step, "target blocks"),
            ways.image_size // self.config.model.patch_size,
            blocks=ways.target_blocks,
            target_scale=ways.target_scale,
            target_aspect=ways.target_aspect,
            context_scale=ways.context_scale,
        )
        return super().views(batch, step) | blocks._asdict()

    def forward(self, views: dict) -> dict[str, Tensor]:
        """The loss of one micro-batch and its parts. ``views`` is the output of :meth:`views`."""
        images, context, targets = views["large"], views["context"], views["targets"]
        first = self.encoder.num_prefix_tokens
        stop = self.config.loss.stop_gradient
        with torch.no_grad() if stop else nullcontext():
            whole = (self.teacher if stop else self.encoder).tokens(images)[:, first:]  # [B, N, D]
            hidden = vit.kept(whole, targets.flatten(1)).unflatten(1, targets.shape[1:])  # [B, M, m, D]
        seen = self.encoder.tokens(images, context)[:, first:]  # [B, n, D]
        blocks = targets.shape[1]  # each block is predicted by itself
        predicted = self.predictor(
            seen.repeat_interleave(blocks, dim=0), context.repeat_interleave(blocks, dim=0), targets.flatten(0, 1)
        )
        return ijepa_loss(predicted.unflatten(0, (-1, blocks)), hidden)

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Moves the teacher's parameters towards the encoder's; the momentum rises on a straight line."""
        model = self.config.model
        momentum = schedules.linear(step, model.ema, model.ema_final, self.steps)
        torch._foreach_lerp_(list(self.teacher.parameters()), list(self.encoder.parameters()), 1 - momentum)


METHODS: dict[str, type[Method]] = {"ijepa": IJEPA}

VIT = ModelConfig(
    arch="vit_pico",
    stem="patch",
    patch_size=8,
    pool="mean",
    decoder_width=32,
    decoder_depth=1,
    decoder_heads=2,
    ema=0.95,
)

PRESETS: dict[str, Config] = {
    **small(
        LossConfig(objective="ijepa"),
        model=VIT,
        laptop_model=replace(VIT, arch="vit_nano", patch_size=4),
        views=replace(ONE_VIEW, target_blocks=3),
    ),
}
