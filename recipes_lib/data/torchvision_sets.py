# SPDX-License-Identifier: Apache-2.0
"""CIFAR-10, STL-10 and ImageNet, read by torchvision's own classes from where the user keeps them.

Nothing is downloaded. torchvision compares checksums before it reads CIFAR-10's and STL-10's files.
"""

from pathlib import Path

import numpy as np
import torch
from torchvision import datasets

from recipes_lib.data.images import ImageFiles, ImageSet
from recipes_lib.errors import DataError


def cifar10(root: Path) -> tuple[ImageSet, ImageSet]:
    """50,000 training and 10,000 test images of 32x32 pixels, 10 classes, from ``root/cifar-10-batches-py``.

    Raises: ``DataError`` where files are missing or damaged.
    """
    kind = datasets.CIFAR10
    wanted = [name for name, _ in kind.train_list + kind.test_list] + [kind.meta["filename"]]
    _need(root, "CIFAR-10", kind.base_folder, wanted, kind.url)
    try:
        splits = [kind(root, train=train, download=False) for train in (True, False)]
    except RuntimeError:
        raise _damaged(root, "CIFAR-10", kind.base_folder, kind.url) from None
    train, test = (
        ImageSet(
            torch.from_numpy(np.ascontiguousarray(split.data.transpose(0, 3, 1, 2))),
            torch.tensor(split.targets),
            tuple(split.classes),
        )
        for split in splits
    )
    return train, test


def stl10(root: Path) -> tuple[ImageSet, ImageSet]:
    """105,000 training images of 96x96 pixels (5,000 with one of 10 labels, 100,000 without) and 8,000 test images.

    Training sees the labelled and the unlabelled images; probes learn from the labelled ones. In memory: 2.9 GB, and
    twice as much for a moment while it is read.

    Raises: ``DataError`` where files are missing or damaged.
    """
    kind = datasets.STL10
    wanted = [name for name, _ in kind.train_list + kind.test_list] + [kind.class_names_file]
    _need(root, "STL-10", kind.base_folder, wanted, kind.url)
    try:
        splits = [kind(root, split=split, download=False) for split in ("train+unlabeled", "test")]
    except RuntimeError:
        raise _damaged(root, "STL-10", kind.base_folder, kind.url) from None
    train, test = (
        ImageSet(
            torch.from_numpy(np.ascontiguousarray(split.data)),
            torch.from_numpy(split.labels.astype(np.int64)),  # -1 is torchvision's "unlabelled", and ours
            tuple(split.classes),
        )
        for split in splits
    )
    return train, test


def imagenet(root: Path) -> tuple[ImageFiles, ImageFiles]:
    """Image files as torchvision's ImageNet class lays them out: ``root/train/CLASS/*.JPEG``, ``root/val/CLASS/*.JPEG``.

    Any two such folders will do; the development kit, which torchvision's class insists on, is not needed.

    Raises: ``DataError`` where a folder is missing or empty, or the two have different classes.
    """
    train, val = (_image_folder(root, split) for split in ("train", "val"))
    if train.class_names != val.class_names:
        odd = sorted(set(train.class_names) ^ set(val.class_names))
        where = "train" if odd[0] in train.class_names else "val"
        raise DataError(
            f"{root}: train has {len(train.class_names)} classes and val {len(val.class_names)}; "
            f"{odd[0]} is only in {where}. Both need the same class folders."
        )
    return train, val


def _image_folder(root: Path, split: str) -> ImageFiles:
    layout = f"{root}/{split}/CLASS/*.JPEG"
    if not (root / split).is_dir():
        raise DataError(f"data.root = {root} has no folder {split}. Image files are expected as {layout}.")
    try:
        folder = datasets.ImageFolder(root / split)
    except FileNotFoundError as error:
        reason = str(error).partition(". ")[0].rstrip(".")  # torchvision's own first sentence
        raise DataError(f"{root / split}: {reason}. Image files are expected as {layout}.") from None
    names = [str(Path(path).relative_to(root / split)) for path, _ in folder.samples]
    return ImageFiles(root / split, np.array(names), torch.tensor(folder.targets), tuple(folder.classes))


def _need(root: Path, title: str, folder: str, files: list[str], url: str) -> None:
    missing = [name for name in files if not (root / folder / name).is_file()]
    if missing:
        first = f"{missing[0]}{' and others' if len(missing) > 1 else ''}"
        raise DataError(
            f"data.root = {root} has no {folder}/{first}. {title} is expected in {root / folder}: "
            f"download {url} and unpack it in {root}."
        )


def _damaged(root: Path, title: str, folder: str, url: str) -> DataError:
    return DataError(
        f"{root / folder} has a file whose checksum is not {title}'s. Download {url} again and unpack it in {root}."
    )
