# SPDX-License-Identifier: Apache-2.0
"""Numbers of images and classes of known data sets, by name. This module imports no torch."""

from dataclasses import dataclass

from recipes_lib.config import DRAWN, DataConfig
from recipes_lib.errors import ConfigError


@dataclass(frozen=True)
class Size:
    """Numbers of images and classes in the training part of a data set."""

    images: int
    classes: int


KNOWN = {
    "cifar10": Size(50_000, 10),
    "stl10": Size(105_000, 10),  # 5,000 of them with a label
    "imagenet": Size(1_281_167, 1000),  # ILSVRC 2012
    "inat18": Size(437_513, 8142),
    "places365": Size(1_803_460, 365),  # Places365-Standard
    "waterbirds": Size(4_795, 2),
    "celeba": Size(162_770, 2),
}
"""Sizes of data sets. Source: the data sets' own pages; for the first two also torchvision's pages."""


def images(data: DataConfig, given: int | None, need: str) -> int:
    """The number of training images: ``given``, or the known number of the data set.

    Raises: ``ConfigError`` if the number is not known; ``need`` says in it why it is needed.
    """
    if given is not None:
        return given
    if (data.name in KNOWN or data.name in DRAWN) and not data.tail and not data.holdout:
        whole = data.train_size if data.name in DRAWN else KNOWN[data.name].images
        return int(whole * data.share)  # a class is rounded down by itself, so a few images fewer stay
    why = " with data.tail" if data.tail else " with data.holdout" if data.holdout else ""
    raise ConfigError(
        f"How many training images data.name {data.name}{why} has is not known, and {need}. Add --images N."
    )


def classes(data: DataConfig) -> int:
    """The number of classes of the training images. Raises: ``ConfigError`` if it is not known for the data set."""
    if data.name in ("digits", "four_digits"):
        return 10
    if data.name == "neighbour_pairs":
        return 4
    if data.name == "pantry":
        from recipes_lib.data.pantry import CLASSES

        return len(CLASSES)
    if data.name in KNOWN:
        return KNOWN[data.name].classes
    raise ConfigError(
        f"data.support_classes = None takes all classes, and how many data.name {data.name} has is not known. "
        "Add --data.support-classes N."
    )
