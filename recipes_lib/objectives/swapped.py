# SPDX-License-Identifier: Apache-2.0
"""SwAV's objective: one view predicts the code of another, and the codes use all prototypes equally often.

Symbols, as in the paper: z embeddings, c prototypes, q codes, p predictions, tau temperature, epsilon the entropy
weight of the codes; V views of B images, the first G of which give codes, K prototypes, d dimensions.

Source: Caron et al., "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments", arXiv 2006.09882.
"""

import math

import torch
from torch import Tensor

from recipes_lib.objectives.precision import at_least_float32
from recipes_lib.objectives.prototypes import assignment_logits, average_entropy, sinkhorn

LOWEST_EPSILON = 0.025
"""The lowest epsilon: below it exp((cosine - 1) / epsilon) underflows in float32, and an image that is far from every
prototype would have no code."""


@torch.no_grad()
def codes(cosines: Tensor, *, epsilon: float = 0.05, iterations: int = 3) -> Tensor:
    """The codes q: the cosines turned by Sinkhorn iterations into assignments that use all K prototypes equally often.

    Each prototype gets an equal share of the batch of all ranks. This is SwAV's hidden uniform prior. With 0 iterations
    nothing is balanced: q = softmax(cosine / epsilon), and all images may get one code.

    Shapes: [B, K] -> [B, K], rows sum to 1, no gradient.
    Units: ``epsilon`` at least 0.025; ``iterations`` at least 0.
    Source: Eq. 3 to 5.
    """
    if iterations == 0:
        return (cosines / epsilon).softmax(dim=1)
    # subtracting 1, the largest cosine, keeps exp within (0, 1]; the first division by mass removes a common factor
    return sinkhorn(((cosines - 1) / epsilon).exp(), iterations)


def swav_loss(
    embeddings: Tensor,
    prototypes: Tensor,
    *,
    code_views: int = 2,
    temperature: float = 0.1,
    epsilon: float = 0.05,
    sinkhorn_iterations: int = 3,
    earlier: Tensor | None = None,
) -> dict[str, Tensor]:
    """The SwAV loss: every view predicts the codes of the other large views.

    L = (1/G) sum_g 1/(V-1) sum_{v != g} -(1/B) sum_i q_g log p_v

    ``earlier`` are embeddings of earlier images. The codes are balanced over them and the batch together, which helps if
    a batch has fewer images than there are prototypes; nothing learns from them.

    Half precision is raised to float32, under autocast too.

    Shapes: ``embeddings`` [V, B, d], large views first, ``prototypes`` [K, d], ``earlier`` [G, Q, d], this rank's share of
    each code view's queue -> scalars ``loss`` (with its graph) and,
    detached, ``code_entropy`` (mean H(q), the loss's lower bound) and ``entropy`` (mean H(p)), in nats.
    Units: ``temperature`` (tau) above 0, ``epsilon`` at least 0.025, ``code_views`` (G) in 1 to V.
    Raises: ``ValueError`` for settings out of range, sizes that do not fit, prototypes cut off from the graph.
    Differs: prototypes are normalised at each use; the authors' code normalises them in place after each step. On several
    ranks the loss is this rank's mean; the codes are balanced over the images of all ranks.
    """
    _check(embeddings, prototypes, code_views, temperature, epsilon, sinkhorn_iterations)
    if earlier is not None and (earlier.dim(), len(earlier), earlier.shape[-1]) != (3, code_views, embeddings.shape[2]):
        raise ValueError(f"earlier [{code_views}, Q, {embeddings.shape[2]}] is wanted; got {list(earlier.shape)}.")
    views, batch, _ = embeddings.shape
    with torch.autocast(embeddings.device.type, enabled=False):
        cosines = assignment_logits(
            at_least_float32(embeddings).flatten(0, 1), at_least_float32(prototypes), 1.0
        )  # [V * B, K]
        log_p = (cosines / temperature).log_softmax(dim=1).unflatten(0, (views, batch))  # [V, B, K]
        large = cosines.detach().unflatten(0, (views, batch))[:code_views]  # [G, B, K]
        if earlier is not None:
            kept = assignment_logits(earlier.detach().flatten(0, 1).to(cosines.dtype), prototypes.detach(), 1.0)
            large = torch.cat([large, kept.unflatten(0, (code_views, -1))], dim=1)  # [G, B + Q, K]
        q = torch.stack([codes(view, epsilon=epsilon, iterations=sinkhorn_iterations) for view in large])[:, :batch]
        others = log_p.sum(dim=0) - log_p[:code_views]  # [G, B, K]: sum over all views but the code's own
        loss = -(q * others).sum() / (code_views * (views - 1) * batch)
    return {"loss": loss, "code_entropy": average_entropy(q), "entropy": average_entropy(log_p.detach().exp())}


def _check(
    embeddings: Tensor, prototypes: Tensor, code_views: int, temperature: float, epsilon: float, iterations: int
) -> None:
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature = {temperature}; it must be above 0 and finite (0.1 is usual).")
    if not LOWEST_EPSILON <= epsilon < math.inf:
        raise ValueError(f"epsilon = {epsilon}; it must be at least {LOWEST_EPSILON} (0.05 is usual).")
    if iterations < 0:
        raise ValueError(f"sinkhorn_iterations = {iterations}; it must be at least 0 (3 is usual, 0 balances nothing).")
    if embeddings.dim() != 3 or prototypes.dim() != 2 or embeddings.shape[2] != prototypes.shape[1]:
        raise ValueError(
            f"embeddings [V, B, d] and prototypes [K, d] are wanted; got {list(embeddings.shape)}, "
            f"{list(prototypes.shape)}."
        )
    if len(embeddings) < 2 or not 1 <= code_views <= len(embeddings):
        raise ValueError(
            f"code_views = {code_views} of {len(embeddings)} views; it must be in 1 to the number of views, and a code "
            "needs another view that predicts it."
        )
    if embeddings.requires_grad and not prototypes.requires_grad:
        raise ValueError("prototypes receive no gradient; pass the Parameter, not .data.")
