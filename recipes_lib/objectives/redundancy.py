# SPDX-License-Identifier: Apache-2.0
"""VICReg's objective: two views agree, every dimension varies over the batch, no two dimensions say the same.

Symbols, as in the paper: z, z' embeddings of an image's two views, n images of all ranks, d dimensions, gamma the
wanted standard deviation, lambda, mu and nu the weights of invariance, variance and covariance.

Source: Bardes, Ponce, LeCun, "VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised Learning",
arXiv 2105.04906.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from recipes_lib.distributed import collectives
from recipes_lib.objectives.precision import at_least_float32

GAMMA = 1.0
EPSILON = 1e-4
"""Added to each variance, as in the paper: the square root's derivative has no bound at 0."""


def variance_hinge(z: Tensor) -> Tensor:
    """v(z) = (1/d) sum_j max(0, gamma - sqrt(Var(z_j) + eps)): how far the dimensions' deviations fall below 1.

    Shapes: [n, d], all images -> [], at least 0.
    Source: Eq. 1 and 2; unbiased variance.
    """
    return F.relu(GAMMA - (z.var(dim=0) + EPSILON).sqrt()).mean()


def squared_covariances(z: Tensor) -> Tensor:
    """c(z) = (1/d) sum_{i != j} C(z)_ij^2: how much the dimensions repeat one another.

    Shapes: [n, d], all images -> [], at least 0.
    Source: Eq. 3 and 4; unbiased covariance.
    """
    centred = z - z.mean(dim=0)
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
    """lambda s(z, z') + mu [v(z) + v(z')] / 2 + nu [c(z) + c(z')], s the mean squared difference.

    Half precision is raised to float32, under autocast too.

    Shapes: ``first`` and ``second`` [B, d], row by row views of the same image -> scalars ``loss`` (with its graph)
    and, detached, ``invariance`` (s), ``variance`` (mean of v) and ``covariance`` (sum of c).
    Raises: ``ValueError`` where the shapes differ or there is a single image, which has no variance.
    Differs: the paper's Eq. 5 and 6 divide neither s by d nor v by 2; the authors' code does both, the published weights
    are for it, and it is followed. On several ranks s is this rank's mean, v and c are of all images.
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
