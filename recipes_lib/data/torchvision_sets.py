# SPDX-License-Identifier: Apache-2.0
"""Reads CIFAR-10, STL-10, ImageNet, iNaturalist and Places from the user's folders, by torchvision's classes.

Nothing is downloaded. torchvision compares checksums before it reads CIFAR-10's and STL-10's files, and Places' lists.
"""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from torchvision import datasets

from recipes_lib.data import folders
from recipes_lib.data.images import UNLABELLED, ImageFiles, ImageSet
from recipes_lib.errors import DataError


def cifar10(root: Path) -> tuple[ImageSet, ImageSet]:
    """CIFAR-10: 50,000 training and 10,000 test images of 32x32 pixels, 10 classes, from ``root/cifar-10-batches-py``.

    Raises: ``DataError`` if files are missing or damaged.
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
    """STL-10: 105,000 training images (5,000 with a label, 100,000 without) and 8,000 test images of 96x96 pixels.

    There are 10 classes. Training uses the labelled and the unlabelled images; probes learn from the labelled ones. The
    set takes 2.9 GB of memory, and twice as much for a moment while it is read.

    Raises: ``DataError`` if files are missing or damaged.
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
            torch.from_numpy(split.labels.astype(np.int64)),  # -1 means unlabelled in torchvision and here
            tuple(split.classes),
        )
        for split in splits
    )
    return train, test


def imagenet(root: Path) -> tuple[ImageFiles, ImageFiles]:
    """Image files in torchvision's layout of ImageNet: ``root/train/CLASS/*.JPEG`` and ``root/val/CLASS/*.JPEG``.

    Any two such folders can be read; the development kit, which torchvision's class requires, is not needed. Images
    without a class (:mod:`recipes_lib.data.folders`) are left out: see :func:`own_images`.

    Raises: ``DataError`` if a folder is missing or empty, or the two have different classes.
    """
    train, val = (image_folder(root, split) for split in ("train", "val"))
    _need_same_classes(root, train, val)
    return train, val


def own_images(root: Path) -> tuple[ImageFiles, ImageFiles | None]:
    """Image files in the layout of :func:`imagenet`; classes of all or some images, or ``val``, may be missing.

    Without folders ``train`` and ``val``, the images in ``root`` itself are the training images, without labels.

    Raises: ``DataError`` if there is no image, a class folder is empty, or train and val have different classes.
    """
    if root.is_dir() and not (root / "train").exists() and not (root / "val").exists():
        return _listed(
            root, f"Image files are expected in {root}, or as {root}/train/CLASS/*.JPEG.", classes=False
        ), None
    train = _split(root, "train")
    val = _split(root, "val") if (root / "val").exists() else None
    if train.class_names and val is not None and val.class_names:
        _need_same_classes(root, train, val)
    return train, val


def _need_same_classes(root: Path, train: ImageFiles, val: ImageFiles) -> None:
    if train.class_names != val.class_names:
        odd = sorted(set(train.class_names) ^ set(val.class_names))
        where = "train" if odd[0] in train.class_names else "val"
        raise DataError(
            f"{root}: train has {len(train.class_names)} classes and val {len(val.class_names)}; "
            f"{odd[0]} is only in {where}. Both need the same class folders."
        )


def inat18(root: Path) -> tuple[ImageFiles, ImageFiles]:
    """iNaturalist 2018, 8,142 species with a long tail: ``root/2018/GROUP/SPECIES/*.jpg`` and ``root/val2018.json``.

    torchvision lists the training and the validation images together, in one folder per species. The competition's
    ``val2018.json`` names the validation images.

    Raises: ``DataError`` if the folders or the list are missing or not as expected.
    """
    folder, listed = root / "2018", root / "val2018.json"
    expected = (
        f"iNaturalist 2018 is expected as {folder}/GROUP/SPECIES/*.jpg (train_val2018.tar.gz, unpacked and renamed to "
        f"2018) and {listed} (val2018.json.tar.gz)."
    )
    for place, is_there in ((folder, folder.is_dir()), (listed, listed.is_file())):
        if not is_there:  # torchvision would make a folder that is missing
            raise DataError(f"data.root = {root} has no {place.name}. {expected}")
    try:
        kind = datasets.INaturalist(root, version="2018", download=False)
    except (RuntimeError, OSError) as error:
        raise DataError(f"{folder}: {str(error).rstrip('.')}. {expected}") from None
    passed_over: Counter = Counter()
    # sorted, because a folder is listed in arbitrary order; torchvision lists files of every kind
    files = sorted(file for file in kind.index if folders.is_image(file[1], passed_over))
    names = np.array([f"{kind.all_categories[label]}/{name}" for label, name in files])
    labels = torch.tensor([label for label, _ in files])
    held = np.isin(names, _names_of_inat(listed))
    if not held.any() or held.all():
        raise DataError(f"{listed} names {held.sum()} of the {len(names)} images under {folder}. {expected}")
    over = f"{folder}: {passed_over.total():,} files passed over ({', '.join(sorted(passed_over))})."
    notes = (over,) if passed_over else ()
    images = ImageFiles(folder, names, labels, tuple(kind.all_categories), notes)
    return tuple(images.select(torch.from_numpy(part).nonzero()[:, 0]) for part in (~held, held))


def _names_of_inat(path: Path) -> list[str]:
    """The image names in a list of the competition, without the folder ``train_val2018``."""
    try:
        return [entry["file_name"].partition("/")[2] for entry in json.loads(path.read_text())["images"]]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        raise DataError(
            f"{path} is no list of iNaturalist's images: it needs an entry images, and in each a file_name. "
            "Take it from val2018.json.tar.gz again."
        ) from None


def places365(root: Path) -> tuple[ImageFiles, ImageFiles]:
    """Places365-Standard, 365 scenes: ``root/data_256_standard``, ``root/val_256`` and the lists beside them.

    Images have 256x256 pixels, or full size if the folders ``data_large_standard`` and ``val_large`` exist.

    Raises: ``DataError`` if lists or folders are missing, or a list has a wrong checksum.
    """
    small = not (root / "data_large_standard").is_dir()
    expected = f"Places365 is expected in {root} as torchvision lays it out (datasets.Places365, split train-standard)."
    splits = []
    for path in root.glob("*.txt"):
        if not path.is_file():  # torchvision would wait for a pipe to end
            raise DataError(f"{path} is no plain file. {expected}")
    for split in ("train-standard", "val"):
        try:
            kind = datasets.Places365(root, split=split, small=small, download=False)
        except RuntimeError as error:
            reason = str(error).partition(". ")[0].rstrip(".")  # without its advice to download
            raise DataError(f"{reason}. {expected}") from None
        folder = Path(kind.images_dir)
        if not folder.is_dir():
            raise DataError(f"data.root = {root} has no folder {folder.name}. {expected}")
        names = np.array([str(Path(path).relative_to(folder)) for path, _ in kind.imgs])
        splits.append(ImageFiles(folder, names, torch.tensor(kind.targets), tuple(kind.classes)))
    return tuple(splits)


def image_folder(root: Path, split: str) -> ImageFiles:
    """The image files ``root/split/CLASS/*.JPEG``; class ids are positions among the sorted class folders.

    Raises: ``DataError`` if there is no such folder, no class in it, or a class without an image.
    """
    files = _split(root, split)
    if files.labels is None:
        raise DataError(f"{root / split}: Couldn't find any class folder. {_layout(root, split)}")
    known = (files.labels != UNLABELLED).nonzero()[:, 0]
    return files if len(known) == len(files) else files.select(known)


def _split(root: Path, split: str) -> ImageFiles:
    layout = _layout(root, split)
    if not (root / split).is_dir():
        raise DataError(f"data.root = {root} has no folder {split}. {layout}")
    return _listed(root / split, layout, classes=True)


def _listed(folder: Path, layout: str, *, classes: bool) -> ImageFiles:
    try:
        return folders.read(folder, classes=classes)
    except DataError as error:
        raise DataError(f"{error} {layout}") from None
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror}. {layout}") from None


def _layout(root: Path, split: str) -> str:
    return f"Image files are expected as {root}/{split}/CLASS/*.JPEG, one folder per class."


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
