# SPDX-License-Identifier: Apache-2.0
"""Masked modelling's objectives: what was hidden of an image is predicted from the rest: pixels, or visual words.

Symbols: B images, N patches per image, m hidden patches per image, p side of a patch in pixels, P = 3 p^2 values of a
patch, K visual words. Every image of a batch has equally many hidden patches, so the mean over ranks of their losses is
the loss of one rank with all images.

Sources: MAE, He et al., "Masked Autoencoders Are Scalable Vision Learners", arXiv 2111.06377; SimMIM, Xie et al.,
"SimMIM: a Simple Framework for Masked Image Modeling", arXiv 2111.09886; BEiT, Bao et al., "BEiT: BERT Pre-Training of
Image Transformers", arXiv 2106.08254.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from recipes_lib.objectives.precision import at_least_float32

EPSILON = 1e-6
"""The number that MAE adds to a patch's variance: a patch of one colour has none."""


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """Cuts images into patches, row by row; the values of a patch are ordered by row, column and channel.

    Shapes: [B, 3, side, side] -> [B, N, 3 p^2].
    Raises: ``ValueError`` if patches do not tile the images.
    """
    batch, channels, height, width = images.shape
    if height % patch_size or width % patch_size:
        raise ValueError(f"patches of {patch_size} pixels do not tile images of {height} x {width} pixels.")
    grid = images.reshape(batch, channels, height // patch_size, patch_size, width // patch_size, patch_size)
    return grid.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)  # [B, rows, columns, p, p, channels] before


def normalise_patches(patches: Tensor) -> Tensor:
    """Brings each patch to mean 0 and variance 1, with the unbiased variance.  [..., P] -> [..., P]

    Source: the official code, ``facebookresearch/mae``, ``models_mae.py``, ``forward_loss``.
    """
    centred = patches - patches.mean(dim=-1, keepdim=True)
    return centred / (patches.var(dim=-1, keepdim=True) + EPSILON).sqrt()


def mae_loss(predicted: Tensor, patches: Tensor, *, normalise: bool = True) -> dict[str, Tensor]:
    """MAE's loss: the mean squared error of the hidden patches' values.

    Half precision is raised to float32, under autocast too.

    Shapes: ``predicted`` and ``patches`` [B, m, P], hidden patches alone -> scalars ``loss`` (with its graph) and,
    detached, ``explained``: the share of the hidden values' variance that is predicted, 1 at best, 0 for their mean.
    Raises: ``ValueError`` if the shapes differ or nothing is hidden.
    """
    _check(predicted, patches)
    with torch.autocast(predicted.device.type, enabled=False):
        target = at_least_float32(patches)
        target = normalise_patches(target) if normalise else target
        loss = F.mse_loss(at_least_float32(predicted), target)
        explained = 1 - loss.detach() / (target - target.mean()).square().mean()
    return {"loss": loss, "explained": explained}


def simmim_loss(predicted: Tensor, patches: Tensor) -> dict[str, Tensor]:
    """SimMIM's loss: the mean absolute error of the hidden pixels' values.

    L = sum |x - y| M / (sum M + 1e-5) / 3, where M is 1 at each hidden pixel. Half precision is raised to float32,
    under autocast too.

    Shapes: ``predicted`` (y) and ``patches`` (x) [B, m, P], hidden patches alone -> scalar ``loss`` (with its graph)
    and, detached, ``explained``: the share of the hidden values' mean absolute deviation that is predicted.
    Raises: ``ValueError`` if the shapes differ or nothing is hidden.
    Source: Eq. 2; the official code, ``microsoft/SimMIM``, ``models/simmim.py``, for the 1e-5 and the 3 channels.
    """
    _check(predicted, patches)
    with torch.autocast(predicted.device.type, enabled=False):
        target = at_least_float32(patches)
        pixels = target.numel() / 3
        loss = (at_least_float32(predicted) - target).abs().sum() / (pixels + 1e-5) / 3
        explained = 1 - loss.detach() / (target - target.mean()).abs().mean()
    return {"loss": loss, "explained": explained}


def beit_loss(logits: Tensor, words: Tensor) -> dict[str, Tensor]:
    """BEiT's loss: the cross-entropy of the hidden patches' visual words.

    Half precision is raised to float32, under autocast too.

    Shapes: ``logits`` [B, m, K], ``words`` int64 [B, m], hidden patches alone -> scalars ``loss`` (with its graph)
    and, detached, ``accuracy``: the share of hidden patches whose word has the largest logit.
    Units: ``loss`` in nats, log K if all words are equally likely.
    Raises: ``ValueError`` if the shapes differ or nothing is hidden.
    Source: Eq. 2, averaged over the hidden patches as in the official code.
    """
    if logits.shape[:-1] != words.shape or not words.numel():
        raise ValueError(
            f"logits [B, m, K] and words [B, m] of at least one hidden patch are wanted; got {list(logits.shape)}, "
            f"{list(words.shape)}."
        )
    with torch.autocast(logits.device.type, enabled=False):
        loss = F.cross_entropy(at_least_float32(logits).flatten(0, 1), words.flatten())
    accuracy = (logits.detach().argmax(dim=-1) == words).float().mean()
    return {"loss": loss, "accuracy": accuracy}


def _check(predicted: Tensor, patches: Tensor) -> None:
    if predicted.shape != patches.shape or predicted.dim() != 3 or not predicted.numel():
        raise ValueError(
            "predictions of at least one hidden patch and its true values are wanted, [B, m, P]; got "
            f"{list(predicted.shape)}, {list(patches.shape)}."
        )
