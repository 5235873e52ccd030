# SPDX-License-Identifier: Apache-2.0
"""From a ``DataConfig`` to images: the one place that knows every data set."""

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from recipes_lib import randomness
from recipes_lib.config import DataConfig
from recipes_lib.data import digits, npz, pantry, torchvision_sets
from recipes_lib.data.images import UNLABELLED, ImageFiles, ImageSet
from recipes_lib.data.imbalance import long_tail
from recipes_lib.errors import DataError

Images = ImageSet | ImageFiles


@dataclass(frozen=True)
class Splits:
    """Images to train on, and images to be scored on."""

    train: Images
    test: Images

    @property
    def labelled_train(self) -> Images:
        """The training images whose class is known: what a probe may learn from.

        Raises: ``DataError`` where there is none.
        """
        labels = self.train.labels
        if labels is None or not (labels != UNLABELLED).any():
            raise DataError(
                "The training images have no labels, and a probe needs them. Add them, or ask for no probe: --eval.probes with no name."
            )
        return self.train if (labels != UNLABELLED).all() else self.train.select((labels != UNLABELLED).nonzero()[:, 0])


def load(config: DataConfig, seed: int, *, warn: Callable[[str], None] = warnings.warn) -> Splits:
    """The images that ``config`` names; with ``holdout``, a share of the training images in place of the test set.

    ``seed`` draws the images of ``digits`` and ``pantry``, and the held-out share. ``warn`` is given the
    lines about damaged images that are left out (``on_damage`` = skip, which decodes every file once before it starts).

    Raises: ``DataError`` in one line where the data is missing, damaged or of the wrong kind.
    """
    splits = _read(config, seed)
    if config.on_damage == "skip":
        splits = Splits(_without_damaged(splits.train, config, warn), _without_damaged(splits.test, config, warn))
    if config.holdout:
        splits = _hold_out(splits.train, config.holdout, seed)
    return replace(splits, train=_with_tail(splits.train, config.tail, seed)) if config.tail else splits


def _with_tail(train: Images, exponent: float, seed: int) -> Images:
    if train.labels is None:
        raise DataError("data.tail shapes the classes' sizes, but the training images have no labels. Leave it out.")
    return train.select(long_tail(train.labels, exponent, seed))


def _read(config: DataConfig, seed: int) -> Splits:
    match config.name:
        case "digits":
            draw = {"size": config.image_size, "seed": seed}
            return Splits(
                digits.dataset(config.train_size, split="train", **draw),
                digits.dataset(config.test_size, split="test", **draw),
            )
        case "pantry":
            draw = {"size": config.image_size, "seed": seed, "scenes": config.scenes}
            return Splits(
                pantry.dataset(config.train_size, split="train", **draw),
                pantry.dataset(config.test_size, split="test", **draw),
            )
        case "npz":
            return Splits(*npz.read(config.root))
        case "cifar10":
            return Splits(*torchvision_sets.cifar10(config.root))
        case "stl10":
            return Splits(*torchvision_sets.stl10(config.root))
        case "imagenet":
            return Splits(*torchvision_sets.imagenet(config.root))
        case "inat18":
            return Splits(*torchvision_sets.inat18(config.root))
        case "places365":
            return Splits(*torchvision_sets.places365(config.root))
    raise ValueError(f"data.name = {config.name!r} is none of DataConfig's names")


def _without_damaged(images: Images, config: DataConfig, warn: Callable[[str], None]) -> Images:
    if isinstance(images, ImageSet):
        return images
    warn(f"Opening each of the {len(images):,} images under {images.root} once, to leave out those that are damaged.")
    damaged = list(images.check(threads=max(config.workers, os.cpu_count() or 1)).faults)
    if not damaged:
        return images
    if len(damaged) == len(images):
        raise DataError(f"None of the {len(images):,} images under {images.root} can be read. Copy them again.")
    first = ", ".join(str(images.names[index]) for index in damaged[:3])
    more = ", ..." if len(damaged) > 3 else ""
    warn(f"{len(damaged):,} of {len(images):,} images under {images.root} are damaged and left out: {first}{more}")
    keep = torch.ones(len(images), dtype=torch.bool)
    keep[damaged] = False
    return images.select(keep.nonzero()[:, 0])


def _hold_out(train: Images, share: float, seed: int) -> Splits:
    """Splits ``train``; images without a label all stay in training, since they cannot be scored."""
    labels = train.labels
    scorable = torch.arange(len(train)) if labels is None else (labels != UNLABELLED).nonzero()[:, 0]
    count = round(share * len(scorable))
    if not 0 < count < len(train):
        raise DataError(
            f"data.holdout = {share} keeps {count} of {len(train)} training images apart. Choose another share."
        )
    order = torch.randperm(len(scorable), generator=randomness.generator(seed, 0, "holdout"))
    held = torch.zeros(len(train), dtype=torch.bool)
    held[scorable[order[:count]]] = True
    return Splits(train.select((~held).nonzero()[:, 0]), train.select(held.nonzero()[:, 0]))
