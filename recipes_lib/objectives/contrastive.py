# SPDX-License-Identifier: Apache-2.0
"""Contrastive objectives: a view must find the other view of its image among the views of other images.

Symbols, as in the papers: z_i, z_j projections of an image's two views, B images of this rank and N of all ranks, tau
temperature, d dimensions; q queries, k keys (the other view, by a teacher), p predictions, Q a queue of M earlier
embeddings. The views of different images push each other apart, so a batch is spread as evenly as possible. PMSN's paper
calls this a hidden uniform prior.

Source: Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", arXiv 2002.05709 (SimCLR);
Yeh et al., "Decoupled Contrastive Learning", arXiv 2110.06848 (DCL); He et al., "Momentum Contrast for Unsupervised
Visual Representation Learning", arXiv 1911.05722 (MoCo); Chen, Xie, He, "An Empirical Study of Training Self-Supervised
Vision Transformers", arXiv 2104.02057 (MoCo v3); Dwibedi et al., "With a Little Help from My Friends", arXiv 2104.14548
(NNCLR).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from recipes_lib.distributed import collectives
from recipes_lib.objectives.precision import at_least_float32


def nt_xent(first: Tensor, second: Tensor, *, temperature: float = 0.1) -> dict[str, Tensor]:
    """The normalised temperature-scaled cross-entropy (NT-Xent): each view classifies which other view is its partner.

    L_i = -log exp(<z_i, z_j> / tau) / sum_{k != i} exp(<z_i, z_k> / tau), averaged over the 2N views, z normalised. The
    sum runs over the 2N - 1 other views of all ranks. Half precision is raised to float32, under autocast too.

    Shapes: ``first`` and ``second`` [B, d], row by row views of the same image -> scalars ``loss`` (with its graph)
    and, detached, ``positive`` (mean cosine of an image's two views).
    Units: ``temperature`` above 0; ``loss`` in nats, log(2N - 1) if all views are alike.
    Raises: ``ValueError`` for a temperature out of range, shapes that differ, or a single image.
    Source: Chen et al., Eq. 1 and Algorithm 1.
    Differs: on several ranks ``loss`` is this rank's mean; averaging the ranks' gradients, as DDP does, gives the
    gradient of one rank with the whole batch.
    """
    check_pairs(first, second, temperature)
    with torch.autocast(first.device.type, enabled=False):
        logits, itself, other = _all_pairs(first, second, temperature)
        positive = logits.gather(1, other[:, None]).mean().detach() * temperature
        logits = logits.scatter(1, itself[:, None], -math.inf)  # a view is no candidate for itself
        loss = F.cross_entropy(logits, other)
    return {"loss": loss, "positive": positive}


def dcl_loss(first: Tensor, second: Tensor, *, temperature: float = 0.1) -> dict[str, Tensor]:
    """Decoupled contrastive learning (DCL): NT-Xent without the partner in the denominator.

    L_i = -<z_i, z_j> / tau + log sum_{k != i, j} exp(<z_i, z_k> / tau), averaged over the 2N views. A view whose partner
    is near already is still pulled towards it with full strength, which helps small batches. The loss has no lower
    bound of 0.

    Shapes, units and differences: those of :func:`nt_xent`.
    Raises: ``ValueError`` as :func:`nt_xent`.
    Source: Yeh et al.; the form without their weights.
    """
    check_pairs(first, second, temperature)
    with torch.autocast(first.device.type, enabled=False):
        logits, itself, other = _all_pairs(first, second, temperature)
        positive = logits.gather(1, other[:, None])  # [2B, 1]
        logits = logits.scatter(1, torch.stack([itself, other], dim=1), -math.inf)
        loss = (logits.logsumexp(dim=1) - positive[:, 0]).mean()
    return {"loss": loss, "positive": positive.detach().mean() * temperature}


def agreement(first: Tensor, second: Tensor, *, temperature: float = 0.1) -> dict[str, Tensor]:
    """NT-Xent without its denominator: two views of an image attract each other, and nothing pushes images apart.

    L_i = -<z_i, z_j> / tau. Its minimum, -1 / tau, is reached if all images have one embedding: the collapse that the
    negatives of :func:`nt_xent` prevent.

    Shapes: ``first`` and ``second`` [B, d] -> scalars ``loss`` (with its graph) and, detached, ``positive``.
    Raises: ``ValueError`` as :func:`nt_xent`.
    """
    check_pairs(first, second, temperature)
    with torch.autocast(first.device.type, enabled=False):
        cosines = F.cosine_similarity(at_least_float32(first), at_least_float32(second)).mean()
    return {"loss": -cosines / temperature, "positive": cosines.detach()}


def info_nce(
    queries: Tensor, keys: Tensor, *, temperature: float = 0.2, queue: Tensor | None = None
) -> dict[str, Tensor]:
    """InfoNCE of queries against keys: each query must find the key of its image. Keys get no gradient.

    L_i = -log exp(<q_i, k_i> / tau) / (exp(<q_i, k_i> / tau) + sum_n exp(<q_i, n> / tau)), averaged over the images,
    where the negatives n are the rows of ``queue`` (MoCo v1 and v2) or, without a queue, the keys of the other images of
    all ranks (MoCo v3). q, k and n are normalised.

    Shapes: ``queries`` and ``keys`` [B, d], row by row views of the same image; ``queue`` [M, d], equal on all ranks ->
    scalars ``loss`` (with its graph) and, detached, ``positive`` (mean cosine of a query and its key) and
    ``found`` (share of the queries whose own key is the nearest candidate).
    Units: ``temperature`` above 0; ``loss`` in nats, log(1 + M) or log(N) if all embeddings are alike.
    Raises: ``ValueError`` for a temperature out of range, shapes that differ, a queue of other width, or a single image
    without a queue.
    Source: He et al., Eq. 1; Chen, Xie, He, whose code multiplies by 2 tau, which is left to the caller.
    Differs: on several ranks as :func:`nt_xent`.
    """
    check_pairs(queries, keys, temperature, alone=queue is not None)
    if queue is not None and (queue.dim() != 2 or queue.shape[1] != queries.shape[1] or not len(queue)):
        raise ValueError(f"a queue of [M, {queries.shape[1]}] is wanted; got {list(queue.shape)}.")
    with torch.autocast(queries.device.type, enabled=False):
        q, k = (F.normalize(at_least_float32(x), dim=1) for x in (queries, keys.detach()))
        if queue is None:
            return _identify(q, k, temperature)
        earlier = F.normalize(queue.detach().to(q.dtype), dim=1)
        logits = torch.cat([(q * k).sum(dim=1, keepdim=True), q @ earlier.T], dim=1) / temperature  # [B, 1 + M]
        return _scored(logits, torch.zeros(len(q), dtype=torch.int64, device=q.device), temperature)


def nearest(z: Tensor, queue: Tensor) -> Tensor:
    """The row of ``queue`` with the largest cosine to each row of ``z``, normalised and without gradient.

    The first of several equal rows is taken.

    Shapes: ``z`` [B, d], ``queue`` [M, d] -> [B, d].
    Raises: ``ValueError`` for shapes that do not fit.
    Source: Dwibedi et al., who take the smallest Euclidean distance: the same row, because all are normalised.
    """
    if z.dim() != 2 or queue.dim() != 2 or z.shape[1] != queue.shape[1] or not len(queue):
        raise ValueError(f"embeddings [B, d] and a queue [M, d] are wanted; got {list(z.shape)}, {list(queue.shape)}.")
    with torch.no_grad(), torch.autocast(z.device.type, enabled=False):
        own, earlier = (F.normalize(at_least_float32(x), dim=1) for x in (z, queue))
        return earlier[(own @ earlier.T.to(own.dtype)).argmax(dim=1)]


def nnclr_loss(
    projections: tuple[Tensor, Tensor], predictions: tuple[Tensor, Tensor], queue: Tensor, *, temperature: float = 0.1
) -> dict[str, Tensor]:
    """NNCLR's loss: the nearest neighbour of one view among earlier images must find the prediction of the other view.

    L_i = -log exp(<NN(z_i, Q), p_i+> / tau) / sum_k exp(<NN(z_i, Q), p_k+> / tau), averaged over the images and over the
    two directions. NN is the nearest row of the queue, to which no gradient passes; the sum runs over the predictions
    p+ of the other views of all ranks' images. Query the queue before the batch enters it: otherwise each view finds
    itself.

    Shapes: ``projections`` (z, z+) and ``predictions`` (p, p+) [B, d] each, row by row of the same image; ``queue``
    [M, d], equal on all ranks -> scalars ``loss`` (with its graph) and, detached, ``positive`` (mean cosine of a
    neighbour and the prediction) and ``found`` (share of the neighbours whose nearest prediction is that of its image).
    Units: ``temperature`` above 0; ``loss`` in nats, log(N) if all predictions are alike.
    Raises: ``ValueError`` for a temperature out of range, shapes that do not fit, or a single image.
    Source: Dwibedi et al.
    Differs: lightly composes NT-Xent and neighbours, so that neighbours are candidates too. On several ranks as
    :func:`nt_xent`.
    """
    rows = [*projections, *predictions]
    if len(rows) != 4 or any(x.shape != rows[0].shape for x in rows):
        raise ValueError(f"four tensors [B, d] of one shape are wanted; got {[list(x.shape) for x in rows]}.")
    check_pairs(rows[0], rows[2], temperature)
    parts = []
    for z, prediction in zip(projections, reversed(predictions), strict=True):
        neighbours = nearest(z, queue)
        with torch.autocast(z.device.type, enabled=False):
            p = F.normalize(at_least_float32(prediction), dim=1)
            parts.append(_identify(neighbours.to(p.dtype), p, temperature))
    return {name: (parts[0][name] + parts[1][name]) / 2 for name in parts[0]}


def check_pairs(first: Tensor, second: Tensor, temperature: float, *, alone: bool = False) -> None:
    """Raises ``ValueError`` for what no contrastive loss can use: a temperature out of range, shapes that differ, or a
    single image on all ranks, unless it may be ``alone`` because its negatives are not in the batch."""
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature = {temperature}; it must be above 0 and finite (0.1 is usual).")
    if first.shape != second.shape or first.dim() != 2:
        raise ValueError(
            f"two views of the same images are wanted, [B, d]; got {list(first.shape)}, {list(second.shape)}."
        )
    images = len(first) * collectives.world_size()
    if images < 2 and not alone:
        raise ValueError(f"{images} image has no negatives; use a batch of at least 2.")


def _all_pairs(first: Tensor, second: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """The logits of this rank's 2B views against all 2N, and the columns of each view itself and of its partner.

    Shapes: [B, d], [B, d] -> [2B, 2N], int64 [2B], int64 [2B].
    """
    batch, images = len(first), len(first) * collectives.world_size()
    own = [F.normalize(at_least_float32(view), dim=1) for view in (first, second)]
    everyone = torch.cat([collectives.all_gather(view) for view in own])  # [2N, d]: first views, then second
    logits = torch.cat(own) @ everyone.T / temperature  # [2B, 2N]
    here = torch.arange(batch, device=first.device) + collectives.rank() * batch
    return logits, torch.cat([here, here + images]), torch.cat([here + images, here])


def _identify(anchors: Tensor, candidates: Tensor, temperature: float) -> dict[str, Tensor]:
    """Each anchor must find the candidate of its own row among those of all ranks. Both are normalised.  [B, d] each"""
    logits = anchors @ collectives.all_gather(candidates).T / temperature  # [B, N]
    here = torch.arange(len(anchors), device=anchors.device) + collectives.rank() * len(anchors)
    return _scored(logits, here, temperature)


def _scored(logits: Tensor, right: Tensor, temperature: float) -> dict[str, Tensor]:
    """The cross-entropy of ``logits`` [B, n], the mean cosine in the ``right`` columns, and how often it is largest."""
    return {
        "loss": F.cross_entropy(logits, right),
        "positive": logits.detach().gather(1, right[:, None]).mean() * temperature,
        "found": (logits.detach().argmax(dim=1) == right).to(logits.dtype).mean(),
    }
