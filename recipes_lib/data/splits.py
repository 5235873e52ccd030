# SPDX-License-Identifier: Apache-2.0
"""Which images keep their labels: k per class, a share of each class, or the names in a file."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from recipes_lib import randomness
from recipes_lib.data.images import UNLABELLED
from recipes_lib.errors import DataError


def few_per_class(labels: Tensor, k: int, seed: int, field: str = "eval.labels_per_class") -> Tensor:
    """``k`` random images of each class that occurs: int64 [classes * k], sorted. ``labels``: int64 [N].

    Raises: ``DataError`` naming a class that has fewer, and the config's ``field`` that asked for ``k``.
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
    """A random ``share`` of each class, at least one image of it: int64 indices, sorted. ``labels``: int64 [N].

    Raises: ``ValueError`` where ``share`` is not in (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"share = {share} is not in (0, 1]; 0.01 keeps one label in a hundred")
    chosen = [members[: max(1, round(share * len(members)))] for _, members in _classes(labels, seed)]
    return torch.cat(chosen).sort().values


def from_file(path: Path, names: Sequence[str]) -> Tensor:
    """The images that a text file names, a name a line: int64 indices into ``names``, in the file's order.

    A line is a whole name (``n01440764/n01440764_10026.JPEG``) or the part after its last slash, as in the lists that
    the MSN paper's code publishes. Blank lines are passed over.

    Raises: ``DataError`` with file, line number and text of a line that names no image, or one named before.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise DataError(
            f"data.labelled = {path} cannot be read: {reason}. Give a text file with a name a line."
        ) from None
    position = {name: index for index, name in enumerate(names)}
    position |= {name.rsplit("/", 1)[-1]: index for name, index in position.items()}
    classes = {_class_of(name) for name in position}
    chosen: dict[int, int] = {}
    for number, line in enumerate(lines, start=1):
        if not (name := line.strip()):
            continue
        where = f"{path}, line {number}: {name!r}"
        if name not in position:
            known = _class_of(name) in classes
            reason = "names no image of the training set" if known else f"has no known class ({_class_of(name)!r})"
            raise DataError(f"{where} {reason}. Correct the line or take it out.")
        if position[name] in chosen:
            raise DataError(f"{where} was named in line {chosen[position[name]]} already. Take one out.")
        chosen[position[name]] = number
    if not chosen:
        raise DataError(f"{path} names no image. Write the name of one labelled image a line.")
    return torch.tensor(list(chosen))


def _classes(labels: Tensor, seed: int) -> Iterator[tuple[int, Tensor]]:
    """Each class that occurs, with its members in random order; a class's order does not depend on the others."""
    for label in labels.unique().tolist():
        if label != UNLABELLED:
            members = (labels == label).nonzero()[:, 0]
            yield label, members[torch.randperm(len(members), generator=randomness.generator(seed, label, "labels"))]


def _class_of(name: str) -> str:
    return name.rsplit("/", 1)[-1].split("_")[0]
