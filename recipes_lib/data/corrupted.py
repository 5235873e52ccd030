# SPDX-License-Identifier: Apache-2.0
"""Reads published corrupted test images: ImageNet-C's folders of files, and CIFAR-10-C's arrays.

Both hold the test images of a clean data set in its own order or under its own names, so they are read as that data
set: :func:`read` gives the corrupted images of given clean ones, with the same labels.

Source: the data sets of Hendrycks and Dietterich, ICLR 2019 (zenodo.org records 2235448 and 2535967). CIFAR-100-C and
Tiny ImageNet-C have the same two layouts.
"""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from recipes_lib.config.evaluation import SEVERITIES
from recipes_lib.data.images import ImageFiles, ImageSet
from recipes_lib.errors import DataError


def read(root: Path, name: str, severity: int, clean: ImageSet | ImageFiles) -> ImageSet | ImageFiles:
    """The corrupted images of ``clean``, in the same order and with the same labels.

    Image files come from ``root/NAME/SEVERITY``, under their names in the clean folder (ImageNet-C). Images in memory
    come from ``root/NAME.npy`` (CIFAR-10-C): uint8 [5 * N, H, W, 3], severity 1 first, where N is the size of the test
    set and ``clean.names`` are the images' numbers in it.

    Raises: ``DataError`` in one line for a corruption or an image that is missing, for an array of another shape, and
    for labels that are not those of the clean images.
    """
    if isinstance(clean, ImageFiles):
        return replace(clean, root=_folder(root, name, severity, clean), notes=())
    count = _checked_count(root, clean)
    array = _array(root, name, count)
    pictures = array[(severity - 1) * count + _numbers(clean)]  # [n, H, W, 3], the only part that is read
    return replace(clean, images=torch.from_numpy(np.ascontiguousarray(pictures.transpose(0, 3, 1, 2))))


def check(root: Path, names: Iterable[str], severities: Iterable[int], clean: ImageSet | ImageFiles) -> None:
    """Checks that ``root`` has what :func:`read` will read; it opens no image file. Raises: as :func:`read`."""
    if not root.is_dir():
        raise DataError(f"eval.corruption_root = {root} is no folder. Give that of ImageNet-C or CIFAR-10-C, unpacked.")
    for name in names:
        if isinstance(clean, ImageSet):
            _array(root, name, _checked_count(root, clean))
            continue
        for severity in severities:
            _folder(root, name, severity, clean)


def _folder(root: Path, name: str, severity: int, clean: ImageFiles) -> Path:
    folder = root / name / str(severity)
    if not folder.is_dir():
        raise DataError(
            f"{root} has no folder {name}/{severity}. ImageNet-C has NAME/SEVERITY/CLASS/*.JPEG: unpack all of it, or "
            "choose others with --eval.corruptions and --eval.corruption-severities."
        )
    first = next((str(file) for file in clean.names if not (folder / str(file)).is_file()), None)
    if first is not None:
        raise DataError(f"{folder} has no {first}, which is among the clean test images. Unpack ImageNet-C again.")
    return folder


def _checked_count(root: Path, clean: ImageSet) -> int:
    """The size of the test set of which ``root`` holds arrays; the clean images are known to be from it."""
    labels = _load(root, "labels")
    if (
        labels.ndim != 1
        or not np.issubdtype(labels.dtype, np.integer)
        or len(labels) % len(SEVERITIES)
        or not len(labels)
    ):
        raise DataError(
            f"{root / 'labels.npy'} is {labels.dtype} {list(labels.shape)}. CIFAR-10-C has integers [50000], the labels of "
            "10,000 test images five times."
        )
    count = len(labels) // len(SEVERITIES)
    own = next((name for name in clean.names if not name.isdecimal() or int(name) >= count), None)
    if own is not None:
        raise DataError(
            f"The test image {own!r} of the run is none of the {count:,} of {root}. Corrupted images are read for the test "
            "set that they were made of, such as data.name cifar10."
        )
    there, here = labels[_numbers(clean)], clean.labels.numpy()
    if len(odd := np.flatnonzero(there != here)):
        name, other, own = clean.names[odd[0]], there[odd[0]], here[odd[0]]
        raise DataError(
            f"{root / 'labels.npy'} says that test image {name} is of class {other}, and in the run's data it is of class "
            f"{own}. Give the corrupted images of the data set that the run is scored on."
        )
    return count


def _numbers(clean: ImageSet) -> np.ndarray:
    """The images' numbers in the test set, int64."""
    return np.array([int(name) for name in clean.names])


def _array(root: Path, name: str, count: int) -> np.ndarray:
    """The array of one corruption, which stays on disk. Raises: ``DataError`` unless it is uint8 [5 * count, H, W, 3]."""
    array = _load(root, name)
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[0] != len(SEVERITIES) * count or array.shape[3] != 3:
        raise DataError(
            f"{root / f'{name}.npy'} is {array.dtype} {list(array.shape)}. For {count:,} labels it has to be uint8 "
            f"[{len(SEVERITIES) * count}, height, width, 3]."
        )
    return array


def _load(root: Path, name: str) -> np.ndarray:
    path = root / f"{name}.npy"
    if not path.is_file():
        raise DataError(
            f"{root} has no {name}.npy. CIFAR-10-C has labels.npy, and an array for each corruption: unpack all of it, or "
            "choose others with --eval.corruptions."
        )
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise DataError(f"{path} is no array that numpy can read ({error}). Copy it again.") from None
