# SPDX-License-Identifier: Apache-2.0
"""Chooses images at random: those that keep their labels (k per class, or a share of each class), and held-out ones.

:mod:`recipes_lib.data.labelled` reads published lists of labelled images instead.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from recipes_lib import randomness
from recipes_lib.data.images import UNLABELLED
from recipes_lib.errors import DataError


def few_per_class(labels: Tensor, k: int, seed: int, field: str = "eval.labels_per_class") -> Tensor:
    """Chooses ``k`` random images of each class that occurs.  int64 [N] -> int64 indices [classes * k], sorted

    Raises: ``DataError`` naming a class that has fewer images, and the config ``field`` that asked for ``k``.
    """
    chosen = []
    for label, members in _classes(labels, seed):
        if len(members) < k:
            raise DataError(
                f"Class {label} has {len(members)} labelled images, but {k} per class are wanted. "
                f"Use {field} of at most {len(members)}."
            )
        chosen.append(members[:k])
    return torch.cat(chosen).sort().values


def fraction(labels: Tensor, share: float, seed: int) -> Tensor:
    """Chooses a random ``share`` of each class, but at least one image.  int64 [N] -> int64 indices, sorted

    Raises: ``ValueError`` if ``share`` is not in (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"share = {share} is not in (0, 1]; 0.01 keeps one label in a hundred")
    chosen = [members[: max(1, round(share * len(members)))] for _, members in _classes(labels, seed)]
    return torch.cat(chosen).sort().values


def held_out(groups: Tensor, share: float, seed: int) -> Tensor:
    """Chooses the held-out images: bool [N], True for a random ``share`` of the groups, rounded.

    ``groups``: int64 [N], the same number for images that must stay together. If each image is a group of its own,
    exactly ``share`` of the images, rounded, are held out.
    """
    numbers, group = groups.unique(return_inverse=True)
    order = torch.randperm(len(numbers), generator=randomness.generator(seed, 0, "holdout"))
    return torch.isin(group, order[: round(share * len(numbers))])


def _classes(labels: Tensor, seed: int) -> Iterator[tuple[int, Tensor]]:
    """Yields each class that occurs and its members in random order, which does not depend on the other classes."""
    for label in labels.unique().tolist():
        if label != UNLABELLED:
            members = (labels == label).nonzero()[:, 0]
            yield label, members[torch.randperm(len(members), generator=randomness.generator(seed, label, "labels"))]
