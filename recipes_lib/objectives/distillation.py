# SPDX-License-Identifier: Apache-2.0
"""The objectives of self-distillation: a network predicts what it, or an average of itself, says of another view.

BYOL and SimSiam predict the embedding, DINO a distribution over prototypes, iBOT that of each hidden patch. KoLeo
spreads the features of a batch.

Symbols, as in the papers: p predictions, z embeddings (of the target network in BYOL), g_s and g_t the logits of student
and teacher, P_s and P_t their softmax, tau_s and tau_t their temperatures, c the centre, m its momentum; V views of B
images, of which the teacher sees the first G, K prototypes, N patches, d dimensions.

Sources: Grill et al., "Bootstrap Your Own Latent" (BYOL), arXiv 2006.07733; Chen, He, "Exploring Simple Siamese
Representation Learning" (SimSiam), arXiv 2011.10566; Caron et al., "Emerging Properties in Self-Supervised Vision
Transformers" (DINO), arXiv 2104.14294; Zhou et al., "iBOT: Image BERT Pre-Training with Online Tokenizer", arXiv
2111.07832; Sablayrolles et al., "Spreading vectors for similarity search" (KoLeo), arXiv 1806.03198.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from recipes_lib.distributed import collectives
from recipes_lib.objectives.gauges import embedding_std
from recipes_lib.objectives.precision import at_least_float32

KOLEO_EPSILON = 1e-8
"""The number added to each distance before the logarithm, as in DINOv2's code: two equal features have distance 0."""


def byol_loss(predictions: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """BYOL's loss: the squared distance of each view's prediction to the other view's target, both normalised.

    L = (1/B) sum_i |p/|p| - sg(z'/|z'|)|^2 + the same with the views swapped = 4 - 2 (cos + cos'). Targets get no
    gradient. Half precision is raised to float32, under autocast too.

    Shapes: ``predictions`` and ``targets`` [2, B, d], first views, then second -> scalars ``loss`` (with its graph) and,
    detached, ``cosine`` (mean of p and z') and ``std`` (:func:`~recipes_lib.objectives.gauges.embedding_std` of the targets).
    Raises: ``ValueError`` for other shapes.
    Source: Eq. 2 and Sec. 3.1.
    Differs: nothing is exchanged between ranks but the sums of ``std``; on several ranks ``loss`` is this rank's mean.
    """
    _need_pairs(predictions, targets)
    with torch.autocast(predictions.device.type, enabled=False):
        cosine = _swapped_cosine(predictions, targets.detach())  # sg: the target network is not trained by the loss
        loss = 4 - 4 * cosine
    return {"loss": loss, "cosine": cosine.detach(), "std": embedding_std(targets)}


def simsiam_loss(predictions: Tensor, embeddings: Tensor, *, stop_gradient: bool = True) -> dict[str, Tensor]:
    """SimSiam's loss: the negative cosine of each view's prediction and the other view's embedding.

    L = -(1/2) (1/B) sum_i [cos(p_1, sg(z_2)) + cos(p_2, sg(z_1))]. Half precision is raised to float32, under autocast
    too.

    ``stop_gradient``: with False the embeddings get a gradient too, and all images end at the same embedding.

    Shapes: ``predictions`` and ``embeddings`` [2, B, d], first views, then second -> scalars ``loss`` (with its graph)
    and, detached, ``std`` (:func:`~recipes_lib.objectives.gauges.embedding_std` of the embeddings).
    Units: ``loss`` in [-1, 1].
    Raises: ``ValueError`` for other shapes.
    Source: Eq. 1 and 2 (without), 3 and 4 (with stop-gradient).
    Differs: on several ranks ``loss`` is this rank's mean.
    """
    _need_pairs(predictions, embeddings)
    with torch.autocast(predictions.device.type, enabled=False):
        targets = embeddings.detach() if stop_gradient else embeddings
        loss = -_swapped_cosine(predictions, targets)
    return {"loss": loss, "std": embedding_std(embeddings)}


def dino_loss(
    student: Tensor,
    teacher: Tensor,
    centre: Tensor,
    *,
    temperature: float = 0.1,
    teacher_temperature: float = 0.04,
) -> dict[str, Tensor]:
    """DINO's loss: each view's distribution over prototypes must be the teacher's of every other large view.

    L = mean over teacher views i and student views j != i of -(1/B) sum_images sum_k P_t(i) log P_s(j), with
    P_t = softmax((g_t - c) / tau_t) and P_s = softmax(g_s / tau_s). The teacher gets no gradient. Half precision is
    raised to float32, under autocast too.

    ``centre``: that of the step before; :func:`moved_centre` gives the next one.

    Shapes: ``student`` [V, B, K], large views first, ``teacher`` [G, B, K], ``centre`` [K] -> scalars ``loss`` (with its
    graph) and, detached, ``teacher_entropy`` (mean H(P_t)) and ``kl`` (mean KL(P_t || P_s)), whose sum is the loss.
    Units: nats; temperatures above 0. The entropy is 0 if the teacher is sure of one prototype, log K if of none.
    Raises: ``ValueError`` for a temperature out of range or shapes that do not fit.
    Source: Eq. 1 to 4 and Algorithm 1.
    Differs: on several ranks ``loss`` is this rank's mean.
    """
    _need_temperatures(temperature, teacher_temperature)
    _need_views(student, teacher, centre)
    views, targets, batch = len(student), len(teacher), student.shape[1]
    with torch.autocast(student.device.type, enabled=False):
        log_p = (at_least_float32(student) / temperature).log_softmax(dim=2)  # [V, B, K]
        with torch.no_grad():
            log_q = _log_targets(teacher, centre, teacher_temperature)  # [G, B, K]
            q = log_q.exp()
        others = log_p.sum(dim=0) - log_p[:targets]  # [G, B, K]: sum over all views but the teacher's own
        loss = -(q * others).sum() / (targets * (views - 1) * batch)
        entropy = -(q * log_q).sum(dim=2).mean()
    return {"loss": loss, "teacher_entropy": entropy, "kl": loss.detach() - entropy}


def ibot_patch_loss(
    student: Tensor,
    teacher: Tensor,
    centre: Tensor,
    masked: Tensor,
    *,
    temperature: float = 0.1,
    teacher_temperature: float = 0.04,
) -> dict[str, Tensor]:
    """iBOT's loss on patches: the student says for each hidden patch what the teacher, which sees it, says.

    L = (1/B) sum_images (1 / hidden patches) sum_{hidden patches} -sum_k P_t log P_s, both of the same view. An image
    without hidden patches counts with 0. The teacher gets no gradient. Half precision is raised to float32, under
    autocast too.

    Shapes: ``student`` and ``teacher`` [B, N, K], all patches of B views, ``centre`` [K], ``masked`` bool [B, N] ->
    scalars ``loss`` (with its graph) and, detached, ``teacher_entropy`` (mean H(P_t) of hidden patches), in nats.
    Units: temperatures above 0.
    Raises: ``ValueError`` for a temperature out of range or shapes that do not fit.
    Source: the authors' code, ``bytedance/ibot``, which takes the mean over an image's hidden patches.
    Differs: on several ranks ``loss`` is this rank's mean.
    """
    _need_temperatures(temperature, teacher_temperature)
    if student.dim() != 3 or student.shape != teacher.shape or masked.shape != student.shape[:2]:
        raise ValueError(
            f"student and teacher [B, N, K] and masked [B, N] are wanted; got {list(student.shape)}, "
            f"{list(teacher.shape)}, {list(masked.shape)}."
        )
    _need_centre(centre, student)
    with torch.autocast(student.device.type, enabled=False):
        log_p = (at_least_float32(student) / temperature).log_softmax(dim=2)  # [B, N, K]
        with torch.no_grad():
            log_q = _log_targets(teacher, centre, teacher_temperature)  # [B, N, K]
            q = log_q.exp()
        each = masked.to(log_p.dtype) / masked.sum(dim=1, keepdim=True).clamp_min(
            1
        )  # [B, N]: weights of an image's hidden patches
        loss = -(each * (q * log_p).sum(dim=2)).sum(dim=1).mean()
        entropy = -(each * (q * log_q).sum(dim=2)).sum() / each.sum().clamp_min(1)
    return {"loss": loss, "teacher_entropy": entropy}


@torch.no_grad()
def moved_centre(centre: Tensor, teacher: Tensor, *, momentum: float = 0.9) -> Tensor:
    """The centre of the next step: m c + (1 - m) times the mean of the teacher's logits of all ranks.

    Shapes: ``centre`` [K], ``teacher`` [..., K], as many rows on each rank -> [K], no gradient.
    Units: ``momentum`` in [0, 1]; with 1 the centre stays.
    Raises: ``ValueError`` for a momentum out of range or a centre of another length.
    Source: DINO's Eq. 4.
    """
    if not 0 <= momentum <= 1:
        raise ValueError(f"momentum = {momentum}; it must be in [0, 1] (0.9 is usual).")
    _need_centre(centre, teacher)
    mean = collectives.all_reduce_mean(at_least_float32(teacher).flatten(0, -2).mean(dim=0))  # [K]
    return torch.lerp(mean.to(centre.dtype), centre, momentum)


def koleo_loss(features: Tensor) -> Tensor:
    """The KoLeo regulariser: minus the mean logarithm of each feature's distance to its nearest neighbour.

    L = -(1/n) sum_i log(min_{j != i} |x_i - x_j| + eps), x normalised. Its minimum spreads the features evenly over the
    sphere: the differential entropy, as Kozachenko and Leonenko estimate it, is largest. Half precision is raised to
    float32, under autocast too.

    Shapes: [B, d], one view of each image -> [], with its graph.
    Raises: ``ValueError`` for another shape, or a single image, which has no neighbour.
    Source: Sablayrolles et al.; eps from DINOv2's code.
    Differs: neighbours are searched among the images of all ranks, so that two ranks give the loss and the gradient of
    one; DINOv2's code searches among those of its own GPU. ``loss`` is this rank's mean.
    """
    if features.dim() != 2:
        raise ValueError(f"features of one view are wanted, [B, d]; got {list(features.shape)}.")
    batch, images = len(features), len(features) * collectives.world_size()
    if images < 2:
        raise ValueError(f"{images} image has no neighbour; use a batch of at least 2.")
    with torch.autocast(features.device.type, enabled=False):
        own = F.normalize(at_least_float32(features), dim=1)  # [B, d]
        everyone = collectives.all_gather(own)  # [n, d]
        with torch.no_grad():
            cosines = own @ everyone.T  # [B, n]
            here = torch.arange(batch, device=features.device) + collectives.rank() * batch
            nearest = cosines.scatter_(1, here[:, None], -math.inf).argmax(dim=1)  # [B]: no image is its own neighbour
        distances = torch.linalg.vector_norm(own - everyone[nearest], dim=1)  # [B]
        return -(distances + KOLEO_EPSILON).log().mean()


def _swapped_cosine(predictions: Tensor, targets: Tensor) -> Tensor:
    """The mean cosine of each view's prediction and the other view's target.  [2, B, d], [2, B, d] -> []"""
    p, z = (F.normalize(at_least_float32(x), dim=2) for x in (predictions, targets))
    return (p * z.flip(0)).sum(dim=2).mean()


def _log_targets(teacher: Tensor, centre: Tensor, temperature: float) -> Tensor:
    """The logarithm of the teacher's centred and sharpened distribution.  [..., K] -> [..., K]"""
    return ((at_least_float32(teacher) - centre) / temperature).log_softmax(dim=-1)


def _need_pairs(predictions: Tensor, targets: Tensor) -> None:
    if predictions.shape != targets.shape or predictions.dim() != 3 or len(predictions) != 2:
        raise ValueError(
            f"predictions and targets of two views are wanted, [2, B, d] each; got {list(predictions.shape)}, "
            f"{list(targets.shape)}."
        )


def _need_temperatures(temperature: float, teacher_temperature: float) -> None:
    for name, value in (("temperature", temperature), ("teacher_temperature", teacher_temperature)):
        if not 0 < value < math.inf:
            raise ValueError(f"{name} = {value}; it must be above 0 and finite (0.1 and 0.04 are usual).")


def _need_views(student: Tensor, teacher: Tensor, centre: Tensor) -> None:
    if student.dim() != 3 or teacher.dim() != 3 or student.shape[1:] != teacher.shape[1:]:
        raise ValueError(
            f"student [V, B, K] and teacher [G, B, K] are wanted; got {list(student.shape)}, {list(teacher.shape)}."
        )
    if len(student) < 2 or not 1 <= len(teacher) <= len(student):
        raise ValueError(
            f"the teacher sees {len(teacher)} of {len(student)} views; it must see 1 to all of them, and a view needs "
            "another one that predicts it."
        )
    _need_centre(centre, student)


def _need_centre(centre: Tensor, logits: Tensor) -> None:
    if centre.shape != logits.shape[-1:]:
        raise ValueError(f"the centre has shape {list(centre.shape)}; it must have {list(logits.shape[-1:])}.")
