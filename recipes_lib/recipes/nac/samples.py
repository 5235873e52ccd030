# SPDX-License-Identifier: Apache-2.0
"""Data sets that are no images: sequences, point clouds, and pairs of images with a sentence."""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from recipes_lib.data.images import ImageFiles


@dataclass(frozen=True)
class Sequences:
    """Sequences of ids of different lengths, with their classes.

    Raises: ``ValueError`` if there are not as many labels as sequences, or a sequence is empty.
    """

    ids: tuple[Tensor, ...]
    """uint8 [length] each, ids from 0 to ``vocabulary`` - 1."""
    labels: Tensor
    """int64 [N], positions in ``class_names``."""
    vocabulary: int
    """Number of ids; ``vocabulary`` itself fills a row after its sequence."""
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.labels):
            raise ValueError(f"{len(self.labels)} labels for {len(self.ids)} sequences")
        empty = [index for index, each in enumerate(self.ids) if not len(each)]
        if empty:
            raise ValueError(f"sequence {empty[0]} is empty; leave it out")

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, indices: Tensor) -> Tensor:
        """The sequences at ``indices`` (int64 [n]), as long as the longest of them: int64 [n, longest]."""
        chosen = [self.ids[index].long() for index in indices.tolist()]
        return torch.nn.utils.rnn.pad_sequence(chosen, batch_first=True, padding_value=self.vocabulary)


@dataclass(frozen=True)
class Clouds:
    """Point clouds of equally many points, with their classes.

    Raises: ``ValueError`` for another shape, points that are not finite, or another number of labels.
    """

    points: Tensor
    """float32 [N, P, 3]"""
    labels: Tensor
    """int64 [N], positions in ``class_names``."""
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.points.dim() != 3 or self.points.shape[2] != 3 or len(self.points) != len(self.labels):
            raise ValueError(f"points {list(self.points.shape)} with {len(self.labels)} labels; [N, P, 3] are wanted")
        if not self.points.isfinite().all():
            raise ValueError("points are not finite")

    def __len__(self) -> int:
        return len(self.points)


@dataclass(frozen=True)
class ImagePairs:
    """Pairs of image files with a sentence that is true or false of them."""

    left: ImageFiles
    """The first images; their labels say whether the sentence is true (1) or false (0)."""
    right: ImageFiles
    """The second images, in the same order."""
    sentences: tuple[str, ...]
    """The sentences, in the same order."""

    def __len__(self) -> int:
        return len(self.sentences)

    def open(self, index: int) -> tuple[Image.Image, Image.Image]:
        """Reads both images at ``index``. Raises: ``DamagedImage`` naming a file that cannot be read."""
        return self.left.open(index), self.right.open(index)


def text_bytes(text: str, length: int) -> Tensor:
    """The first ``length`` bytes of a text in UTF-8: uint8 [n]."""
    return torch.from_numpy(np.frombuffer(text.encode()[:length], dtype=np.uint8).copy())
