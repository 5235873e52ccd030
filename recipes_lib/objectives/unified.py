# SPDX-License-Identifier: Apache-2.0
"""What the families have in common: one form of contrastive losses, and the duality of Gram and covariance penalties.

Symbols, as in the Cookbook: z_i, z_i' embeddings of an image's two views, N images of all ranks, D dimensions, d_ij half
the squared distance of normalised embeddings, phi and psi increasing functions, tau temperature, K the matrix of all
embeddings, a row k_i for each image and a column k^a for each dimension.

Source: Balestriero et al., "A Cookbook of Self-Supervised Learning", arXiv 2304.12210, Section 2.6.1; the duality is
that of Garrido et al., "On the duality between contrastive and non-contrastive self-supervised learning", 2022.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from recipes_lib.distributed import collectives
from recipes_lib.objectives.contrastive import check_pairs
from recipes_lib.objectives.precision import at_least_float32


def phi_psi_loss(
    first: Tensor,
    second: Tensor,
    *,
    temperature: float = 0.1,
    eps: float = 1.0,
    negatives: Literal["cross", "same"] = "cross",
) -> dict[str, Tensor]:
    """The unified contrastive loss: each other image costs more, the nearer it is than the image's own other view.

    L = mean_i phi(sum_{j != i} psi(d_ii' - d_ij)) with phi(x) = tau log(eps + x) and psi(x) = exp(x / tau). The images j
    are the others' first views (``same``) or their second views (``cross``). With eps = 1 it is InfoNCE times tau: for
    ``cross``, tau times :func:`recipes_lib.objectives.contrastive.info_nce` of queries against the batch's keys. With
    eps = 0 the image's own view is not in the denominator: decoupled contrastive learning (DCL).

    Shapes: ``first`` and ``second`` [B, D], row by row views of the same image -> scalars ``loss`` (with its graph) and,
    detached, ``positive`` (mean cosine of an image's two views).
    Units: ``temperature`` above 0; ``eps`` at least 0.
    Raises: ``ValueError`` for an argument out of range, shapes that differ, or a single image.
    Differs: the paper leaves the distance open. With d = |u - v|^2 / 2, differences of distances are differences of
    cosines. On several ranks ``loss`` is this rank's mean.
    """
    check_pairs(first, second, temperature)
    if not 0 <= eps < math.inf:
        raise ValueError(f"eps = {eps}; it must be at least 0 and finite (1 gives InfoNCE, 0 gives DCL).")
    if negatives not in ("cross", "same"):
        raise ValueError(f"negatives = {negatives!r}; use 'cross' or 'same'.")
    with torch.autocast(first.device.type, enabled=False):
        own, partner = (F.normalize(at_least_float32(view), dim=1) for view in (first, second))
        others = collectives.all_gather(partner if negatives == "cross" else own)  # [N, D]
        positive = (own * partner).sum(dim=1, keepdim=True)  # [B, 1]
        # d_ii' - d_ij = cos_ij - cos_ii', as all rows have length 1
        exponents = (own @ others.T - positive) / temperature  # [B, N]
        here = torch.arange(len(own), device=own.device) + collectives.rank() * len(own)
        exponents = exponents.scatter(1, here[:, None], -math.inf)  # j != i
        if eps > 0:
            exponents = torch.cat([exponents, exponents.new_full((len(own), 1), math.log(eps))], dim=1)
        loss = temperature * exponents.logsumexp(dim=1).mean()
    return {"loss": loss, "positive": positive.detach().mean()}


def sample_contrastive(z: Tensor) -> dict[str, Tensor]:
    """The sample-contrastive criterion: the squared similarities of different images, sum_{i != j} <k_i, k_j>^2.

    It differs from :func:`dimension_contrastive` by the norms alone, because ||K K^T||_F = ||K^T K||_F:
    ``loss`` + ``norms`` are equal for both. Neither function centres or normalises.

    Shapes: [B, D] -> scalars ``loss`` (with its graph) and, detached, ``norms`` (sum_i |k_i|^4).
    Raises: ``ValueError`` for an input that is not a matrix.
    Differs: on several ranks the sum runs over all ranks' images, and ``loss`` is equal on all.
    """
    rows = _everyone(z)
    return _off_diagonal(rows @ rows.T)


def dimension_contrastive(z: Tensor) -> dict[str, Tensor]:
    """The dimension-contrastive criterion: the squared products of different dimensions, sum_{a != b} <k^a, k^b>^2.

    Of centred embeddings these are covariances, up to a factor: VICReg's and Barlow Twins' penalty.

    Shapes: [B, D] -> scalars ``loss`` (with its graph) and, detached, ``norms`` (sum_a |k^a|^4).
    Raises: ``ValueError`` for an input that is not a matrix.
    Differs: on several ranks the sum runs over all ranks' images, and ``loss`` is equal on all.
    """
    rows = _everyone(z)
    return _off_diagonal(rows.T @ rows)


def _everyone(z: Tensor) -> Tensor:
    """The embeddings of all ranks.  [B, D] -> [N, D]"""
    if z.dim() != 2:
        raise ValueError(f"embeddings [B, D] are wanted; got {list(z.shape)}.")
    return collectives.all_gather(at_least_float32(z))


def _off_diagonal(products: Tensor) -> dict[str, Tensor]:
    """The sum of the squares beside the diagonal, and of those on it.  [n, n] -> scalars"""
    squares = products.square()
    norms = squares.diagonal().sum()
    return {"loss": squares.sum() - norms, "norms": norms.detach()}
