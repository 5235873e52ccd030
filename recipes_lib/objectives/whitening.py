# SPDX-License-Identifier: Apache-2.0
"""W-MSE's objective: views agree after the embeddings of a sub-batch are whitened, which makes a collapse impossible.

Symbols, as in the paper: z embeddings, v whitened embeddings, mu and Sigma mean and covariance of a sub-batch, W_V the
whitening matrix; V views (the paper's d) of B images, d dimensions (the paper's k).

Source: Ermolov, Siarohin, Sangineto, Sebe, "Whitening for Self-Supervised Representation Learning", arXiv 2007.06346;
code: ``htdt/self-supervised``, ``methods/w_mse.py`` and ``methods/whitening.py``.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from recipes_lib.distributed import collectives
from recipes_lib.objectives.precision import at_least_float32


def whiten(z: Tensor) -> Tensor:
    """The embeddings with mean 0 and covariance I: v = W_V (z - mu) with W_V = L^-1 and Sigma = L L^T (Cholesky).

    Sigma is the unbiased covariance. The authors' code adds nothing to it by default, and neither does this. It is
    factorised in float64: its condition is the square of that of the embeddings, and float32 would leave no digit of the
    smallest directions.

    Shapes: [..., n, d] -> [..., n, d], each batch of n whitened on its own; n above d.
    Raises: ``FloatingPointError`` if a covariance has no inverse: the embeddings do not vary in some direction.
    Source: ``methods/whitening.py``.
    """
    centred = (z - z.mean(dim=-2, keepdim=True)).double()
    covariance = centred.mT @ centred / (z.shape[-2] - 1)  # [..., d, d]
    lower, failed = torch.linalg.cholesky_ex(covariance)
    if failed.any():
        raise FloatingPointError(
            f"the covariance of {z.shape[-2]} embeddings of {z.shape[-1]} dimensions has no inverse: they do not vary in "
            "some direction. Use fewer dimensions, more images, or a smaller learning rate."
        )
    return torch.linalg.solve_triangular(lower, centred.mT, upper=False).mT.to(z.dtype)


def w_mse_loss(embeddings: Tensor, *, whitening_size: int, whiten_first: bool = True) -> dict[str, Tensor]:
    """The W-MSE loss: the squared distance of an image's normalised whitened embeddings, over all pairs of views.

    L = 2 / (V (V - 1)) sum_{i < j} (1/B) sum |v_i/|v_i| - v_j/|v_j||^2. Each view is whitened on its own, in sub-batches
    of ``whitening_size`` consecutive images. Half precision is raised to float32, under autocast too.

    Shapes: ``embeddings`` [V, B, d] -> scalars ``loss`` (with its graph) and, detached, ``cosine`` (its mean over pairs
    of views; L = 2 - 2 cosine).
    Units: ``whitening_size`` above d; it divides the number of images of all ranks. Without ``whiten_first`` the
    embeddings are compared as they are, and collapse.
    Raises: ``ValueError`` for sizes that do not fit; ``FloatingPointError`` as :func:`whiten`.
    Source: ``methods/w_mse.py``.
    Differs: the authors' code permutes the batch before it cuts it into sub-batches, on some data sets several times, and
    averages. Here each batch is cut once, as it comes: its images are in random order already. If a rank's images are not
    a whole number of sub-batches, the sub-batches span ranks, so that two ranks equal one.
    """
    if embeddings.dim() != 3 or len(embeddings) < 2:
        raise ValueError(f"embeddings [V, B, d] of at least 2 views are wanted; got {list(embeddings.shape)}.")
    with torch.autocast(embeddings.device.type, enabled=False):
        v = at_least_float32(embeddings)
        if whiten_first:
            v = _in_sub_batches(v, whitening_size)
        v = F.normalize(v, dim=2)
        views = len(v)
        # sum_{i < j} <v_i, v_j> = (|sum_i v_i|^2 - V) / 2, without a loop over pairs
        cosine = (v.sum(dim=0).square().sum(dim=1).mean() - views) / (views * (views - 1))
    return {"loss": 2 - 2 * cosine, "cosine": cosine.detach()}


def _in_sub_batches(z: Tensor, size: int) -> Tensor:
    """Whitens each view in sub-batches of ``size`` images.  [V, B, d] -> [V, B, d], or of all ranks' images."""
    views, batch, dim = z.shape
    if size <= dim:
        raise ValueError(f"whitening_size = {size}; it must be above the {dim} dimensions of the embeddings.")
    if batch % size:
        z = collectives.all_gather(z.transpose(0, 1)).transpose(0, 1)
    if z.shape[1] % size:
        raise ValueError(f"whitening_size = {size} does not divide the {z.shape[1]} images of all ranks.")
    return whiten(z.reshape(views, -1, size, dim)).reshape(views, -1, dim)
