# SPDX-License-Identifier: Apache-2.0
"""Quality of features without labels, read from where they lie on the unit sphere: alignment, uniformity, spread.

All rows are normalised first: u(x) = x / ||x||. Their length says nothing about the classes for k-NN, nor for a loss of
cosines.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def alignment(first: Tensor, second: Tensor, *, alpha: float = 2.0) -> float:
    """How far the two views of an image lie apart: the mean of ||u(x) - u(y)||^alpha over images; lower is closer.

    Shapes: [N, D] and [N, D], row by row views of the same image.
    Units: with ``alpha`` = 2 from 0 (equal) over 2 (as far as strangers) to 4 (opposite).
    Raises: ``ValueError`` for shapes that differ, features that are not finite, or ``alpha`` that is not above 0.
    Source: Wang, Isola, "Understanding Contrastive Representation Learning through Alignment and Uniformity on the
    Hypersphere", ICML 2020, arXiv 2005.10242.
    Traps: a collapsed network has the best alignment, 0. Read it beside :func:`uniformity`.
    """
    if first.shape != second.shape:
        raise ValueError(
            f"two views of the same images are wanted, [N, D]; got {list(first.shape)}, {list(second.shape)}."
        )
    if not alpha > 0:
        raise ValueError(f"alpha = {alpha}; it must be above 0 (the paper uses 2).")
    distances = (_normalized(first) - _normalized(second)).norm(dim=1)
    return float(distances.pow(alpha).mean())


def uniformity(features: Tensor, *, t: float = 2.0, chunk: int = 2048) -> float:
    """How evenly the features fill the sphere: log of the mean of exp(-t ||u_i - u_j||^2) over pairs i < j.

    Shapes: [N, D], at least two rows. ``chunk`` rows are compared with all others at once.
    Units: from -4 t (no features reach it) to 0, where all features are the same; lower is more even. Features drawn
    evenly from the sphere of many dimensions have about -2 t.
    Raises: ``ValueError`` for other shapes, features that are not finite, or ``t`` that is not above 0.
    Source: Wang, Isola, ICML 2020, arXiv 2005.10242.
    Traps: noise is perfectly uniform. The pairs of a batch alone are too few for a large N.
    """
    if not t > 0:
        raise ValueError(f"t = {t}; it must be above 0 (the paper uses 2).")
    if len(features) < 2:
        raise ValueError(f"{len(features)} image makes no pair; use at least 2.")
    rows = _normalized(features)
    squares = rows.square().sum(dim=1)  # 1, but 0 for a row of 0
    total = rows.new_zeros(())
    for start in range(0, len(rows), chunk):
        some = slice(start, start + chunk)
        distances = squares[some, None] + squares[start:] - 2 * rows[some] @ rows[start:].T  # [chunk, N - start]
        pairs = torch.ones_like(distances).triu(diagonal=1)  # j > i, each pair once
        total = total + ((-t * distances).exp() * pairs).sum()
    return float((total / math.comb(len(rows), 2)).log())


def normalized_std(features: Tensor) -> float:
    """The standard deviation of the normalised features, averaged over dimensions, times sqrt(D): 0 if all are the same.

    Near 1, features fill the sphere: each dimension of a unit vector drawn evenly has the standard deviation
    1 / sqrt(D). Near 0, all images have nearly the same features: full collapse.

    Shapes: [N, D], at least one row. The standard deviation has N in its denominator.
    Raises: ``ValueError`` for other shapes or features that are not finite.
    Source: Chen, He, "Exploring Simple Siamese Representation Learning", CVPR 2021, arXiv 2011.10566, without the factor
    sqrt(D), which makes networks of different widths comparable.
    Traps: it sees the direction alone. Features that shrink to 0 but keep their directions (VICReg without its variance
    term) keep a spread, and features that fill few of the dimensions still have some: see RankMe for those.
    """
    rows = _normalized(features)
    return float(rows.std(dim=0, correction=0).mean() * math.sqrt(rows.shape[1]))


def _normalized(features: Tensor) -> Tensor:
    """Each row scaled to length 1, a row of 0 stays 0.  [N, D] -> float64 [N, D]"""
    if features.ndim != 2 or not len(features):
        raise ValueError(f"features of images are wanted, [N, D]; got {list(features.shape)}.")
    if not features.isfinite().all():
        raise ValueError("the features hold NaN or Inf: the network has diverged.")
    return F.normalize(features.double(), dim=1)
