# SPDX-License-Identifier: Apache-2.0
"""Makes data unbalanced on purpose: training sets with a long tail of rare classes, and batches of few classes."""

import torch
from torch import Tensor

from recipes_lib import randomness
from recipes_lib.data.images import UNLABELLED
from recipes_lib.errors import DataError


def long_tail(labels: Tensor, exponent: float, seed: int) -> Tensor:
    """Chooses images so that class sizes follow a power law: class ``r`` has ``r ** -exponent`` times those of class 1.

    Classes are numbered from 1 here. Class 1 keeps as many images as the smallest class has, so that all classes can
    follow the law. At least one image of each class stays. Unlabelled images are left out.

    Shapes: ``labels`` int64 [N] -> int64 indices, sorted.
    Raises: ``DataError`` if no image has a label.
    """
    members = [(labels == label).nonzero()[:, 0] for label in labels.unique().tolist() if label != UNLABELLED]
    if not members:
        raise DataError("data.tail shapes the classes' sizes, but the training images have no labels. Leave it out.")
    most = min(map(len, members))
    kept = []
    for rank, images in enumerate(members, start=1):
        order = torch.randperm(len(images), generator=randomness.generator(seed, rank, "long tail"))
        kept.append(images[order[: max(1, round(most * rank**-exponent))]])
    return torch.cat(kept).sort().values


def grouped_order(labels: Tensor | None, batch_size: int, classes_per_batch: int, seed: int, epoch: int) -> Tensor:
    """An epoch's order in which every batch has equally many images of ``classes_per_batch`` random classes.

    With all classes these are class-balanced batches; with fewer classes the content of a batch is concentrated. Within
    an epoch the images of a class come in random order, each one once before any comes again.

    Shapes: ``labels`` int64 [N] -> int64 [N // batch_size * batch_size].
    Raises: ``DataError`` if labels are missing or the numbers do not fit.
    """
    if labels is None or (labels == UNLABELLED).any():
        raise DataError("data.classes_per_batch needs the label of every training image, and some have none.")
    classes = labels.unique()
    if not 1 <= classes_per_batch <= len(classes) or batch_size % classes_per_batch:
        raise DataError(
            f"data.classes_per_batch = {classes_per_batch} does not fit: it must be in 1 to {len(classes)}, the number "
            f"of classes, and divide train.batch_size = {batch_size}."
        )
    generator = randomness.generator(seed, epoch, "grouped batches")
    share = batch_size // classes_per_batch
    members = {label: (labels == label).nonzero()[:, 0] for label in classes.tolist()}
    waiting = {label: torch.empty(0, dtype=torch.int64) for label in members}
    order = []
    for _ in range(len(labels) // batch_size):
        batch = []
        for label in classes[torch.randperm(len(classes), generator=generator)[:classes_per_batch]].tolist():
            while len(waiting[label]) < share:
                again = members[label][torch.randperm(len(members[label]), generator=generator)]
                waiting[label] = torch.cat([waiting[label], again])
            batch.append(waiting[label][:share])
            waiting[label] = waiting[label][share:]
        mixed = torch.cat(batch)
        order.append(mixed[torch.randperm(batch_size, generator=generator)])  # mixes the classes over the ranks
    return torch.cat(order)
