# SPDX-License-Identifier: Apache-2.0
"""What a score is compared with: raw pixels below, a supervised network of the same budget above.

The third baseline, random-init features, needs no code: extract features from the backbone before it is trained.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recipes_lib import randomness
from recipes_lib.data.images import UNLABELLED, ImageFiles, ImageSet
from recipes_lib.evaluation.features import Features, read_chunks
from recipes_lib.optim.groups import decay_groups
from recipes_lib.optim.schedules import warmup_cosine
from recipes_lib.views.multicrop import Normalize, Resize, eval_view

PIXEL_SIDE = 32
"""Larger images are reduced to this side: 3,072 values per image still fit in memory for a whole data set."""


def raw_pixels(
    dataset: ImageSet | ImageFiles,
    *,
    image_size: int,
    normalize: Normalize,
    resize: Resize = "bilinear",
    ignore_sign: bool = False,
    workers: int = 0,
) -> Features:
    """The pixels that a network would be given, as features: each image less its own mean.

    The images pass through the same :func:`eval_view` as those that features are extracted from: where a network sees
    grey, standardised images, so do the pixels. Views larger than 32 pixels are then reduced to 32x32.

    ``ignore_sign`` is for a recipe whose views invert images: an image and its negative become the same row, of the
    sign that makes the sum of the cubed values positive (few bright pixels on many dark ones).

    Shapes: N images -> [N, 3 * side * side] (both fields are the same tensor).
    """
    rows = []
    for images in read_chunks(dataset, image_size, batch_size=256, workers=workers, resize=resize):
        pixels = eval_view(images, image_size, normalize, resize)
        if image_size > PIXEL_SIDE:
            pixels = F.interpolate(pixels, size=(PIXEL_SIDE, PIXEL_SIDE), mode="area")
        pixels = pixels.flatten(1)
        rows.append(pixels - pixels.mean(dim=1, keepdim=True))
    features = torch.cat(rows)
    if ignore_sign:
        features = torch.where(features.pow(3).sum(dim=1, keepdim=True) < 0, -features, features)
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
    count), so the network sees the very images, views and order that the self-supervised one saw. ``backbone`` gives
    [B, ``width``]. ``seed`` draws the linear layer. ``progress`` is called after each step with its number and loss.

    Raises: ``ValueError`` where ``batches`` end before ``steps``.
    """

    def loss_of(batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        views, labels = batch
        errors = F.cross_entropy(model(views), labels, ignore_index=UNLABELLED, reduction="sum")
        return {"loss": errors / (labels != UNLABELLED).sum().clamp_min(1)}  # at least 1: a batch may have no label

    model = classifier(backbone, width=width, classes=classes, seed=seed)
    descend(
        model,
        batches,
        loss_of,
        steps=steps,
        lr=lr,
        weight_decay=weight_decay,
        warmup=warmup,
        clip=clip,
        progress=progress,
    )
    return backbone


def classifier(backbone: nn.Module, *, width: int, classes: int, seed: int) -> nn.Sequential:
    """``backbone``, which gives [B, ``width``], with a linear layer drawn from ``seed``, on the backbone's device."""
    head = nn.utils.skip_init(nn.Linear, width, classes)  # torch's own draw would come from the global state
    nn.init.trunc_normal_(head.weight, std=0.02, generator=randomness.generator(seed, 0, "supervised head"))
    nn.init.zeros_(head.bias)
    return nn.Sequential(backbone, head.to(next(backbone.parameters()).device))


def descend(
    model: nn.Module,
    batches: Iterable[Any],
    loss_of: Callable[[Any], dict[str, Tensor]],
    *,
    steps: int,
    lr: float,
    weight_decay: float,
    warmup: float,
    clip: float,
    progress: Callable[[int, dict[str, float]], None],
) -> None:
    """``steps`` updates by AdamW, one a batch; the rate rises over the share ``warmup``, then falls by a cosine to 0.

    ``loss_of(batch)`` gives the scalar ``loss`` and what else ``progress`` shall be told of the step. Each step begins
    in training mode.

    Raises: ``ValueError`` where ``batches`` end before ``steps``.
    """
    groups = decay_groups(model)
    for group in groups:
        group["weight_decay"] = weight_decay if group["decays"] else 0.0
    optimizer = torch.optim.AdamW(groups)
    done = 0
    for batch in batches:
        done += 1
        # steps + 1: the rate is 0 after the last step, not at it
        rate = warmup_cosine(done, start=0.0, peak=lr, final=0.0, warmup_steps=warmup * steps, total_steps=steps + 1)
        for group in optimizer.param_groups:
            group["lr"] = rate
        model.train()
        parts = loss_of(batch)
        optimizer.zero_grad()
        parts["loss"].backward()
        nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        progress(done, {name: part.item() for name, part in parts.items()})
        if done == steps:
            return
    raise ValueError(f"the batches ended after {done} of {steps} steps")
