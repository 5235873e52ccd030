# SPDX-License-Identifier: Apache-2.0
"""Numbers beside a run's scores that tell a healthy network from a collapsed one, and what its loss is on test images."""

import copy

import torch

from recipes_lib.data.images import ImageFiles, ImageSet
from recipes_lib.data.load import Splits
from recipes_lib.data.loader import Batch
from recipes_lib.distributed import collectives
from recipes_lib.evaluation import hypersphere, spectrum
from recipes_lib.evaluation.features import Features
from recipes_lib.recipes.families.network import FamilyMethod

HELD_OUT_BATCHES = 4
"""Largest number of batches of test images whose loss is computed."""


@torch.no_grad()
def diagnostics(method: FamilyMethod, features: tuple[Features, Features], images: Splits) -> dict[str, float]:
    """Spread and rank of the test images' embeddings and features, and the loss on test images.

    ``std``: the standard deviation of the normalised embeddings times sqrt(d), 0 if they have collapsed, about 1 if they
    point everywhere; ``raw_std``: that of the embeddings as they are, averaged over dimensions. ``rank`` and
    ``rank_features``: RankMe of embeddings and of features. A method without a projector has embeddings that are its
    features. ``held_out_loss``: the loss on test images with training's augmentation, if a batch of them is in memory.
    """
    test = features[1]
    z = test.final if test.embedding is None else test.embedding
    found = {
        "std": hypersphere.normalized_std(z),
        "raw_std": float(z.std(dim=0).mean()),
        "rank": _rank(z),
        "rank_features": _rank(test.final),
    }
    size = method.config.train.batch_size // method.config.train.accumulate
    if isinstance(images.test, ImageFiles) or len(images.test) < size:
        return found
    return {**found, "held_out_loss": held_out_loss(method, images.test)}


@torch.no_grad()
def held_out_loss(method: FamilyMethod, images: ImageSet) -> float:
    """The mean loss of the first batches of ``images``, of a copy in training mode: the method does not change.

    In training mode batch norm uses the batch, as when the loss was minimised. There must be at least one batch.
    """
    size = method.config.train.batch_size // method.config.train.accumulate
    copied = copy.deepcopy(method).train()
    device = next(method.parameters()).device
    losses = []
    for number in range(min(HELD_OUT_BATCHES, len(images) // size)):
        indices = torch.arange(number * size, (number + 1) * size)
        batch = Batch(indices=indices, epoch=0, images=images.images[indices], crops=None, labels=None)
        with collectives.pretend(
            1
        ):  # only rank 0 is here: a collective of the loss or of a batch norm would wait for ever
            losses.append(copied(copied.views(batch.to(device), method.steps - 1))["loss"])
    return float(torch.stack(losses).mean())


def _rank(rows: torch.Tensor) -> float:
    """RankMe; 1 if all rows are equal to the last bit, which have no spectrum."""
    try:
        return spectrum.rankme(rows)
    except spectrum.NoSpectrum:
        return 1.0
