# SPDX-License-Identifier: Apache-2.0
"""I-JEPA: the embeddings of hidden blocks are predicted from a visible part of the image; no pixels, no second view.

Paper: Assran et al., arXiv 2301.08243. Code: ``facebookresearch/ijepa`` at 52c1ae9, read for its facts alone.

What is computed, and where it was read:

==================================  ===================================================  ==============================
part                                definition                                           source
==================================  ===================================================  ==============================
targets, M = 4 blocks per image     scale 0.15 to 0.2, height / width 0.75 to 1.5        section 3; config lines 20-32
context                             one square block of scale 0.85 to 1, minus targets   section 3; config lines 23-25
sizes and places                    one size a step, one place an image                  multiblock.py 128-135, 89-90
s_y, target embeddings              LN(teacher(y)) of all patches; LN has no weights     train.py 296-298
s_x, context embeddings             encoder of the context's patches alone               train.py 306
predictor g                         width 384, 12 blocks, heads of the encoder; context  vision_transformer.py 240-326;
                                    tokens and mask tokens with fixed positions; one     helper.py 80-84
                                    block at a time
loss                                smooth-L1 (beta 1), mean over all values             train.py 311
teacher                             EMA of the encoder, 0.996 to 1 on a straight line    train.py 228-229, 336
positions                           fixed sines and cosines, encoder and predictor       vision_transformer.py 362-366
optimiser                           AdamW; rate 2e-4, 1e-3 (40 epochs), 1e-6 (300);      config lines 41-52; helper.py
                                    weight decay 0.04 to 0.4; neither on biases, norms   118-142
augmentation                        random crop of scale 0.3 to 1, nothing else          config lines 3-14
==================================  ===================================================  ==============================

The golden value of the loss on the two small matrices Z1 and Z2 of the tests is 0.32669905520580717; tests compute it with numpy as well.

Differs: the context (see :func:`recipes_lib.views.masking.context_and_targets`); the encoder has a class token, which
the predictor does not see; the loss is the code's, where the paper has the squared distance; weights of the predictor
are drawn as in MAE, and not with std 0.02.
"""

import copy
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor, nn

from recipes_lib import randomness
from recipes_lib.config import EvalConfig, OptimConfig, TrainConfig
from recipes_lib.data.loader import Batch
from recipes_lib.models import backbones, vit
from recipes_lib.models.predictor import PatchPredictor, fix_positions
from recipes_lib.objectives.latents import ijepa_loss
from recipes_lib.optim import schedules
from recipes_lib.pretraining.recipe import Method, Teaching
from recipes_lib.recipes.families.ladder import ONE_VIEW, small
from recipes_lib.recipes.families.network import FamilyMethod
from recipes_lib.recipes.families.settings import Config, FamiliesViews, LossConfig, ModelConfig
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

# Patches of 4 pixels: with 16 patches of 8 the context is 4 patches, and 300 steps leave the features where they started
# (k-NN 0.27 to 0.28 on held-out images, untrained 0.27; with patches of 4: 0.35, untrained 0.25; seed 0).
_VIT = ModelConfig(
    arch="vit_pico",
    stem="patch",
    patch_size=4,
    pool="mean",
    decoder_width=32,
    decoder_depth=1,
    decoder_heads=2,
    ema=0.99,  # a run of 300 steps is too short for a mean over 250
)

PRESETS: dict[str, Config] = {
    **small(
        LossConfig(objective="ijepa"),
        model=_VIT,
        laptop_model=replace(_VIT, arch="vit_nano", ema=0.996),
        views=ONE_VIEW,
    ),
    # The code's configs/in1k_vith14_ep300.yaml; the paper trains it on 16 A100 in under 72 hours.
    "ijepa_vith14_imagenet": Config(
        views=FamiliesViews(global_views=0, global_scale=(0.3, 1.0), flip=0.0, jitter=0.0, grayscale=0.0, blur=0.0),
        model=ModelConfig(
            arch="vit_huge",
            stem="patch",
            patch_size=14,
            pool="mean",
            decoder_width=384,
            decoder_depth=12,
            decoder_heads=16,  # the encoder's
        ),
        loss=LossConfig(objective="ijepa"),
        optim=OptimConfig(  # weight decay 0.04 to 0.4 are the defaults
            lr=1e-3, lr_start=2e-4, lr_final=1e-6, warmup_epochs=40.0, stretch=1.0, first_count=1, clip=None
        ),
        train=TrainConfig(epochs=300.0, batch_size=2048, precision="bf16"),  # 16 GPUs x 128 images
        eval=EvalConfig(probes=("knn", "linear", "lowshot")),
    ),
}
