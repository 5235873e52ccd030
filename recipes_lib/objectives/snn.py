# SPDX-License-Identifier: Apache-2.0
"""PAWS's objective: the soft label of one view, found among labelled supports, must match that of the other view.

Symbols, as in the paper: z anchor embeddings, z_s anchor supports, h target embeddings, h_s target supports, y labels
of the supports, p anchors' predictions, t targets, pbar the mean of the sharpened p, lambda the weight of H(pbar), tau
temperature, T sharpening temperature; B images per rank, 2 large and M small views of each, S supports and C classes,
d dimensions. Sums over images and supports run over all ranks.

Source: Assran et al., "Semi-Supervised Learning of Visual Features by Non-Parametrically Predicting View Assignments
with Support Samples", arXiv 2104.13963.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from recipes_lib.distributed import collectives
from recipes_lib.objectives.precision import at_least_float32
from recipes_lib.objectives.prototypes import average_entropy, cross_entropy, mean_entropy, sharpen

NEGLIGIBLE = 1e-4
"""Target entries below this are set to 0, as in the released code; the row is not normalised again."""


def soft_nearest_neighbours(queries: Tensor, supports: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """The supports' labels averaged by their similarity to each query: softmax(<z/|z|, z_s/|z_s|> / tau) y.

    This classifier has no parameters, so its quality is that of the embedding. A query of zeros is equally similar to
    every support.

    Shapes: ``queries`` [n, d], ``supports`` [S, d], ``labels`` [S, C] -> [n, C], rows summing to 1 where labels' do.
    Units: ``temperature`` above 0; the cosines lie in [-1, 1].
    """
    logits = _directions(queries) / temperature @ _directions(supports).T  # [n, S]; tau divides the smaller [n, d]
    return logits.softmax(dim=1) @ labels.to(logits.dtype)  # [n, C]


def support_labels(classes: Tensor, count: int, smoothing: float) -> Tensor:
    """The label rows y: one-hot rows with the share ``smoothing`` spread over all classes, so no prediction is ever 0.

    Shapes: ``classes`` int64 [S] in [0, count) -> float [S, count], rows summing to 1.
    Units: ``smoothing`` in [0, 1); the paper uses 0.1.
    Raises: ``ValueError`` for a smoothing or a class out of range.
    """
    if not 0 <= smoothing < 1:
        raise ValueError(f"smoothing = {smoothing}; it must be in [0, 1) (the paper uses 0.1).")
    if len(classes) and not 0 <= int(classes.min()) <= int(classes.max()) < count:
        raise ValueError(
            f"the supports' classes reach from {int(classes.min())} to {int(classes.max())}; they must be in "
            f"[0, {count}), one for each of {count} columns."
        )
    return F.one_hot(classes, count) * (1 - smoothing) + smoothing / count


def view_targets(predictions: Tensor, small_views: int) -> Tensor:
    """The target of each view: the other large view's prediction for a large view, the mean of both for a small view.

    ``predictions`` must be sharpened already: the mean of sharpened rows is not the sharpened mean.

    Shapes: [2B, C] view-major -> [(2 + small_views) * B, C] view-major.
    """
    first, second = predictions.chunk(2)  # [B, C] each
    both = (first + second) / 2
    return torch.cat([second, first, both.repeat(small_views, 1)])


def paws_loss(
    anchors: Tensor,
    targets: Tensor,
    anchor_supports: Tensor,
    target_supports: Tensor,
    labels: Tensor,
    *,
    temperature: float = 0.1,
    sharpen_temperature: float = 0.25,
    me_max_weight: float = 1.0,
) -> dict[str, Tensor]:
    """The PAWS loss L = L_ce - lambda H(pbar), and its parts.

    Gradients reach the anchors and their supports, never the target branch.

    Half precision is raised to float32, under autocast too; float64 stays.

    Shapes: ``anchors`` [(2 + M) * B, d] view-major (large view 1 of all images, large view 2, then the small ones),
    ``targets`` [2B, d] the large views in the same order (they are swapped here), ``anchor_supports`` and
    ``target_supports`` [S / ranks, d], ``labels`` [S / ranks, C] of the same supports; -> scalars ``loss`` (with its
    graph) and, detached, ``cross_entropy`` (L_ce), ``mean_entropy`` (H(pbar): log C if all classes are predicted
    equally often, 0 if only one is), ``me_max`` (log C - H(pbar)), ``entropy`` (the average of the anchors' own
    entropies) and ``target_entropy`` (the average of H(t), the lower bound of L_ce).
    Units: ``temperature`` (tau) above 0, ``sharpen_temperature`` (T) in (0, 1], entropies in nats.
    Raises: ``ValueError`` for temperatures out of range, sizes that do not fit, labels that do not sum to 1, and
    unsmoothed labels where a class has no support.
    Differs: unlike in MSN, pbar is the mean of *sharpened* predictions, and the constant log C is left out. On several
    ranks L_ce is the mean over this rank, H(pbar) is computed over all ranks, and every rank uses the supports of all
    ranks. Averaging the ranks' gradients, as DDP does, gives the gradient of one rank with the whole batch and support.
    The released code pairs labels with gathered supports by position, which is wrong for several views per support on
    several ranks; here each support row comes with its own label row.
    """
    _check_settings(temperature, sharpen_temperature)
    _check_sizes(anchors, targets, anchor_supports, target_supports, labels)
    y = collectives.all_gather(labels)  # [S, C]
    _check_labels(y)
    with torch.autocast(anchors.device.type, enabled=False):
        z, z_s, h, h_s = (at_least_float32(rows) for rows in (anchors, anchor_supports, targets, target_supports))
        with torch.no_grad():  # the paper's stop-gradient
            predicted = soft_nearest_neighbours(h, collectives.all_gather(h_s), y, temperature)  # [2B, C]
            t = view_targets(sharpen(predicted, sharpen_temperature), 2 * len(z) // len(h) - 2)  # [(2 + M) * B, C]
            t = t.where(t >= NEGLIGIBLE, 0)
        p = soft_nearest_neighbours(z, collectives.all_gather(z_s), y, temperature)  # [(2 + M) * B, C]
        # without smoothing p may underflow to 0: log would be -inf, and its derivative NaN
        p = p.clamp_min(torch.finfo(p.dtype).tiny)
        match = cross_entropy(t, p.log())
        spread = mean_entropy(sharpen(p, sharpen_temperature))  # over all views and ranks
        loss = match - me_max_weight * spread
    return {
        "loss": loss,
        "cross_entropy": match.detach(),
        "mean_entropy": spread.detach(),
        "me_max": math.log(p.shape[1]) - spread.detach(),
        "entropy": average_entropy(p.detach()),
        "target_entropy": average_entropy(t),
    }


def _directions(rows: Tensor) -> Tensor:
    """The rows divided by their norms, as F.normalize does, but in half as many passes over a large support.  [n, d]

    It multiplies by a reciprocal [n, 1]; F.normalize divides [n, d], and divides again in the backward pass.
    """
    return rows * torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_min(1e-12).reciprocal()


def _check_settings(temperature: float, sharpen_temperature: float) -> None:
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature = {temperature}; it must be above 0 and finite (the paper uses 0.1).")
    if not 0 < sharpen_temperature <= 1:
        raise ValueError(f"sharpen_temperature = {sharpen_temperature}; it must be in (0, 1] (the paper uses 0.25).")


def _check_sizes(
    anchors: Tensor, targets: Tensor, anchor_supports: Tensor, target_supports: Tensor, labels: Tensor
) -> None:
    names = ("anchors", "targets", "anchor_supports", "target_supports")
    inputs = dict(zip(names, (anchors, targets, anchor_supports, target_supports), strict=True))
    pairs = ((anchors, anchor_supports), (targets, target_supports))
    if any(rows.dim() != 2 for rows in inputs.values()) or any(a.shape[1] != b.shape[1] for a, b in pairs):
        shapes = ", ".join(f"{name} {list(rows.shape)}" for name, rows in inputs.items())
        raise ValueError(f"queries and supports must be matrices, each branch of one dimension; they are {shapes}.")
    if not len(targets) or len(targets) % 2:
        raise ValueError(f"{len(targets)} targets are not two large views of the same B images (2B rows, view-major).")
    images = len(targets) // 2
    if len(anchors) < len(targets) or len(anchors) % images:
        raise ValueError(
            f"{len(anchors)} anchors do not fit {len(targets)} targets: anchors are view-major, 2 + M views of the same "
            f"{images} images (a multiple of {images}, at least {2 * images} rows)."
        )
    lengths = {len(anchor_supports), len(target_supports), len(labels)}
    if labels.dim() != 2 or len(lengths) > 1 or 0 in lengths:
        raise ValueError(
            f"each support needs its label row: there are {len(anchor_supports)} anchor supports, "
            f"{len(target_supports)} target supports, and labels of shape {list(labels.shape)}."
        )


def _check_labels(labels: Tensor) -> None:
    """Raises ``ValueError`` if a row of ``labels`` [S, C] does not sum to 1 or a class has no mass (no smoothing).

    ``labels`` are those of all ranks, so all ranks fail together.
    """
    off = (labels.sum(dim=1) - 1).abs()
    missing = ~(labels.sum(dim=0) > 0)
    if not ((off < 1e-3).all() & ~missing.any()):  # one wait for the device; NaN compares False
        if missing.any():
            raise ValueError(
                f"log 0: class {int(missing.nonzero()[0])} has no support ({int(missing.sum())} of {len(missing)} "
                "classes have none); use smoothing above 0 (the paper: 0.1), or add images of it to the support."
            )
        row = int(off.nan_to_num(math.inf).argmax())
        raise ValueError(f"label rows must sum to 1; row {row} sums to {float(labels[row].sum()):.6g}.")
