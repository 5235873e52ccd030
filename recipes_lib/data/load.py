# SPDX-License-Identifier: Apache-2.0
"""Loads the images of a ``DataConfig``: the one module that knows every data set."""

import itertools
import os
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from recipes_lib.config import DataConfig
from recipes_lib.data import digits, four_digits, labelled, neighbour_pairs, npz, pantry, torchvision_sets
from recipes_lib.data.images import UNLABELLED, Checked, ImageFiles, ImageSet
from recipes_lib.data.imbalance import long_tail
from recipes_lib.data.splits import held_out
from recipes_lib.errors import DamagedImage, DataError

Images = ImageSet | ImageFiles

_SAMPLE = 5_000
"""The number of training images that replace missing test images, for diagnostics only."""


@dataclass(frozen=True)
class Splits:
    """The training images and the test images."""

    train: Images
    """Images to train on."""
    test: Images
    """Images to score on."""
    aside: dict[str, str] = field(default_factory=dict)
    """Names of training images that were left out -> reason; only filled if there is a list of labelled images."""
    notes: tuple[str, ...] = ()
    """The lines that the user was told about how the images were read and chosen."""

    @property
    def labelled_train(self) -> Images:
        """The training images whose class is known, from which probes learn.

        Raises: ``DataError`` if there is none.
        """
        labels = self.train.labels
        if labels is None or not (labels != UNLABELLED).any():
            raise DataError(
                "The training images have no labels, and a probe needs them. Add them, or ask for no probe: --eval.probes with no name."
            )
        return self.train if (labels != UNLABELLED).all() else self.train.select((labels != UNLABELLED).nonzero()[:, 0])

    def summary(self) -> dict[str, Any]:
        """The numbers of training, labelled and test images, and the notes, for a report."""
        labels = self.train.labels
        known = 0 if labels is None else int((labels != UNLABELLED).sum())
        counts = {"train": len(self.train), "labelled": known, "test": len(self.test)}
        return counts | {"notes": list(self.notes)}


def load(config: DataConfig, seed: int, *, warn: Callable[[str], None] = warnings.warn) -> Splits:
    """Loads the images that ``config`` names; with ``holdout``, a share of the training images replaces the test set.

    For ``digits`` the held-out share is chosen by scan: it is about that share of the images, and no scan is in both
    parts.

    ``seed`` draws the images of the sets that come with the library, and the held-out share. ``warn`` gets lines about skipped
    files, test images without a label (which are left out), and damaged images that are left out (``on_damage`` = skip,
    which decodes every file once before training).

    Image folders need no ``val``: without one, some training images without their labels replace the test images, so
    that a recipe's diagnostics can be computed.

    Raises: ``DataError`` in one line if the data is missing, damaged or of the wrong kind.
    """
    if config.labelled is not None and config.labelled.exists():  # it may be missing if no probe needs it
        labelled.lines(config.labelled)  # an unreadable list is found before hours of decoding
    notes: list[str] = []

    def tell(line: str) -> None:
        notes.append(line)
        warn(line)

    train, test = _read(config, seed)
    for line in dict.fromkeys(train.notes + (test.notes if test is not None else ())):
        tell(line)
    test = None if test is None else _scorable(test, tell)
    steps = [("", train)]
    if config.on_damage == "skip":
        train, test = (None if part is None else _without_damaged(part, config, tell) for part in (train, test))
        steps.append(("is damaged, and --data.on-damage skip left it out", train))
    if config.share < 1:
        train = _first_of_each_class(train, config.share)
        steps.append((f"was left out by data.share = {config.share}", train))
    if config.holdout:
        train, test = _hold_out(train, config.holdout, seed)
        steps.append((f"was held out by data.holdout = {config.holdout}", train))
    if config.tail:
        train = _with_tail(train, config.tail, seed)
        steps.append((f"was left out by data.tail = {config.tail}", train))
    if test is None:
        tell("There are no images to be scored on: only diagnostics are reported, on images that were trained on.")
        test = _stand_in(train)
    return Splits(train, test, _aside(steps) if config.labelled is not None else {}, tuple(notes))


def check_scored(splits: Splits, config: DataConfig, warn: Callable[[str], None] = warnings.warn) -> None:
    """Decodes the test images before training, so that a damaged one is found early.

    With ``on_damage`` = skip they have been decoded already. ``warn`` gets the remarks of decoding.

    Raises: ``DataError`` about the first image that cannot be decoded.
    """
    if isinstance(splits.test, ImageFiles) and config.on_damage == "stop":
        found = splits.test.check(_threads(config))
        for index in found.faults:
            try:
                splits.test.open(index)
            except DamagedImage as error:  # every rank prints a DamagedImage, but here all ranks find the same one
                raise DataError(str(error)) from None
        _tell_remarks(splits.test, found, warn)


def _threads(config: DataConfig) -> int:
    return max(config.workers, os.cpu_count() or 1)


def _scorable(test: Images, tell: Callable[[str], None]) -> Images:
    """The test images whose class is known; all test images, without labels, if no class is known."""
    if test.labels is None or (test.labels != UNLABELLED).all():
        return test
    known = (test.labels != UNLABELLED).nonzero()[:, 0]
    if not len(known):
        return replace(test, labels=None)
    tell(f"{len(test) - len(known):,} of {len(test):,} test images have no label, and are left out.")
    return test.select(known)


def _stand_in(train: Images) -> Images:
    count = min(_SAMPLE, len(train))
    return replace(train.select(torch.arange(count) * len(train) // count), labels=None)


def _aside(steps: list[tuple[str, Images]]) -> dict[str, str]:
    """The names of the training images that each step left out -> the step's reason."""
    found = {}
    for (_, before), (reason, after) in itertools.pairwise(steps):
        found |= dict.fromkeys(set(map(str, before.names)) - set(map(str, after.names)), reason)
    return found


def _with_tail(train: Images, exponent: float, seed: int) -> Images:
    if train.labels is None:
        raise DataError("data.tail shapes the classes' sizes, but the training images have no labels. Leave it out.")
    return train.select(long_tail(train.labels, exponent, seed))


def _first_of_each_class(train: Images, share: float) -> Images:
    """The first ``share`` of each class's images, rounded down, and all images without a label.

    Raises: ``DataError`` if a class would have none.
    """
    labels = train.labels
    if labels is None:
        raise DataError("data.share takes a share of each class, but the training images have no labels. Leave it out.")
    keep = labels == UNLABELLED
    for number, name in enumerate(train.class_names):
        members = (labels == number).nonzero()[:, 0]
        if 0 < len(members) * share < 1:
            raise DataError(
                f"data.share = {share} leaves none of the {len(members)} images of class {name}. Use at least "
                f"{1 / len(members):.3g}."
            )
        keep[members[: int(len(members) * share)]] = True
    return train.select(keep.nonzero()[:, 0])


def _read(config: DataConfig, seed: int) -> tuple[Images, Images | None]:
    match config.name:
        case "digits":
            draw = {"size": config.image_size, "seed": seed}
            return (
                digits.dataset(config.train_size, split="train", **draw),
                digits.dataset(config.test_size, split="test", **draw),
            )
        case "pantry":
            draw = {"size": config.image_size, "seed": seed, "scenes": config.scenes}
            return (
                pantry.dataset(config.train_size, split="train", **draw),
                pantry.dataset(config.test_size, split="test", **draw),
            )
        case "four_digits" | "neighbour_pairs":
            draw = {"size": config.image_size, "seed": seed}
            kind = four_digits if config.name == "four_digits" else neighbour_pairs
            return (
                kind.dataset(config.train_size, split="train", **draw),
                kind.dataset(config.test_size, split="test", **draw),
            )
        case "npz":
            return npz.read(config.root)
        case "cifar10":
            return torchvision_sets.cifar10(config.root)
        case "stl10":
            return torchvision_sets.stl10(config.root)
        case "imagenet":
            return torchvision_sets.own_images(config.root)
        case "inat18":
            return torchvision_sets.inat18(config.root)
        case "places365":
            return torchvision_sets.places365(config.root)
    raise ValueError(f"data.name = {config.name!r} is none of DataConfig's names")


def _without_damaged(images: Images, config: DataConfig, warn: Callable[[str], None]) -> Images:
    if isinstance(images, ImageSet):
        return images
    warn(f"Opening each of the {len(images):,} images under {images.root} once, to leave out those that are damaged.")
    found = images.check(_threads(config))
    _tell_remarks(images, found, warn)
    damaged = list(found.faults)
    if not damaged:
        return images
    if len(damaged) == len(images):
        raise DataError(f"None of the {len(images):,} images under {images.root} can be read. Copy them again.")
    names = [str(images.names[index]) for index in damaged[:3]]
    first = ", ".join(name if name.isprintable() else repr(name) for name in names)
    more = ", ..." if len(damaged) > 3 else ""
    kinds = ", ".join(f"{kind} {number:,}" for kind, number in sorted(Counter(found.faults.values()).items()))
    warn(
        f"{len(damaged):,} of {len(images):,} images under {images.root} are damaged and left out ({kinds}): {first}{more}"
    )
    keep = torch.ones(len(images), dtype=torch.bool)
    keep[damaged] = False
    return images.select(keep.nonzero()[:, 0])


def _tell_remarks(images: ImageFiles, found: Checked, warn: Callable[[str], None]) -> None:
    for remark, number in sorted(found.remarks.items()):
        warn(f"{number:,} of {len(images):,} images under {images.root}: {remark}.")


def _hold_out(train: Images, share: float, seed: int) -> tuple[Images, Images]:
    """Splits ``train`` into training and held-out images; images without a label stay in training.

    All images of one scan go to the same part: a digit that was trained on in other colours would not be unseen.
    """
    labels = train.labels
    scorable = torch.arange(len(train)) if labels is None else (labels != UNLABELLED).nonzero()[:, 0]
    scans = train.factors.get("scan") if isinstance(train, ImageSet) else None
    held = torch.zeros(len(train), dtype=torch.bool)
    held[scorable[held_out(scorable if scans is None else scans[scorable], share, seed)]] = True
    if not held.any() or held.all():
        raise DataError(
            f"data.holdout = {share} keeps {int(held.sum())} of {len(train)} training images apart. Choose another share."
        )
    return train.select((~held).nonzero()[:, 0]), train.select(held.nonzero()[:, 0])
