# SPDX-License-Identifier: Apache-2.0
"""VICReg's objective: two views agree, every dimension varies over the batch, no two dimensions are correlated.

Symbols, as in the paper: z, z' embeddings of an image's two views, B images of this rank and n of all ranks, d
dimensions, gamma the target standard deviation, eps added to the variance, s, v and c the invariance, variance and
covariance terms, lambda, mu and nu their weights.

Source: Bardes, Ponce, LeCun, "VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised Learning",
arXiv 2105.04906.
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
    if first.shape != second.shape or first.dim() != 2:
        raise ValueError(
            f"two views of the same images are wanted, [B, d]; got {list(first.shape)}, {list(second.shape)}."
        )
    if len(first) * collectives.world_size() < 2:
        raise ValueError(f"{len(first)} image has no variance; use a batch of at least 2.")
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
