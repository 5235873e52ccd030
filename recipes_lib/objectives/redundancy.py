# SPDX-License-Identifier: Apache-2.0
"""VICReg's and Barlow Twins' objectives: two views agree, and no two dimensions of the embedding say the same.

Symbols, as in the papers: z, z' embeddings of an image's two views, B images of this rank and n of all ranks, d
dimensions. VICReg: gamma the target standard deviation, eps added to the variance, s, v and c the invariance, variance
and covariance terms, lambda, mu and nu their weights. Barlow Twins: C the cross-correlation matrix of the two views,
lambda the weight of its off-diagonal elements.

Source: Bardes, Ponce, LeCun, "VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised Learning",
arXiv 2105.04906; Zbontar, Jing, Misra, LeCun, Deny, "Barlow Twins: Self-Supervised Learning via Redundancy Reduction",
arXiv 2103.03230.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from recipes_lib.distributed import collectives
from recipes_lib.objectives.precision import at_least_float32

GAMMA = 1.0
"""The target standard deviation of every dimension, as in the paper."""
EPSILON = 1e-4
"""The number added to each variance, as in the paper: the derivative of the square root is unbounded at 0."""
NORM_EPSILON = 1e-5
"""The number that Barlow Twins adds to each variance before it divides by its root: that of torch's batch norm."""


def variance_hinge(z: Tensor) -> Tensor:
    """How far the standard deviations of the dimensions fall below gamma = 1, on average.

    v(z) = (1/d) sum_j max(0, gamma - sqrt(Var(z_j) + eps)), with the unbiased variance.

    Shapes: [n, d], all images -> [], at least 0.
    Source: Eq. 1 and 2.
    """
    return F.relu(GAMMA - (z.var(dim=0) + EPSILON).sqrt()).mean()


def squared_covariances(z: Tensor) -> Tensor:
    """The squared covariances of different dimensions, summed and divided by d: how redundant the dimensions are.

    c(z) = (1/d) sum_{i != j} C(z)_ij^2, with the unbiased covariance C.

    Shapes: [n, d], all images -> [], at least 0.
    Source: Eq. 3 and 4.
    """
    centred = z - z.mean(dim=0)  # [n, d]
    covariance = centred.T @ centred / (len(z) - 1)  # [d, d]
    return (covariance.square().sum() - covariance.diagonal().square().sum()) / z.shape[1]


def vicreg_loss(
    first: Tensor,
    second: Tensor,
    *,
    invariance_weight: float = 25.0,
    variance_weight: float = 25.0,
    covariance_weight: float = 1.0,
) -> dict[str, Tensor]:
    """The VICReg loss: the weighted sum of the invariance, variance and covariance terms, and these terms.

    L = lambda s(z, z') + mu [v(z) + v(z')] / 2 + nu [c(z) + c(z')], where s is the mean squared difference. Half
    precision is raised to float32, under autocast too.

    Shapes: ``first`` and ``second`` [B, d], row by row views of the same image -> scalars ``loss`` (with its graph)
    and, detached, ``invariance`` (s), ``variance`` (mean of v) and ``covariance`` (sum of c).
    Raises: ``ValueError`` if the shapes differ, or for a single image, which has no variance.
    Differs: the paper's Eq. 5 and 6 divide neither s by d nor v by 2. The authors' code does both, the published
    weights belong to it, and we follow it. On several ranks s is this rank's mean; v and c use all ranks' images.
    """
    _check(first, second)
    with torch.autocast(first.device.type, enabled=False):
        own = [at_least_float32(view) for view in (first, second)]
        everyone = [collectives.all_gather(view) for view in own]  # [n, d] each
        invariance = F.mse_loss(own[0], own[1])
        variance = (variance_hinge(everyone[0]) + variance_hinge(everyone[1])) / 2
        covariance = squared_covariances(everyone[0]) + squared_covariances(everyone[1])
        loss = invariance_weight * invariance + variance_weight * variance + covariance_weight * covariance
    return {
        "loss": loss,
        "invariance": invariance.detach(),
        "variance": variance.detach(),
        "covariance": covariance.detach(),
    }


def cross_correlation(first: Tensor, second: Tensor) -> Tensor:
    """The cross-correlation C_ij of dimension i of the first view with dimension j of the second, over all ranks.

    C = zhat^T zhat' / n, where zhat is z with mean 0 and variance 1 in each dimension (the biased variance plus 1e-5, as
    in a batch norm). All ranks must have the same number of images.

    Shapes: [B, d] twice -> [d, d], in [-1, 1].
    Source: Eq. 2.
    """
    views = torch.stack([first, second])  # [2, B, d]
    centred = views - collectives.all_reduce_mean(views.mean(dim=1, keepdim=True))
    variance = collectives.all_reduce_mean(centred.square().mean(dim=1, keepdim=True))  # [2, 1, d]
    normed = centred * (variance + NORM_EPSILON).rsqrt()
    return collectives.all_reduce_mean(normed[0].T @ normed[1] / len(first))


def barlow_twins_loss(first: Tensor, second: Tensor, *, redundancy_weight: float = 0.0051) -> dict[str, Tensor]:
    """The Barlow Twins loss: the cross-correlation matrix of the two views should be the identity.

    L = sum_i (1 - C_ii)^2 + lambda sum_{i != j} C_ij^2. Half precision is raised to float32, under autocast too.

    Shapes: ``first`` and ``second`` [B, d], row by row views of the same image -> scalars ``loss`` (with its graph)
    and, detached, ``invariance`` (the first sum) and ``redundancy`` (the second, without lambda).
    Raises: ``ValueError`` if the shapes differ, or for a single image, which has no variance.
    Source: Eq. 1.
    Differs: in the authors' code autograd does not see the sum of C over ranks, so its gradient is divided by the number
    of ranks; LARS undoes this for weights. Here the gradient is that of one process with all images. Some libraries
    take mean and variance from one rank's images; here, as in the authors' code, they are those of all ranks.
    """
    _check(first, second)
    with torch.autocast(first.device.type, enabled=False):
        c = cross_correlation(at_least_float32(first), at_least_float32(second))
        diagonal = c.diagonal()
        invariance = (diagonal - 1).square().sum()
        redundancy = c.square().sum() - diagonal.square().sum()
        loss = invariance + redundancy_weight * redundancy
    return {"loss": loss, "invariance": invariance.detach(), "redundancy": redundancy.detach()}


def _check(first: Tensor, second: Tensor) -> None:
    if first.shape != second.shape or first.dim() != 2:
        raise ValueError(
            f"two views of the same images are wanted, [B, d]; got {list(first.shape)}, {list(second.shape)}."
        )
    if len(first) * collectives.world_size() < 2:
        raise ValueError(f"{len(first)} image has no variance; use a batch of at least 2.")
