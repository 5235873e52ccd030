# SPDX-License-Identifier: Apache-2.0
"""Factor annotations: which factors set each image apart from the typical ones of its class.

ImageNet-X has sixteen of them, ticked by people for ImageNet's validation images and for some of its training images:
``top`` is the one factor that a worker chose in words, ``multi`` all that were ticked. Any other data set with factors of
other names is an :class:`Annotations` too. ImageNet-X's files are read by :mod:`recipes_lib.factors.imagenet_x_files`.

Source: Youbi Idrissi et al., "ImageNet-X: Understanding Model Mistakes with Factor of Variation Annotations", ICLR 2023,
arXiv 2211.01866. The annotations are under CC BY-NC 4.0, so none come with this library.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from recipes_lib.errors import DataError

FACTORS = (
    "pose",
    "background",
    "pattern",
    "color",
    "smaller",
    "shape",
    "partial_view",
    "subcategory",
    "texture",
    "larger",
    "darker",
    "object_blocking",
    "person_blocking",
    "style",
    "brighter",
    "multiple_objects",
)
"""ImageNet-X's factors, in the official toolkit's order."""
CLASSES = 1000
"""Of ImageNet."""
OBTAIN = "Get version 0.0.7: pip install --no-deps imagenet-x==0.0.7, and name the folder imagenet_x/annotations that it made."


class Version(NamedTuple):
    """How many images there are, by which another version is told."""

    images: int
    """In ImageNet's validation set."""
    annotated: int
    prototypes: int
    train: int
    """Annotated training images."""


VERSION = Version(images=50_000, annotated=48_868, prototypes=3_000, train=11_233)
"""Of the official package 0.0.7."""


@dataclass(frozen=True)
class Reassessed:
    """ReaL's labels: every class that is right for an image, or none where people agreed on none."""

    labels: np.ndarray
    """integers, all images' labels one after the other."""
    offsets: np.ndarray
    """integers [N + 1]: image i has ``labels[offsets[i]:offsets[i + 1]]``."""


@dataclass(frozen=True)
class Metaclasses:
    """A coarser set of classes."""

    names: tuple[str, ...]
    of_class: np.ndarray
    """integers [C]: each class's position in ``names``."""
    rest: str = "other"
    """The name under which unrelated classes are thrown together."""


@dataclass(frozen=True)
class Annotations:
    """What is known of N images, in the order in which predictions are compared with them.

    Raises: ``ValueError`` where the parts do not fit together.
    """

    names: np.ndarray
    """str [N], file names without folders."""
    labels: np.ndarray
    """int16 [N] in [0, classes)."""
    classes: int
    factors: tuple[str, ...]
    marks: Mapping[str, np.ndarray]
    """A kind of mark (``top``, ``multi``) -> bool [N, F]: which factors an image has."""
    left_out: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Why an image counts for nothing ("prototype") -> bool [N]."""
    real: Reassessed | None = None
    metaclasses: Metaclasses | None = None

    def __post_init__(self) -> None:
        count, shape = len(self.names), (len(self.names), len(self.factors))
        for kind, marks in self.marks.items():
            if marks.shape != shape or marks.dtype != bool:
                raise ValueError(f"marks {kind!r} are {marks.dtype} {marks.shape}, not bool {shape}")
        for name, part in {"labels": self.labels, **self.left_out}.items():
            if len(part) != count:
                raise ValueError(f"{len(part)} {name} for {count} images")
        if self.real is not None and len(self.real.offsets) != count + 1:
            raise ValueError(f"{len(self.real.offsets)} offsets of ReaL labels for {count} images")
        if count and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < self.classes:
            raise ValueError(f"labels from {self.labels.min()} to {self.labels.max()} with {self.classes} classes")

    @property
    def kept(self) -> np.ndarray:
        """bool [N]: the images that count."""
        kept = np.ones(len(self.names), bool)
        for reason in self.left_out.values():
            kept &= ~reason
        return kept

    @cached_property
    def columns(self) -> np.ndarray:
        """float32 [N, kinds * F + 1]: all kinds of marks side by side, then ones; a product with answers counts the right ones."""
        return np.concatenate([*self.marks.values(), np.ones((len(self.names), 1), bool)], axis=1, dtype=np.float32)


class Partitions(NamedTuple):
    """The images that are predicted, and annotated training images where there are some."""

    val: Annotations
    train: Annotations | None


def bits_to_marks(bits: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
    """Bit k of each number says whether the image has factor ``names[k]``: integers [N] -> bool [N, 16], in our order."""
    places = [names.index(name) for name in FACTORS]
    return (bits.astype(np.int64)[:, None] >> np.array(places) & 1).astype(bool)


def index_to_marks(index: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
    """The position in ``names`` of each image's one factor, or -1: integers [N] -> bool [N, 16], in our order."""
    return index.astype(np.int64)[:, None] == np.array([names.index(name) for name in FACTORS])


def refuse_factors(path: Path, names: tuple[str, ...]) -> None:
    """Raises ``DataError`` unless ``names`` are ImageNet-X's sixteen factors, in any order."""
    if sorted(names) != sorted(FACTORS):
        lacking = ", ".join(name for name in FACTORS if name not in names) or "none"
        more = ", ".join(name for name in names if name not in FACTORS) or "none"
        raise DataError(
            f"{path} is of another version: of the sixteen factors it lacks {lacking}; it has others: {more}. {OBTAIN}"
        )


def refuse_count(path: Path, what: str, found: int, expected: int) -> None:
    """Raises ``DataError`` where a file holds another number of images than version 0.0.7."""
    if found != expected:
        raise DataError(
            f"{path} is of another version, or not whole: {found:,} {what}, where there are {expected:,}. {OBTAIN}"
        )


def validation_names() -> np.ndarray:
    """str [images]: ImageNet's validation files in the order of their numbers, which ReaL's labels have too."""
    return np.array([f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, VERSION.images + 1)])
