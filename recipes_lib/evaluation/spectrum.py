# SPDX-License-Identifier: Apache-2.0
"""Quality of features without labels, read from a spectrum: RankMe, alpha-ReQ and LiDAR.

All three say how many directions of the feature space are in use, and none says whether these directions tell classes
apart. So they can compare runs of one method with each other, but not two methods, nor a trained network with an
untrained one: untrained networks often have the highest rank of all.

Symbols: N images, D dimensions, s_k singular values, lambda_k eigenvalues, p_k their share of the sum.
"""

import warnings

import torch
from torch import Tensor

EPSILON = 1e-7
"""Added to each share p_k, as in RankMe's paper, so that p log p is defined at 0."""
DELTA = 1e-4
"""Added to the diagonal of LiDAR's covariance within images, so that the covariance has an inverse."""


class NoSpectrum(ValueError):
    """The features are all 0, or the same for all images, so that a spectrum is not defined."""


def rankme(features: Tensor) -> float:
    """RankMe, the effective rank: how many dimensions the features fill, from 1 to min(N, D).

    exp(-sum_k p_k ln p_k), where p_k = s_k / sum s + 1e-7 and s_k are the singular values of the features as they are.

    Shapes: [N, D], at least one row.
    Units: a number of dimensions. The 1e-7 may lift it above D by as little (the identity of 3 gives 3.00000009).
    Raises: ``NoSpectrum`` for features that are all 0; ``ValueError`` for other shapes, or features that are not
    finite. Warns if N < D, because the rank cannot exceed N then.
    Source: Garrido, Balestriero, Najman, LeCun, "RankMe", ICML 2023, arXiv 2210.02885.
    Traps: the features are **not** centred, so a large mean counts as a dimension and hides the others; it falls with N,
    so compare only equal numbers of images (the paper uses 25,600); noise has full rank.
    """
    _check(features)
    if len(features) < features.shape[1]:
        warnings.warn(
            f"RankMe of {len(features)} images is at most {len(features)}, and the features have {features.shape[1]} "
            "dimensions: use more images.",
            stacklevel=2,
        )
    return _effective_number(torch.linalg.svdvals(features.double()))


def alpha_req(features: Tensor, *, first: int = 1, last: int | None = None) -> float:
    """alpha-ReQ: the exponent alpha of the power law lambda_i ~ i^-alpha that fits the covariance's eigenvalues.

    Near 1 is good. A large alpha means that few dimensions hold the variance; 0 means that all hold the same (noise).

    The fit is by least squares of log lambda_i on log i, over the ranks i from ``first`` to ``last`` (both included,
    from 1). ``last`` None: the last eigenvalue that is above rounding error. The first few and the tail often do not
    follow the power law, and alpha depends on the range, so state it with the number.

    Shapes: [N, D], at least two rows.
    Raises: ``NoSpectrum`` if fewer than two eigenvalues are above 0; ``ValueError`` for other shapes, or a range that
    does not fit the eigenvalues.
    Source: Agrawal, Mondal, Ghosh, Richards, "alpha-ReQ", NeurIPS 2022.
    Traps: here features **are** centred, unlike in RankMe. alpha does not depend on the covariance's normaliser.
    """
    _check(features)
    if len(features) < 2:
        raise ValueError(f"{len(features)} image has no covariance; use at least 2.")
    rows = features.double()
    spectrum = torch.linalg.svdvals(rows - rows.mean(dim=0)).square() / len(rows)  # eigenvalues of the covariance
    tiny = spectrum[0] * max(rows.shape) * torch.finfo(torch.float64).eps
    above = int((spectrum > tiny).sum())
    last = above if last is None else last
    if not 1 <= first < last <= above:
        raise (NoSpectrum if above < 2 else ValueError)(
            f"the power law is fitted to the eigenvalues {first} to {last}, and {above} are above 0; "
            "use at least two of these."
        )
    x = torch.arange(first, last + 1, dtype=torch.float64).log()
    y = spectrum[first - 1 : last].cpu().log()
    return -float((x - x.mean()) @ (y - y.mean()) / (x - x.mean()).square().sum())


def lidar(features: Tensor) -> float:
    """LiDAR: the effective rank of what varies between images, in units of what varies between the views of an image.

    exp(-sum_k p_k ln p_k), where p_k = lambda_k / sum lambda + 1e-7 and lambda_k are the eigenvalues of
    W^-1/2 B W^-1/2. B is the covariance of the images' means, divided by n - 1; W is the covariance of views around
    their image's mean, divided by n (q - 1), plus 1e-4 on its diagonal.

    Shapes: [n, q, D], q views of each of n images.
    Raises: ``NoSpectrum`` for features that do not vary between images; ``ValueError`` for other shapes, fewer than 2
    images or 2 views. Warns if n <= D, because the rank cannot exceed n - 1 then.
    Source: Thilak et al., "LiDAR", ICLR 2024, arXiv 2312.04000.
    Traps: it needs several views of each image, and depends on the augmentation that makes them. Unlike RankMe, it
    does not count a dimension more for noise that differs between the views of an image. Dividing by n instead of
    n - 1 changes the result through 1e-4 only.
    """
    if features.ndim != 3 or len(features) < 2 or features.shape[1] < 2:
        raise ValueError(
            f"LiDAR compares views within images, [n, q, D] with n >= 2 and q >= 2; got {list(features.shape)}."
        )
    _check(features.flatten(0, 1))
    count, views, width = features.shape
    if count <= width:
        warnings.warn(
            f"LiDAR of {count} images is at most {count - 1}, and the features have {width} dimensions: use more images.",
            stacklevel=2,
        )
    rows = features.double()
    means = rows.mean(dim=1)  # [n, D]
    between, within = means - means.mean(dim=0), (rows - means[:, None]).flatten(0, 1)
    identity = torch.eye(width, dtype=torch.float64, device=rows.device)
    values, vectors = torch.linalg.eigh(within.T @ within / (count * (views - 1)) + DELTA * identity)
    whitened = between @ vectors * values.rsqrt()  # [n, D]; W^-1/2 up to a rotation, which changes no eigenvalue
    return _effective_number(torch.linalg.svdvals(whitened).square() / (count - 1))


def _effective_number(values: Tensor) -> float:
    """The exponential of the entropy of the shares p_k = values / sum + 1e-7.  [K] -> from 1 to K"""
    total = values.sum()
    if not total > 0:
        raise NoSpectrum("all features are 0, or the same for all images: there is no spectrum to measure.")
    shares = values / total + EPSILON
    return float((-(shares * shares.log()).sum()).exp())


def _check(features: Tensor) -> None:
    if features.ndim != 2 or not len(features):
        raise ValueError(f"features of images are wanted, [N, D]; got {list(features.shape)}.")
    if not features.isfinite().all():
        raise ValueError("the features hold NaN or Inf: the network has diverged.")
