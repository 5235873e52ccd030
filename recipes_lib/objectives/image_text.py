# SPDX-License-Identifier: Apache-2.0
"""Image-text objectives: each image must find its own text among the texts of the batch, and each text its image.

Symbols: f image embeddings and F all of them, g text embeddings and G all of them, all of norm 1; s = exp(a) the
learned scale (the inverse of a temperature), whose logarithm a is the parameter; b SigLIP's learned bias; n pairs of
this rank, N pairs of all ranks, d dimensions.

Source: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", arXiv 2103.00020
(CLIP); Zhai et al., "Sigmoid Loss for Language Image Pre-Training", arXiv 2303.15343 (SigLIP).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from recipes_lib.distributed import collectives
from recipes_lib.objectives.precision import at_least_float32

INITIAL_LOG_SCALE = math.log(1 / 0.07)
"""CLIP's initial a, 2.659: a temperature of 0.07."""
MAX_LOG_SCALE = math.log(100)
"""The largest a, 4.605: CLIP clamps a to [0, ln 100] after each step of the optimiser."""
INITIAL_SIGLIP_LOG_SCALE, INITIAL_SIGLIP_BIAS = math.log(10), -10.0
"""SigLIP's initial a and b: without the bias the N - 1 negatives per positive would dominate the first steps."""

NORM_TOLERANCE = 0.02
"""How far a norm may be from 1: rounding to bfloat16 changes it by up to 0.004."""


def clip_loss(images: Tensor, texts: Tensor, log_scale: Tensor) -> dict[str, Tensor]:
    """The CLIP loss: the mean of the cross-entropy from images to texts and of that from texts to images.

    L = 1/2 [CE(s f G^T) + CE(s g F^T)]. Each rank compares its own n pairs with all N pairs: n x N logits, never N x N.
    Half precision is raised to float32, under autocast too.

    Shapes: ``images`` and ``texts`` [n, d] of norm 1, row i of both is one pair; ``log_scale`` [] -> scalars ``loss``
    (with its graph) and, detached, ``image_to_text``, ``text_to_image`` (the two cross-entropies), ``accuracy``
    (share of images whose nearest text is right) and ``scale`` (s).
    Units: losses in nats, log N where all embeddings are alike.
    Raises: ``ValueError`` for shapes that do not fit, rows whose norm is not 1, or ranks with different n, naming them;
    ``FloatingPointError`` for embeddings or a scale that are not finite.
    Source: CLIP, section 2.3 and Figure 3.
    Differs: on several ranks ``loss`` is this rank's mean; averaging the ranks' gradients, as DDP does, gives the
    gradient of one rank with the whole batch.
    """
    _check(images, texts, log_scale)
    with torch.autocast(images.device.type, enabled=False):
        f, g, a = (at_least_float32(x) for x in (images, texts, log_scale))
        scale = a.exp()
        to_texts = scale * f @ collectives.all_gather(g).T  # [n, N]
        # on one rank the logits of the other direction are the transpose: half the products
        alone = collectives.world_size() == 1
        to_images = to_texts.T if alone else scale * g @ collectives.all_gather(f).T  # [n, N]
        own = _own_columns(to_texts)  # [n]
        # a pair's logit is the same in both directions
        right = to_texts.gather(1, own[:, None]).mean()
        # log-sum-exp minus the right logit: of the n x N values only the logits are kept for the backward pass
        image_to_text = to_texts.logsumexp(dim=1).mean() - right
        text_to_image = to_images.logsumexp(dim=1).mean() - right
        loss = (image_to_text + text_to_image) / 2
    return {
        "loss": loss,
        "image_to_text": image_to_text.detach(),
        "text_to_image": text_to_image.detach(),
        "accuracy": _accuracy(to_texts.detach(), own),
        "scale": scale.detach(),
    }


def siglip_loss(images: Tensor, texts: Tensor, log_scale: Tensor, bias: Tensor) -> dict[str, Tensor]:
    """The SigLIP loss: a binary classification "is it a pair?" of each of the N^2 combinations of an image and a text.

    L = (1 / N) sum_ij log(1 + exp(-y_ij (s f_i g_j + b))), y_ij = 1 if i = j and -1 otherwise. Each rank classifies its
    own n images with the texts of all ranks. Half precision is raised to float32, under autocast too.

    Shapes: ``images`` and ``texts`` [n, d] of norm 1, row i of both is one pair; ``log_scale`` and ``bias`` [] ->
    scalars ``loss`` (with its graph) and, detached, ``accuracy`` (share of images whose nearest text is right),
    ``scale`` (s) and ``bias`` (b).
    Raises: the same errors as :func:`clip_loss`.
    Source: SigLIP, Eq. 1.
    Differs: on several ranks like :func:`clip_loss`. The paper passes texts around a ring; here they are gathered.
    """
    _check(images, texts, log_scale)
    with torch.autocast(images.device.type, enabled=False):
        f, g, a, b = (at_least_float32(x) for x in (images, texts, log_scale, bias))
        scale = a.exp()
        logits = scale * f @ collectives.all_gather(g).T + b  # [n, N]
        own = _own_columns(logits)  # [n]
        signs = torch.full_like(logits, -1).scatter_(1, own[:, None], 1)  # [n, N]: y
        loss = -F.logsigmoid(signs * logits).sum() / len(f)
    accuracy = _accuracy(logits.detach(), own)
    return {"loss": loss, "accuracy": accuracy, "scale": scale.detach(), "bias": b.detach()}


def _own_columns(logits: Tensor) -> Tensor:
    """The positions of this rank's pairs among the texts of all ranks.  [n, N] -> int64 [n]"""
    count = len(logits)
    return torch.arange(count, device=logits.device) + collectives.rank() * count


def _accuracy(logits: Tensor, own: Tensor) -> Tensor:
    """The share of rows whose largest logit is the right one.  [n, N], int64 [n] -> []"""
    return (logits.argmax(dim=1) == own).to(logits.dtype).mean()


def _check(images: Tensor, texts: Tensor, log_scale: Tensor) -> None:
    if images.shape != texts.shape or images.dim() != 2 or not len(images):
        shapes = f"images {list(images.shape)} and texts {list(texts.shape)}"
        raise ValueError(f"{shapes} are no pairs: both must be [n, d], row i of one the pair of row i of the other.")
    if log_scale.dim():
        raise ValueError(f"log_scale has shape {list(log_scale.shape)}; it must be a scalar, [].")
    if not log_scale.isfinite():
        raise FloatingPointError(
            f"log_scale = {log_scale.item()}; training went wrong before: lower the learning rate."
        )
    for name, rows in (("images", images), ("texts", texts)):
        norms = torch.linalg.vector_norm(at_least_float32(rows.detach()), dim=1)
        if not norms.isfinite().all():
            raise FloatingPointError(f"{name}[{int((~norms.isfinite()).nonzero()[0])}] holds NaN or Inf.")
        if (norms - 1).abs().max() > NORM_TOLERANCE:
            spread = f"from {norms.min():.4g} to {norms.max():.4g}"
            raise ValueError(f"{name} have norms {spread}; normalise the embeddings first, to norm 1.")
    # a gather of unequal parts hangs or shifts every later pair, so the ranks compare their counts first
    counts = collectives.all_gather(torch.tensor([len(images)], device=images.device)).tolist()
    if len(set(counts)) > 1:
        raise ValueError(f"ranks hold {counts} pairs; each must hold equally many. Drop the last, smaller batch.")
