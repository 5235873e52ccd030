# SPDX-License-Identifier: Apache-2.0
"""Watches the features while a method trains: RankMe, spread, k-NN and others, every few steps, beside the loss.

A loss does not say whether features are good: of a collapsed network it is often the lowest. What ``eval.watch`` names
is measured on the same training images each time, at the first step, every ``eval.watch_every`` steps and at the last,
and written into ``metrics.jsonl`` as ``watch_NAME`` (and ``watch_NAME_embedding`` where a method has a head).

It changes nothing of the run: features are taken in evaluation mode without gradient, so no batch norm moves and nothing
is drawn from torch's global generator. The numbers depend on the weights alone, so a resumed run writes the same.

No test image is looked at. A schedule or a stopping time that was chosen by ``watch_knn`` has seen the labels of training
images, though: say so where the run is compared with others.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from recipes_lib.config import EvalConfig
from recipes_lib.data.images import UNLABELLED, ImageFiles, ImageSet
from recipes_lib.data.load import Images, Splits
from recipes_lib.distributed.world import World
from recipes_lib.errors import ConfigError, DataError
from recipes_lib.evaluation import label_free
from recipes_lib.evaluation.features import Features, evaluating, extract, read_chunks, some
from recipes_lib.evaluation.knn import weighted_knn
from recipes_lib.evaluation.spectrum import NoSpectrum

if TYPE_CHECKING:
    from recipes_lib.pretraining.recipe import Method

FEWEST_IMAGES = 1024
"""The number of training images that are watched: twice the width of the features if that is more, because a rank is
bounded by the number of images, and all images if there are fewer. At the default interval of 100 steps of 128 images in
two views, 1,024 forward passes are 1,024 / (3 x 25,600) = 1.3 % of the passes of training."""
ASKED = 4
"""Every fourth of the watched images is classified by the others."""


@dataclass(frozen=True)
class Monitor:
    """Measures the features of a method on images that stay the same; see :func:`of`."""

    config: Any
    images: Images
    """The watched images."""
    labelled: Images
    """The watched images of known class, for k-NN; the same object as ``images`` if all classes are known, or without k-NN."""

    def __call__(self, method: "Method") -> dict[str, float]:
        """The watched numbers by name; NaN for what is not defined, such as the rank of features that are all 0."""
        asked: EvalConfig = self.config.eval
        with evaluating(method):  # the head too, whose batch norms must not move
            features = self._features(method, self.images)
            of_known = features if self.labelled is self.images else self._features(method, self.labelled)
        parts = {"": features.final}
        if features.embedding is not None:
            parts["_embedding"] = features.embedding
        found = {}
        for name in asked.watch:
            if name == "knn":
                found["watch_knn"] = _neighbours(of_known.final, self.labelled, asked)
            else:
                found |= {f"watch_{name}{suffix}": _number(name, rows) for suffix, rows in parts.items()}
        return found

    def _features(self, method: "Method", images: Images) -> Features:
        data, views = self.config.data, self.config.views
        how = {"image_size": data.image_size, "normalize": views.normalize, "resize": views.resize}
        return extract(method.backbone, images, embed=method.embed, **how)


def of(config: Any, splits: Splits, method: "Method", world: World, *, fewest: int = FEWEST_IMAGES) -> Monitor | None:
    """What ``config.eval.watch`` asks for; None if it asks for nothing. Image files are read once and kept in memory.

    ``fewest`` images are watched, or twice the width of the features if that is more.

    Raises: ``ConfigError`` if the ranks have parts of the weights only; ``DataError`` if k-NN lacks labelled images.
    """
    asked: EvalConfig = config.eval
    if not asked.watch:
        return None
    if config.sync.name == "fsdp" and world.size > 1:
        raise ConfigError(
            f"eval.watch = {asked.watch} needs whole weights, and sync.name fsdp gives each of {world.size} processes a "
            "part of them. Leave it out, or use --sync.name ddp."
        )
    width: Any = method.backbone.num_features
    most = max(fewest, 2 * width)
    labels = splits.train.labels
    known = torch.zeros(0, dtype=torch.long) if labels is None else (labels != UNLABELLED).nonzero()[:, 0]
    images = labelled = some(splits.train, most)
    if "knn" in asked.watch:
        bank = min(most, len(known)) * (ASKED - 1) // ASKED
        if bank < asked.neighbours:
            raise DataError(
                f"eval.watch knn compares with eval.neighbours = {asked.neighbours} labelled training images, and there "
                f"are {bank} to compare with. Use fewer neighbours, or leave knn out."
            )
        if len(known) < len(splits.train):
            labelled = some(splits.train.select(known), most)
    watched = _in_memory(images, config)
    return Monitor(config, watched, watched if labelled is images else _in_memory(labelled, config))


def _in_memory(images: Images, config: Any) -> ImageSet:
    """The images in memory; files resized and cropped, as evaluation sees them."""
    if isinstance(images, ImageSet):
        return images
    size, workers = config.data.image_size, config.data.workers
    files: ImageFiles = images
    pixels = torch.cat(list(read_chunks(files, size, 256, workers, config.views.resize)))
    return ImageSet(pixels, images.labels, ())


def _number(name: str, rows: Tensor) -> float:
    if not rows.isfinite().all():  # the next step says so in its own words
        return math.nan
    try:
        return label_free.OF_IMAGES[name](rows)
    except NoSpectrum:
        return math.nan


def _neighbours(rows: Tensor, images: Images, asked: EvalConfig) -> float:
    """Accuracy, in [0, 1], of k-NN for every fourth image among the others."""
    queries = torch.arange(len(rows)) % ASKED == 0
    labels: Any = images.labels
    return weighted_knn(
        rows[~queries],
        labels[~queries],
        rows[queries],
        labels[queries],
        k=asked.neighbours,
        temperature=asked.neighbour_temperature,
    )
