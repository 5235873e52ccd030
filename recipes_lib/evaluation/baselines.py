# SPDX-License-Identifier: Apache-2.0
"""Baselines for a score: raw pixels and an untrained network as lower ones, a supervised network as an upper one."""

from collections.abc import Callable, Iterable
from contextlib import closing
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from recipes_lib import randomness
from recipes_lib.data.images import UNLABELLED, ImageFiles, ImageSet
from recipes_lib.evaluation.features import Features, read_chunks, some
from recipes_lib.optim.groups import decay_groups
from recipes_lib.optim.schedules import warmup_cosine
from recipes_lib.views.multicrop import Normalize, Resize, eval_view

PIXEL_SIDE = 32
"""Side in pixels to which larger images are reduced: a whole data set of 3 x 32 x 32 = 3,072 values per image fits in
memory."""
STATISTICS_IMAGES = 2048
"""Number of training images on which the statistics of an untrained network's batch norms are estimated."""


def raw_pixels(
    dataset: ImageSet | ImageFiles,
    *,
    image_size: int,
    normalize: Normalize,
    resize: Resize = "bilinear",
    ignore_sign: bool = False,
    workers: int = 0,
) -> Features:
    """The pixels that a network would see, minus the image's mean, as features.

    The images pass through the same :func:`eval_view` as for :func:`recipes_lib.evaluation.features.extract`: if the
    network sees grey, standardised images, this baseline does too. Views larger than 32 pixels are reduced to 32 x 32.

    ``ignore_sign`` is for a recipe whose views invert images: an image and its negative become the same row. The sign
    is the one that makes the sum of the cubed values positive (few bright pixels on many dark ones).

    Shapes: N images -> [N, 3 * side * side]; ``final`` and ``before_norm`` are the same tensor.
    """
    rows = []
    for images in read_chunks(dataset, image_size, batch_size=256, workers=workers, resize=resize):
        pixels = eval_view(images, image_size, normalize, resize)  # [B, 3, image_size, image_size]
        if image_size > PIXEL_SIDE:
            pixels = F.interpolate(pixels, size=(PIXEL_SIDE, PIXEL_SIDE), mode="area")
        pixels = pixels.flatten(1)  # [B, 3 * side * side]
        rows.append(pixels - pixels.mean(dim=1, keepdim=True))
    features = torch.cat(rows)
    if ignore_sign:
        features = torch.where(features.pow(3).sum(dim=1, keepdim=True) < 0, -features, features)
    return Features(final=features, before_norm=features)


def estimate_statistics(
    backbone: nn.Module,
    images: ImageSet | ImageFiles,
    *,
    image_size: int,
    normalize: Normalize,
    resize: Resize = "bilinear",
    workers: int = 0,
) -> None:
    """Sets the statistics of a backbone's batch norms to those of the evaluation views of images; no weight changes.

    In a new network they are mean 0 and variance 1, whatever the activations are, while those of a trained network come
    from images. A comparison of the two is fair only if both do. They are the means over batches of 256 images of each
    batch's statistics; of more than :data:`STATISTICS_IMAGES` images, so many are drawn. A backbone without batch norm
    stays as it is, and no image is read. Afterwards the backbone is in evaluation mode.

    Raises: ``DataError`` naming an image file that cannot be read.
    """
    device = next(backbone.parameters()).device
    chunks = read_chunks(some(images, STATISTICS_IMAGES), image_size, 256, workers, resize)
    with closing(chunks):
        update_bn((eval_view(chunk.to(device), image_size, normalize, resize) for chunk in chunks), backbone)
    backbone.eval()


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

    It minimises the cross-entropy with AdamW. The learning rate rises linearly over the share ``warmup`` of the steps,
    then falls to 0 by a cosine schedule. ``batches`` yields augmented views, float [B, 3, H, W], and labels, int64 [B]
    (unlabelled images do not count), so the network can see the same images and views in the same order as the
    self-supervised network. ``backbone`` returns [B, ``width``]. ``seed`` draws the linear layer. ``progress`` is
    called after each step with its number (from 1) and loss.

    Raises: ``ValueError`` if ``batches`` end before ``steps``.
    """

    def loss_of(batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        views, labels = batch
        errors = F.cross_entropy(model(views), labels, ignore_index=UNLABELLED, reduction="sum")
        return {"loss": errors / (labels != UNLABELLED).sum().clamp_min(1)}  # a batch may have no labelled image

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
    """``backbone``, which returns [B, ``width``], and a linear layer drawn from ``seed``, on the backbone's device."""
    head = nn.utils.skip_init(nn.Linear, width, classes)  # torch's own init would use the global random state
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
    """Updates ``model`` by ``steps`` steps of AdamW, one per batch.

    The learning rate rises linearly to ``lr`` over the share ``warmup`` of the steps, then falls to 0 by a cosine
    schedule. ``loss_of(batch)`` returns the scalar ``loss`` and other scalars that ``progress`` gets with it. The model
    is set to training mode before each step. ``clip`` is the largest norm of the gradient.

    Raises: ``ValueError`` if ``batches`` end before ``steps``.
    """
    groups = decay_groups(model)
    for group in groups:
        group["weight_decay"] = weight_decay if group["decays"] else 0.0
    optimizer = torch.optim.AdamW(groups)
    done = 0
    for batch in batches:
        done += 1
        # steps + 1: the rate would reach 0 one step after the last
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
