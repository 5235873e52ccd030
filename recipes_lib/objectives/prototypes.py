# SPDX-License-Identifier: Apache-2.0
"""MSN's objective: soft assignment to prototypes, sharpened and balanced targets, mean-entropy maximisation.

PMSN uses the same loss with other than equal frequencies of the prototypes: see :mod:`recipes_lib.objectives.priors`.

Symbols, as in the paper: z anchor embeddings, z+ target embeddings, q prototypes, p anchors' assignments, t targets'
assignments, pbar the mean of p, tau temperature, T sharpening temperature, L_ce, R and E the terms of the loss, lambda
the weight of R and mu that of E; B images, V anchor views per image, K prototypes, d dimensions. Sums over images run
over all ranks.

Source: Assran et al., "Masked Siamese Networks for Label-Efficient Learning", arXiv 2204.07141.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from recipes_lib.distributed import collectives
from recipes_lib.objectives import priors
from recipes_lib.objectives.precision import at_least_float32


def assignment_logits(embeddings: Tensor, prototypes: Tensor, temperature: float) -> Tensor:
    """The cosines over the temperature, <z/|z|, q/|q|> / tau: their softmax is the assignment p.

    Shapes: ``embeddings`` [n, d], ``prototypes`` [K, d] -> [n, K].
    """
    # tau divides the smaller matrix: [n, d], not [n, K]
    return F.normalize(embeddings, dim=1) / temperature @ F.normalize(prototypes, dim=1).T


def assign(embeddings: Tensor, prototypes: Tensor, temperature: float) -> Tensor:
    """The soft assignment p = softmax(<z/|z|, q/|q|> / tau), whose rows sum to 1.

    Shapes: ``embeddings`` [n, d], ``prototypes`` [K, d] -> [n, K].
    """
    return assignment_logits(embeddings, prototypes, temperature).softmax(dim=1)


def sharpen(assignments: Tensor, temperature: float) -> Tensor:
    """The sharpened assignments p_k^(1/T) / sum_j p_j^(1/T): T below 1 moves mass to the largest entries.

    They are computed as softmax(log p / T): with T = 0.25, p^(1/T) underflows in float16 for p below about 0.016.

    Shapes: [n, K] -> [n, K].
    """
    return (assignments.log() / temperature).softmax(dim=1)


@torch.no_grad()
def sinkhorn(targets: Tensor, iterations: int = 3, prior: Tensor | None = None) -> Tensor:
    """Balances the targets over the prototypes: it divides by the mass per prototype and by the row sums, in turns.

    Its last division is that by the row sums: each target sums to 1, while the masses of the prototypes are only about
    equal, or about in the proportions of ``prior``. The mass is summed over all ranks. No sharpening follows. It cannot
    balance fewer targets than prototypes.

    Shapes: [n, K], ``prior`` [K] -> [n, K], no gradient.
    Raises: ``ValueError`` if the prior has another length than K.
    Source: Cuturi, arXiv 1306.0895; the official code's constant factors (1/K, 1/n) cancel and are left out.
    """
    if prior is not None:
        prior = priors.fitted(prior, targets)
    for _ in range(iterations):
        mass = collectives.all_reduce_sum(targets.sum(dim=0))  # [K]
        # a prototype that gets nothing from any target has mass 0: 0/tiny leaves it at 0, 0/0 would be NaN
        targets = targets / mass.clamp_min(torch.finfo(mass.dtype).tiny)
        if prior is not None:
            targets = targets * prior
        targets = targets / targets.sum(dim=1, keepdim=True)
    return targets


def cross_entropy(targets: Tensor, log_assignments: Tensor) -> Tensor:
    """The cross-entropy -(1 / VB) sum_i sum_k t_ik log p_ik of each anchor view's assignment to its image's target.

    Shapes: ``targets`` [B, K], ``log_assignments`` [V * B, K] view-major -> [].
    """
    batch, count = targets.shape
    views = log_assignments.view(-1, batch, count)  # [V, B, K]: all views of image i meet target i
    return -(targets * views.sum(dim=0)).sum() / log_assignments.shape[0]


def entropy(assignments: Tensor) -> Tensor:
    """The entropy H(p) = -sum_k p_k log p_k, in [0, log K] nats; 0 log 0 = 0.  [..., K] -> [...]"""
    # the clamp makes 0 log 0 = 0, as xlogy does; it also keeps the derivative finite, which xlogy does not
    tiny = torch.finfo(assignments.dtype).tiny
    return -(assignments * assignments.clamp_min(tiny).log()).sum(dim=-1)


def average_entropy(assignments: Tensor) -> Tensor:
    """The average entropy (1 / VB) sum_i H(p_i) of single anchors: how uncertain an anchor is.  [V * B, K] -> []"""
    return entropy(assignments).mean()


def mean_entropy(assignments: Tensor) -> Tensor:
    """The entropy H(pbar) of the mean assignment of all ranks' anchors, in [0, log K] nats, which ME-MAX maximises.

    It is log K if all prototypes are used equally often and 0 if one gets all anchors. Do not confuse it with
    :func:`average_entropy`. Its gradient crosses ranks.

    Shapes: [V * B, K] -> [].
    """
    return entropy(collectives.all_reduce_mean(assignments.mean(dim=0)))


def msn_loss(
    anchors: Tensor,
    targets: Tensor,
    prototypes: Tensor,
    *,
    temperature: float = 0.1,
    sharpen_temperature: float = 0.25,
    sinkhorn_iterations: int = 3,
    me_max_weight: float = 1.0,
    entropy_weight: float = 0.0,
    prior: Tensor | None = None,
    direction: priors.Direction = "forward",
    sinkhorn_prior: Tensor | None = None,
    freeze_prototypes: bool = False,
) -> dict[str, Tensor]:
    """The MSN loss L = L_ce + lambda R + mu E, and its parts. Gradients reach anchors and prototypes, never targets.

    With a ``prior``, R is the divergence of the mean assignment from it (PMSN); with a ``sinkhorn_prior``, the targets
    are balanced in its proportions. ``None`` means the uniform prior of MSN. Half precision is raised to float32, under
    autocast too; float64 stays.

    Shapes: ``anchors`` [V * B, d] view-major (view 1 of all images, then view 2, ...), ``targets`` [B, d],
    ``prototypes`` [K, d], priors [K]; -> scalars ``loss`` (with its graph) and, detached, ``cross_entropy`` (L_ce),
    ``mean_entropy`` (H(pbar): log K if all prototypes are used equally often, 0 if only one is), ``me_max``
    (log K - H(pbar), which is R if the prior is uniform), ``prior_divergence`` (R, only with a ``prior``), ``entropy``
    (E, the average of the anchors' own entropies) and ``target_entropy`` (the average of H(t), L_ce's lower bound).
    Units: ``temperature`` (tau) above 0, ``sharpen_temperature`` (T) in (0, 1], entropies in nats.
    ``freeze_prototypes``: the prototypes get no gradient, an ablation.
    ``direction``: the direction of R's divergence if there is a ``prior``, see :func:`priors.prior_divergence`.
    Raises: ``ValueError`` for settings out of range, sizes that do not fit, prototypes cut off from the graph;
    ``FloatingPointError`` naming a row that is not finite or has no direction (norm 0).
    Differs: on several ranks L_ce and E are means over this rank, R is computed over all ranks. Averaging the ranks'
    gradients, as DDP does, gives the gradient of one rank with the whole batch. The released configs log E (mu = 0).
    """
    _check_settings(temperature, sharpen_temperature, sinkhorn_iterations)
    _check_inputs(anchors, targets, prototypes, freeze_prototypes)
    if freeze_prototypes:
        prototypes = prototypes.detach()
    with torch.autocast(anchors.device.type, enabled=False):
        z, target_z, q = (at_least_float32(rows) for rows in (anchors, targets, prototypes))
        with torch.no_grad():  # the paper's stop-gradient
            # softmax(logits / T) equals sharpen(assign(...), T), without the powers that underflow
            sharpened = (assignment_logits(target_z, q, temperature) / sharpen_temperature).softmax(dim=1)  # [B, K]
            t = sinkhorn(sharpened, sinkhorn_iterations, sinkhorn_prior)  # [B, K]
        log_p = assignment_logits(z, q, temperature).log_softmax(dim=1)  # [V * B, K]
        p = log_p.exp()  # [V * B, K]
        match = cross_entropy(t, log_p)
        mean_assignment = collectives.all_reduce_mean(p.mean(dim=0))  # [K]; its gradient crosses ranks
        even = entropy(mean_assignment)
        me_max = math.log(p.shape[1]) - even  # R = log K - H(pbar): zero where every prototype is used equally
        spread = me_max
        if prior is not None:
            spread = priors.divergence(mean_assignment, priors.fitted(prior, p), direction)
        undecided = average_entropy(p if entropy_weight else p.detach())
        loss = match + me_max_weight * spread + entropy_weight * undecided
    return {
        "loss": loss,
        "cross_entropy": match.detach(),
        "mean_entropy": even.detach(),
        "me_max": me_max.detach(),
        **({} if prior is None else {"prior_divergence": spread.detach()}),
        "entropy": undecided.detach(),
        "target_entropy": average_entropy(t),
    }


def _check_settings(temperature: float, sharpen_temperature: float, sinkhorn_iterations: int) -> None:
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature = {temperature}; it must be above 0 and finite (the paper uses 0.1).")
    if not 0 < sharpen_temperature <= 1:
        raise ValueError(f"sharpen_temperature = {sharpen_temperature}; it must be in (0, 1] (the paper uses 0.25).")
    if sinkhorn_iterations < 0:
        raise ValueError(f"sinkhorn_iterations = {sinkhorn_iterations}; it must be 0 (off) or more.")


def _check_inputs(anchors: Tensor, targets: Tensor, prototypes: Tensor, freeze_prototypes: bool) -> None:
    """Raises if sizes do not fit, if prototypes get no gradient, or if a row norm is 0 or not finite."""
    inputs = {"anchors": anchors, "targets": targets, "prototypes": prototypes}
    if any(rows.dim() != 2 for rows in inputs.values()) or len({rows.shape[1] for rows in inputs.values()}) > 1:
        shapes = ", ".join(f"{name} {list(rows.shape)}" for name, rows in inputs.items())
        raise ValueError(f"embeddings and prototypes must be matrices of one dimension; they are {shapes}.")
    if not len(targets) or not len(anchors) or len(anchors) % len(targets):
        raise ValueError(
            f"{len(anchors)} anchors do not fit {len(targets)} targets: anchors are view-major, V views of the same "
            "B images (V*B rows: view 1 of all images, then view 2, ...)."
        )
    if anchors.requires_grad and not prototypes.requires_grad and not freeze_prototypes:
        raise ValueError(
            "prototypes receive no gradient; pass the Parameter, not .data (freeze_prototypes=True if that is meant)."
        )
    norms = [torch.linalg.vector_norm(at_least_float32(rows.detach()), dim=1) for rows in inputs.values()]
    every = torch.cat(norms)
    if not ((every > 0) & (every < math.inf)).all():  # NaN compares False
        _name_bad_row(inputs, norms)


def _name_bad_row(inputs: dict[str, Tensor], norms: list[Tensor]) -> None:
    for (name, rows), norm in zip(inputs.items(), norms, strict=True):
        bad = ~((norm > 0) & (norm < math.inf))
        if bad.any():
            row = int(bad.nonzero()[0])
            what = "has norm 0, so no direction" if norm[row] == 0 else "holds NaN or Inf"
            if norm[row].isinf() and rows[row].isfinite().all():
                what = "is so large that its norm overflows"
            raise FloatingPointError(f"{name}[{row}] {what} ({int(bad.sum())} of {len(rows)} rows are unusable).")
