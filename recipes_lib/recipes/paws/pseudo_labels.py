# SPDX-License-Identifier: Apache-2.0
"""FixMatch: a classifier with the same budget as PAWS that also uses the unlabelled images, as a control for PAWS.

A network trained on the few labels alone would be a weak control. FixMatch takes the same network, images, labels and
number of updates, and learns from its own confident predictions (pseudo-labels): a strongly augmented view must get the
class that the network predicts for a weakly augmented view of the same image.

Source: Sohn, Berthelot, Li, Zhang, Carlini, Cubuk, Kurakin, Zhang, Raffel, "FixMatch: Simplifying Semi-Supervised
Learning with Consistency and Confidence", NeurIPS 2020, arXiv 2001.07685, Equations 3 and 4.
Differs: AdamW, a cosine schedule and gradient clipping, as in the supervised baseline, replace SGD and the moving
average of the weights; the strong view is the recipe's augmentation, not RandAugment with Cutout; one process only.

Symbols: B labelled images and mu * B images per update; q: the prediction for a weak view; p: that for a strong view;
L_s and L_u: the supervised and the unsupervised loss; lambda: ``weight``.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recipes_lib import randomness
from recipes_lib.data.images import UNLABELLED, ImageSet
from recipes_lib.data.load import Splits
from recipes_lib.data.loader import StepBatches
from recipes_lib.evaluation.baselines import classifier, descend
from recipes_lib.evaluation.features import extract
from recipes_lib.objectives.precision import at_least_float32
from recipes_lib.views.multicrop import MultiCrop, Normalize, ViewsConfig


@dataclass(frozen=True)
class Batch:
    """The views of one update: one of each of B labelled images, and two of each of mu * B images, labelled or not."""

    labelled: Tensor
    """float [B, 3, H, W]: weak views of the labelled images."""
    labels: Tensor
    """int64 [B]: classes of the labelled images."""
    weak: Tensor
    """float [mu * B, 3, H, W]: weak views, which are only cropped and mirrored."""
    strong: Tensor
    """float [mu * B, 3, H, W]: views of the same images with the recipe's full augmentation."""


def fixmatch_loss(
    logits_labelled: Tensor,
    labels: Tensor,
    logits_weak: Tensor,
    logits_strong: Tensor,
    *,
    threshold: float = 0.95,
    weight: float = 1.0,
) -> dict[str, Tensor]:
    """FixMatch's loss L = L_s + lambda L_u: cross-entropy with the labels, and with confident predictions as labels.

    L_u = 1 / (mu B) sum 1(max q >= threshold) H(argmax q, p) is a mean over all mu B images; an image below the
    threshold counts as 0. q, the prediction for the weak view, gets no gradient. Half precision is raised to float32.

    Shapes: ``logits_labelled`` [B, classes], ``labels`` int64 [B], ``logits_weak`` and ``logits_strong``
    [mu * B, classes], row i of both from the same image; -> scalars ``loss`` (with its graph) and, detached,
    ``supervised`` (L_s), ``unsupervised`` (L_u) and ``confident`` (share of images at or above the threshold).
    Units: ``threshold`` in [0, 1], ``weight`` (lambda) of at least 0.
    Raises: ``ValueError`` for numbers out of range, sizes that do not fit, and a labelled image without a label.
    """
    _check(logits_labelled, labels, logits_weak, logits_strong, threshold, weight)
    logits_labelled, logits_weak, logits_strong = (
        at_least_float32(logits) for logits in (logits_labelled, logits_weak, logits_strong)
    )
    supervised = F.cross_entropy(logits_labelled, labels)
    confidence, guess = logits_weak.detach().softmax(dim=1).max(dim=1)  # [mu * B]
    confident = (confidence >= threshold).to(logits_strong.dtype)  # [mu * B]
    unsupervised = (F.cross_entropy(logits_strong, guess, reduction="none") * confident).mean()
    return {
        "loss": supervised + weight * unsupervised,
        "supervised": supervised.detach(),
        "unsupervised": unsupervised.detach(),
        "confident": confident.mean(),
    }


def _check(labelled: Tensor, labels: Tensor, weak: Tensor, strong: Tensor, threshold: float, weight: float) -> None:
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold = {threshold}; it is a probability, in [0, 1] (the paper uses 0.95).")
    if not 0 <= weight < float("inf"):
        raise ValueError(f"weight = {weight}; it must be finite and at least 0 (the paper uses 1).")
    if weak.shape != strong.shape or weak.shape[1:] != labelled.shape[1:] or len(labelled) != len(labels):
        raise ValueError(
            f"logits of labelled {list(labelled.shape)}, weak {list(weak.shape)} and strong {list(strong.shape)} views "
            f"with {len(labels)} labels do not fit: weak and strong are views of the same images, all have one column per class."
        )
    if not len(labels) or not len(weak):
        raise ValueError(
            f"{len(labels)} labelled and {len(weak)} unlabelled images: a mean needs at least one of each."
        )
    if labels.min() < 0:
        raise ValueError(f"{int((labels < 0).sum())} of {len(labels)} labelled images have no label. Leave them out.")


def draw_batches(
    train: ImageSet, views: ViewsConfig, *, steps: int, batch_size: int, labelled_size: int, seed: int
) -> Iterator[Batch]:
    """The batches of ``steps`` updates, each with ``batch_size`` images of ``train`` and ``labelled_size`` labelled.

    mu is ``batch_size`` / ``labelled_size``. Images come in the order of a recipe's run with this ``seed`` (without
    ``data.classes_per_batch``), and the strong view is the first global view of that run. Labelled images come in
    passes, each in random order. If a batch takes more labelled images than there are, it has several views of some.

    Raises: ``DataError`` if ``train`` has fewer images than a batch; ``ValueError`` if no image has a label.
    """
    known = torch.arange(0) if train.labels is None else (train.labels != UNLABELLED).nonzero()[:, 0]
    if not len(known):
        raise ValueError(f"none of {len(train)} images has a label; pseudo-labels start from some that do.")
    passes = -(-labelled_size // len(known))
    few = train.select(known.repeat(passes))  # each copy of an image has its own index, and so its own views
    strong = MultiCrop(replace(views, global_views=0, local_views=0), seed)
    weak = MultiCrop(_weak(views), randomness.step_key(seed, 0, "weak views"))
    weak_labelled = MultiCrop(_weak(views), randomness.step_key(seed, 0, "weak views of labelled images"))
    every = StepBatches(train, seed=seed, batch_size=batch_size)
    labelled = StepBatches(few, seed=randomness.step_key(seed, 0, "labelled images"), batch_size=labelled_size)
    for step in range(steps):
        batch, some = every[step], labelled[step]
        yield Batch(weak_labelled(some)[0], some.labels, weak(batch)[0], strong(batch)[0])


def _weak(views: ViewsConfig) -> ViewsConfig:
    """A config of one global view that is only cropped and mirrored."""
    return replace(
        views,
        global_views=0,
        local_views=0,
        jitter=0.0,
        grayscale=0.0,
        blur=0.0,
        solarize=0.0,
        equalize=0.0,
        rotate=0.0,
        invert=0.0,
        shuffle_channels=0.0,
        noise=0.0,
    )


def train(
    backbone: nn.Module,
    batches: Iterable[Batch],
    *,
    width: int,
    classes: int,
    steps: int,
    threshold: float = 0.95,
    weight: float = 1.0,
    lr: float = 1e-3,
    weight_decay: float = 0.05,
    warmup: float = 0.05,
    clip: float = 3.0,
    seed: int,
    progress: Callable[[int, nn.Sequential, dict[str, float]], None] = lambda step, classifier, metrics: None,
) -> nn.Sequential:
    """Trains ``backbone`` and a linear layer by FixMatch, and returns both as one classifier (in training mode).

    The optimiser and its schedule are those of :func:`recipes_lib.evaluation.baselines.supervised`. ``backbone`` maps
    views to features [rows, ``width``]; labelled, weak and strong views pass it in one call, so that batch statistics
    are over all three. ``seed`` draws the linear layer. ``progress`` is called after each step with the step's number,
    the classifier and the parts of the loss; it may put the classifier into evaluation mode.

    Raises: ``ValueError`` if ``batches`` has fewer than ``steps`` batches.
    """
    model = classifier(backbone, width=width, classes=classes, seed=seed)

    def loss_of(batch: Batch) -> dict[str, Tensor]:
        logits = model(torch.cat([batch.labelled, batch.weak, batch.strong]))  # [B + 2 * mu * B, classes]
        labelled, weak, strong = logits.split([len(batch.labelled), len(batch.weak), len(batch.strong)])
        return fixmatch_loss(labelled, batch.labels, weak, strong, threshold=threshold, weight=weight)

    descend(
        model,
        batches,
        loss_of,
        steps=steps,
        lr=lr,
        weight_decay=weight_decay,
        warmup=warmup,
        clip=clip,
        progress=lambda step, metrics: progress(step, model, metrics),
    )
    return model.train()


def accuracy_curve(
    backbone: nn.Module,
    images: Splits,
    views: ViewsConfig,
    *,
    steps: int,
    batch_size: int,
    labelled_size: int,
    every: int,
    seed: int,
    threshold: float = 0.95,
    lr: float = 1e-3,
) -> list[tuple[int, float]]:
    """Trains ``backbone`` by FixMatch; returns (updates done, test accuracy) every ``every`` updates and at the end.

    ``images.train`` has only the labels that a recipe may see. The other arguments are those of :func:`draw_batches`
    and :func:`train`. ``backbone`` has ``num_features`` and the methods that
    :func:`recipes_lib.evaluation.features.extract` calls.
    """
    curve = []

    def measure(step: int, classifier: nn.Sequential, metrics: dict[str, float]) -> None:
        if step % every == 0 or step == steps:
            curve.append((step, accuracy(classifier, images.test, views.image_size, views.normalize)))

    train(
        backbone,
        draw_batches(images.train, views, steps=steps, batch_size=batch_size, labelled_size=labelled_size, seed=seed),
        width=backbone.num_features,
        classes=len(images.train.class_names),
        steps=steps,
        threshold=threshold,
        lr=lr,
        seed=seed,
        progress=measure,
    )
    return curve


@torch.no_grad()
def accuracy(classifier: nn.Sequential, test: ImageSet, image_size: int, normalize: Normalize) -> float:
    """Accuracy in [0, 1] of a classifier of :func:`train` on the images of ``test``, without augmentation."""
    backbone, head = classifier
    features = extract(backbone, test, image_size=image_size, normalize=normalize).final  # [N, width], on the CPU
    guesses = head(features.to(head.weight.device)).argmax(dim=1).cpu()
    return (guesses == test.labels).double().mean().item()
