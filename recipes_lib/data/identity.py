# SPDX-License-Identifier: Apache-2.0
"""A short record of a run's images, stored with the run, so that changed images are noticed when the run continues."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from recipes_lib.data.images import UNLABELLED
from recipes_lib.data.load import Images, Splits
from recipes_lib.data.pairs import PairSet
from recipes_lib.data.pools.shard_pairs import ShardPairs
from recipes_lib.errors import DataError


def record(splits: Splits) -> dict[str, Any]:
    """Makes the record of ``splits``.

    It holds ``classes`` (the class names in the order of the labels), and for ``train`` and ``test`` the number of
    images and a SHA-256 of their names and labels. Pixels are not read: an image that was replaced by another one with
    the same name and class is not noticed.
    """
    parts = {"train": splits.train, "test": splits.test}
    found = {name: {"images": len(images), "sha256": _digest(images)} for name, images in parts.items()}
    return {"classes": list(splits.train.class_names), **found}


def changes(before: dict[str, Any], now: dict[str, Any]) -> str:
    """The difference between two records, in words for an error message; "" if there is none."""
    if told := class_changes(before.get("classes", []), now["classes"]):
        return told
    for part, name in (("train", "training"), ("test", "test")):
        was, found = before.get(part), now[part]
        if not isinstance(was, dict) or was == found:
            continue
        if was.get("images") != found["images"]:
            return f"there were {was.get('images')} {name} images, and there are {found['images']}"
        return f"the {found['images']} {name} images have other names or labels than before"
    return ""


def class_changes(before: Sequence[str], now: Sequence[str]) -> str:
    """The difference between two lists of classes in words (gone, new, or in another order); "" if there is none."""
    gone, new = ([name for name in some if name not in set(others)] for some, others in ((before, now), (now, before)))
    lines = [f"there {_are(gone)} no longer"] * bool(gone) + [f"there {_are(new)} now"] * bool(new)
    if not lines and list(before) != list(now):
        return "the classes are in another order"
    return ", and ".join(lines)


def by_name(splits: Splits, classes: Sequence[str]) -> Splits:
    """The images with their labels renumbered as positions in ``classes``, of which the images may have only some.

    Raises: ``DataError`` naming classes of the images that are not among ``classes``.
    """
    return Splits(_by_name(splits.train, classes), _by_name(splits.test, classes))


def _by_name(images: Images, classes: Sequence[str]) -> Images:
    if tuple(images.class_names) == tuple(classes) or not images.class_names:
        return images
    place = {name: number for number, name in enumerate(classes)}
    if new := [name for name in images.class_names if name not in place]:
        raise DataError(
            f"The images have classes that the run did not learn: {_short(new)}. It learned {_short(classes)}. "
            "Give the folders their former names back, or train on these images."
        )
    table = torch.tensor([place[name] for name in images.class_names])
    labels = images.labels
    if labels is not None:
        labels = torch.where(labels == UNLABELLED, labels, table[labels.clamp_min(0)])
    return replace(images, labels=labels, class_names=tuple(classes))


def _digest(images: Images | PairSet | ShardPairs) -> str:
    digest = hashlib.sha256()
    labels: Tensor | None = images.labels
    if labels is not None:
        digest.update(labels.cpu().numpy().astype("<i8").tobytes())
    match images:
        case ShardPairs():
            digest.update(images.rows["high"].tobytes() + images.rows["low"].tobytes())  # the uids
        case PairSet():
            digest.update("\0".join(images.uids).encode())
        case _ if images.names is not None:  # a file's name may contain bytes that are no text
            digest.update("\0".join(map(str, images.names)).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _are(names: Sequence[str]) -> str:
    return f"{'is' if len(names) == 1 else 'are'} {'a class' if len(names) == 1 else 'classes'} {_short(names)}"


def _short(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
