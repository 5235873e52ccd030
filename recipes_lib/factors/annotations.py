# SPDX-License-Identifier: Apache-2.0
"""Factor annotations: the factors in which each image differs from the typical images of its class.

ImageNet-X has sixteen factors, marked by people for ImageNet's validation images and for some of its training images.
``top`` is the one factor that an annotator named in words, ``multi`` are all factors that were ticked. A data set with
other factors is an :class:`Annotations` too. :mod:`recipes_lib.factors.imagenet_x_files` reads ImageNet-X's files.

Source: Youbi Idrissi et al., "ImageNet-X: Understanding Model Mistakes with Factor of Variation Annotations", ICLR 2023,
arXiv 2211.01866. The annotations are under CC BY-NC 4.0, so this library does not contain them.
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
"""Number of ImageNet's classes."""
OBTAIN = "Get version 0.0.7: pip install --no-deps imagenet-x==0.0.7, and name the folder imagenet_x/annotations that it made."


class Version(NamedTuple):
    """The numbers of images in a version of the annotations, by which files of another version are recognised."""

    images: int
    """Images of ImageNet's validation set."""
    annotated: int
    """Annotated validation images."""
    prototypes: int
    """Validation images that were shown to annotators as typical of their class."""
    train: int
    """Annotated training images."""


VERSION = Version(images=50_000, annotated=48_868, prototypes=3_000, train=11_233)
"""The numbers of images in the official package 0.0.7."""


@dataclass(frozen=True)
class Reassessed:
    """ReaL's labels: all classes that are right for an image, or none if annotators agreed on none."""

    labels: np.ndarray
    """integers: the labels of all images, concatenated."""
    offsets: np.ndarray
    """integers [N + 1]: image i has the labels ``labels[offsets[i]:offsets[i + 1]]``."""


@dataclass(frozen=True)
class Metaclasses:
    """Groups of classes, such as all dogs."""

    names: tuple[str, ...]
    """The metaclasses' names."""
    of_class: np.ndarray
    """integers [C]: the position in ``names`` of each class's metaclass."""
    rest: str = "other"
    """The name of the metaclass that collects all remaining, unrelated classes."""


@dataclass(frozen=True)
class Annotations:
    """The labels and factors of N images, in the order in which predictions are compared with them.

    Raises: ``ValueError`` if the parts do not fit together.
    """

    names: np.ndarray
    """str [N], file names without folders."""
    labels: np.ndarray
    """int16 [N] in [0, classes)."""
    classes: int
    """Number of classes, C."""
    factors: tuple[str, ...]
    """Names of the F factors."""
    marks: Mapping[str, np.ndarray]
    """Kind of mark (``top``, ``multi``) -> bool [N, F]: the factors of each image."""
    left_out: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Reason to leave an image out of all counts ("prototype") -> bool [N]."""
    real: Reassessed | None = None
    """ReaL's labels, if known."""
    metaclasses: Metaclasses | None = None
    """The metaclasses, if there are any."""

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
        """The images that are not left out, as bool [N]."""
        kept = np.ones(len(self.names), bool)
        for reason in self.left_out.values():
            kept &= ~reason
        return kept

    @cached_property
    def columns(self) -> np.ndarray:
        """All kinds of marks side by side, then a column of ones, as float32 [N, kinds * F + 1].

        The product of right answers [M, N] with it counts the right answers per factor and in total.
        """
        return np.concatenate([*self.marks.values(), np.ones((len(self.names), 1), bool)], axis=1, dtype=np.float32)


class Partitions(NamedTuple):
    """The annotations of the images that are predicted, and of training images if there are any."""

    val: Annotations
    """The images that are predicted: ImageNet's validation set."""
    train: Annotations | None
    """Annotated training images."""


def bits_to_marks(bits: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
    """Converts bit masks, whose bit k stands for factor ``names[k]``, to marks.  integers [N] -> bool [N, 16]

    The columns are in the order of :data:`FACTORS`.
    """
    places = [names.index(name) for name in FACTORS]
    return (bits.astype(np.int64)[:, None] >> np.array(places) & 1).astype(bool)


def index_to_marks(index: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
    """Converts the positions in ``names`` of each image's one factor, or -1, to marks.  integers [N] -> bool [N, 16]

    The columns are in the order of :data:`FACTORS`.
    """
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
    """Raises ``DataError`` if the file ``path`` has another number of images than version 0.0.7."""
    if found != expected:
        raise DataError(
            f"{path} is of another version, or not whole: {found:,} {what}, where there are {expected:,}. {OBTAIN}"
        )


def validation_names() -> np.ndarray:
    """The names of ImageNet's validation files in the order of their numbers, as str [50,000].

    ReaL's labels are in the same order.
    """
    return np.array([f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, VERSION.images + 1)])
