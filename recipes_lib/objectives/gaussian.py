# SPDX-License-Identifier: Apache-2.0
"""LeJEPA's objective: the views of an image agree, and every view's embeddings look like draws from N(0, I).

Symbols, as in the paper: z embeddings of V views of B images of this rank, N images of all ranks, K dimensions (here d),
a directions (unit vectors), of which there are M, phi the characteristic function, lambda the weight of SIGReg.

========================  ===================================================================  ========================
quantity                  equation                                                             source
========================  ===================================================================  ========================
characteristic function   phi_hat(t) = (1/N) sum_n exp(i t a.z_n)                              paper, section 4.2.3
Epps-Pulley statistic     T = N integral |phi_hat(t) - exp(-t^2/2)|^2 exp(-t^2/2) dt           paper, Algorithm 1
integral                  trapezoid, 17 knots in [0, 3], doubled                               code, ``EppsPulley``
SIGReg of a view          (1/M) sum_a T_a, with new directions at each step                    paper, Definition 2
SIGReg                    mean over all V views                                                paper, Algorithm 2
prediction                mean over views, images and dimensions of (z - centre)^2             paper, Algorithm 2
centre of an image        mean of z over its global views, with gradient                       paper, Algorithm 2
loss                      (1 - lambda) prediction + lambda SIGReg; lambda 0.05, M = 1,024      paper, Alg. 2, sect. 6.1
========================  ===================================================================  ========================

Source: Balestriero, LeCun, "LeJEPA: Provable and Scalable Self-Supervised Learning Without the Heuristics", arXiv
2511.08544; code: ``rbalestr-lab/lejepa``, ``lejepa/univariate/epps_pulley.py`` and ``MINIMAL.md``.
"""

import math

import torch
from torch import Tensor

from recipes_lib.distributed import collectives
from recipes_lib.objectives.precision import at_least_float32

HIGHEST_FREQUENCY = 3.0
"""The integral's upper end, as in the authors' code. The weight exp(-t^2/2) is 0.011 there."""


def random_directions(dim: int, count: int, generator: torch.Generator) -> Tensor:
    """Random unit vectors, uniform over the sphere, as columns.

    Shapes: -> float32 [``dim``, ``count``], on the CPU.
    """
    drawn = torch.randn(dim, count, generator=generator)
    return drawn / drawn.norm(dim=0)


def epps_pulley(projected: Tensor, *, knots: int = 17) -> Tensor:
    """The Epps-Pulley statistic of each column: how far its values are from draws of N(0, 1).

    T = N integral |phi_hat(t) - phi(t)|^2 exp(-t^2/2) dt over [-3, 3], where phi(t) = exp(-t^2/2) is the characteristic
    function of N(0, 1), and phi_hat that of the N values of all ranks. The integrand is even, so knots at t >= 0 suffice.

    Shapes: [..., B, M], this rank's values -> [..., M], at least 0.
    Source: Epps-Pulley in section 4.2.3 and Algorithm 1; ``lejepa/univariate/epps_pulley.py``.
    Differs: the paper's Algorithm 1 has 17 knots over [-5, 5]; the authors' code, which we follow, 33 over [-3, 3].
    """
    t = torch.linspace(0, HIGHEST_FREQUENCY, knots, dtype=projected.dtype, device=projected.device)
    phi = (-t.square() / 2).exp()
    weight = 2 * phi * HIGHEST_FREQUENCY / (knots - 1)  # twice: for t and -t
    weight[[0, -1]] /= 2  # the trapezoidal rule's ends
    angles = projected[..., None] * t  # [..., B, M, knots]
    # a plain all-reduce would give the same value, but 1 / ranks of the gradient: autograd does not see it
    real, imaginary = collectives.all_reduce_mean(torch.stack([angles.cos().mean(dim=-3), angles.sin().mean(dim=-3)]))
    images = projected.shape[-2] * collectives.world_size()
    return images * ((real - phi).square() + imaginary.square()) @ weight


def lejepa_loss(
    embeddings: Tensor,
    directions: Tensor,
    *,
    global_views: int,
    weight: float = 0.05,
    knots: int = 17,
) -> dict[str, Tensor]:
    """The LeJEPA loss: each view's distance to the mean of the global views, and SIGReg of each view's embeddings.

    L = (1 - lambda) (1/V) sum_v |z_v - mu|^2 / d + lambda (1/V) sum_v SIGReg(z_v), averaged over images; mu is the mean
    of the image's global views. Half precision is raised to float32, under autocast too.

    Shapes: ``embeddings`` [V, B, d], global views first, ``directions`` [d, M], unit columns, the same on all ranks ->
    scalars ``loss`` (with its graph) and, detached, ``prediction`` and ``sigreg``.
    Units: ``weight`` (lambda) in [0, 1]; ``global_views`` in 1 to V; ``knots`` at least 2.
    Raises: ``ValueError`` for settings out of range and sizes that do not fit.
    Differs: nothing is detached, as in the paper. For networks that are no transformers its Algorithm 2 takes the mean
    of all views for mu; here it is that of the global views for every network.
    """
    _check(embeddings, directions, global_views, weight, knots)
    with torch.autocast(embeddings.device.type, enabled=False):
        z = at_least_float32(embeddings)
        prediction = (z - z[:global_views].mean(dim=0)).square().mean()
        sigreg = epps_pulley(z @ directions.to(z), knots=knots).mean()  # over views and directions
        loss = (1 - weight) * prediction + weight * sigreg
    return {"loss": loss, "prediction": prediction.detach(), "sigreg": sigreg.detach()}


def _check(embeddings: Tensor, directions: Tensor, global_views: int, weight: float, knots: int) -> None:
    if embeddings.dim() != 3 or directions.dim() != 2 or embeddings.shape[2] != len(directions):
        raise ValueError(
            f"embeddings [V, B, d] and directions [d, M] are wanted; got {list(embeddings.shape)}, "
            f"{list(directions.shape)}."
        )
    if not 1 <= global_views <= len(embeddings):
        raise ValueError(f"global_views = {global_views} of {len(embeddings)} views; it must be in 1 to their number.")
    if not 0 <= weight <= 1 or math.isnan(weight):
        raise ValueError(f"weight = {weight}; it must be in [0, 1] (0.05 is usual).")
    if knots < 2:
        raise ValueError(f"knots = {knots}; an integral needs at least 2 (17 is usual).")
