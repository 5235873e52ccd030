# SPDX-License-Identifier: Apache-2.0
"""The two forms of an image data set: images in memory, and image files on disk."""

import itertools
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from recipes_lib.data import decode
from recipes_lib.errors import DamagedImage

UNLABELLED = -1
"""Label of an image of unknown class, in a data set in which other images have labels (STL-10)."""


@dataclass(frozen=True)
class ImageSet:
    """Images of one size in memory, with their labels and factors.

    Raises: ``ValueError`` if the parts do not fit together.
    """

    images: Tensor
    """uint8 [N, 3, H, W]"""
    labels: Tensor | None
    """int64 [N], positions in ``class_names`` or ``UNLABELLED``; None: no image has a label."""
    class_names: tuple[str, ...]
    """Names of the classes."""
    factors: dict[str, Tensor] = field(default_factory=dict)
    """The true factors of the images where they are known, each [N] or [N, k]."""
    names: tuple[str, ...] | None = None
    """The images' names in lists of labelled images. None becomes their numbers, as in CIFAR-10's published lists."""
    notes: tuple[str, ...] = ()
    """Lines for the user about how the images were read."""

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4 or self.images.shape[1] != 3:
            raise ValueError(f"images are uint8 [N, 3, H, W], not {self.images.dtype} {list(self.images.shape)}")
        if self.names is None:
            object.__setattr__(self, "names", tuple(map(str, range(len(self.images)))))
        parts = {"labels": self.labels, "names": self.names, **self.factors}
        for name, part in parts.items():
            if part is not None and len(part) != len(self.images):
                raise ValueError(f"{len(part)} {name} for {len(self.images)} images")

    def __len__(self) -> int:
        return len(self.images)

    def select(self, indices: Tensor) -> "ImageSet":
        """The images at ``indices`` (int64 [n], in that order), with their labels, factors and names."""
        return replace(
            self,
            images=self.images[indices],
            labels=None if self.labels is None else self.labels[indices],
            factors={name: factor[indices] for name, factor in self.factors.items()},
            names=tuple(self.names[i] for i in indices.tolist()),
        )


@dataclass(frozen=True)
class ImageFiles:
    """Image files of any size under one folder, which are opened when they are needed."""

    root: Path
    """The folder."""
    names: np.ndarray
    """str [N]: each file relative to ``root``, such as ``n01440764/n01440764_10026.JPEG``. It is an array because the
    reference counts of a tuple would copy its memory into every loader process."""
    labels: Tensor | None
    """int64 [N], positions in ``class_names`` or ``UNLABELLED``; None: no image has a label."""
    class_names: tuple[str, ...]
    """Names of the classes."""
    notes: tuple[str, ...] = ()
    """Lines for the user about how the files were found."""
    factors: dict[str, Tensor] = field(default_factory=dict)
    """What is known about the images beside their class, such as the attribute that makes groups, each [N]."""

    def __len__(self) -> int:
        return len(self.names)

    def path(self, index: int) -> Path:
        """The path of the image at ``index``."""
        return self.root / str(self.names[index])

    def open(self, index: int) -> Image.Image:
        """Reads the image at ``index`` in RGB, by the rules of :mod:`recipes_lib.data.decode`.

        Raises: ``DamagedImage`` naming a file that cannot be read.
        """
        path = self.path(index)
        try:
            return decode.decode(decode.read(path)).image
        except decode.ImageFault as fault:
            way_out = f"{fault.remedy}, or leave such images out with --data.on-damage skip."
            name = str(path) if str(path).isprintable() else repr(str(path))  # a name may contain a line break
            raise DamagedImage(f"{name} {fault}. {way_out}") from None

    def select(self, indices: Tensor) -> "ImageFiles":
        """The files at ``indices`` (int64 [n], in that order), with their labels and factors."""
        labels = None if self.labels is None else self.labels[indices]
        factors = {name: factor[indices] for name, factor in self.factors.items()}
        return replace(self, names=self.names[indices.numpy()], labels=labels, factors=factors)

    def check(self, threads: int) -> "Checked":
        """Decodes every file once, and returns the faults and remarks.

        This is a full pass over the data: for ImageNet's 1.28 million images about an hour on 8 cores.
        """
        block = 256

        def among(first: int) -> list[tuple[int, str | tuple[str, ...]]]:
            return [(i, self._outcome(i)) for i in range(first, min(first + block, len(self)))]

        # threads, because Pillow decodes without the interpreter's lock, and a process forked beside torch's threads
        # may hang
        faults, remarks = {}, Counter()
        with ThreadPoolExecutor(threads) as pool:
            for index, outcome in itertools.chain.from_iterable(pool.map(among, range(0, len(self), block))):
                if isinstance(outcome, str):
                    faults[index] = outcome
                else:
                    remarks.update(outcome)
        return Checked(faults, remarks)

    def _outcome(self, index: int) -> str | tuple[str, ...]:
        """The kind of fault if the file cannot be decoded (str), else the remarks of decoding it (tuple)."""
        try:
            return decode.decode(decode.read(self.path(index))).remarks
        except decode.ImageFault as fault:
            return fault.reason


@dataclass(frozen=True)
class Checked:
    """The result of decoding every image of a set once."""

    faults: dict[int, str]
    """Index of each image that cannot be decoded -> kind of its fault, in order."""
    remarks: Counter
    """The number of images with each remark of :mod:`recipes_lib.data.decode`."""
