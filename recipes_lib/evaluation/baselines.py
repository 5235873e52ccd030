# SPDX-License-Identifier: Apache-2.0
"""What a score is compared with: raw pixels below, a supervised net of the same budget above.

The third baseline, random-init features, needs no code: extract features from the backbone before it is trained.
"""

import math
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recipes_lib import randomness
from recipes_lib.data.images import UNLABELLED, ImageFiles, ImageSet
from recipes_lib.evaluation.features import Features, read_chunks

PIXEL_SIDE = 32
"""Larger images are reduced to this side: 3,072 values an image still fit in memory for a whole data set."""


def raw_pixels(dataset: ImageSet | ImageFiles, *, workers: int = 0) -> Features:
    """The pixels themselves as features, each image less its own mean, so that brightness does not count.

    Images larger than 32 pixels are reduced to 32x32.

    Shapes: N images -> [N, 3 * side * side] (both fields are the same tensor).
    """
    rows = []
    for images in read_chunks(dataset, PIXEL_SIDE, batch_size=256, workers=workers):
        pixels = images.float() / 255
        if max(pixels.shape[2:]) > PIXEL_SIDE:
            pixels = F.interpolate(pixels, size=(PIXEL_SIDE, PIXEL_SIDE), mode="area")
        pixels = pixels.flatten(1)
        rows.append(pixels - pixels.mean(dim=1, keepdim=True))
    features = torch.cat(rows)
    return Features(final=features, before_norm=features)


def supervised(
    backbone: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    width: int,
    classes: int,
    steps: int,
    lr: float = 1e-3,
    weight_decay: float = 0.05,
    warmup: float = 0.05,
    clip: float = 3.0,
    seed: int,
    progress: Callable[[int, dict[str, float]], None] = lambda step, metrics: None,
) -> nn.Module:
    """Trains ``backbone`` and a linear layer with labels, and returns the backbone (in training mode).

    Cross-entropy under AdamW; the learning rate rises over the share ``warmup`` of the steps, then falls by a cosine to 0.
    The caller's ``batches`` bring augmented views, float [B, 3, H, W], and labels, int64 [B] (unlabelled images do not
    count), so the net sees the very images, views and order that the self-supervised one saw. ``backbone`` gives
    [B, ``width``]. ``seed`` draws the linear layer. ``progress`` is called after each step with its number and loss.

    Raises: ``ValueError`` where ``batches`` end before ``steps``.
    """
    device = next(backbone.parameters()).device
    weight = torch.empty(classes, width)
    nn.init.trunc_normal_(weight, std=0.02, generator=randomness.generator(seed, 0, "supervised head"))
    weight = nn.Parameter(weight.to(device))
    bias = nn.Parameter(torch.zeros(classes, device=device))
    parameters = [*backbone.parameters(), weight, bias]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},  # biases and norms
    ]
    optimizer = torch.optim.AdamW(groups, lr=lr)
    warmup_steps = max(1, round(warmup * steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, warmup_steps, steps))
    backbone.train()
    done = 0
    for views, labels in batches:
        logits = F.linear(backbone(views), weight, bias)
        errors = F.cross_entropy(logits, labels, ignore_index=UNLABELLED, reduction="sum")
        loss = errors / (labels != UNLABELLED).sum().clamp_min(1)  # at least 1: a batch may have no label at all
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, clip)
        optimizer.step()
        schedule.step()
        done += 1
        progress(done, {"loss": loss.item()})
        if done == steps:
            return backbone
    raise ValueError(f"the batches ended after {done} of {steps} steps")


def _rate(step: int, warmup_steps: int, steps: int) -> float:
    """Share of the peak learning rate at ``step``, counted from 0."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, steps - warmup_steps)))
