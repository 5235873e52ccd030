# SPDX-License-Identifier: Apache-2.0
"""Reads images from one ``.npz`` file with the keys of Keras: ``x_train``, ``y_train``, ``x_test``, ``y_test``.

Such a file may come from anywhere. Therefore nothing is unpickled, the size of an array is checked in its header before
it is read, and arrays under other keys are ignored.
"""

import math
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.lib import format as npy

from recipes_lib.data.images import UNLABELLED, ImageSet
from recipes_lib.errors import DataError

_SPLITS = ("train", "test")
_SUSPECT_BYTES, _SUSPECT_RATIO = 1 << 30, 200
"""An array of more than 1 GiB that is compressed by more than a factor of 200 cannot hold photographs, and is
refused."""
_UNKNOWN = 255
"""The label of images of unknown class in some data sets with unsigned bytes."""


@dataclass(frozen=True)
class _Member:
    """An array in the file that has not been read yet."""

    info: zipfile.ZipInfo
    shape: tuple[int, ...]
    dtype: np.dtype


def read(path: Path) -> tuple[ImageSet, ImageSet]:
    """Reads the training and the test images of ``path``.

    ``x_*``: uint8 or uint16 [N, side, side, 3]; of 16 bits the upper 8 are used. ``y_*``: integers [N] or [N, 1],
    optional. ``class_names``: strings, optional. Labels are positions in ``class_names``; without it labels may be any
    numbers, and the classes are the different numbers, sorted. -1 marks an image without a label.

    Raises: ``DataError`` saying what the file has and what it should have.
    """
    if not path.is_file():
        raise DataError(f"data.root = {path} is no file. data.name npz wants the path of an .npz file.")
    with _damage_told(path), zipfile.ZipFile(path) as archive:
        members = _members(path, archive)
        _check_images(path, members)
        labels = {split: _labels(path, archive, members, split) for split in _SPLITS}
        names = None
        if "class_names" in members:
            names = tuple(str(name) for name in _array(archive, members["class_names"]).ravel())
        labels, names = _classes(path, labels, names)
        images = {split: _images(path, archive, members, f"x_{split}") for split in _SPLITS}
    deep = [key for key in ("x_train", "x_test") if members[key].dtype == np.uint16]
    notes = tuple(f"{path}: {key} has 16 bits per value; the values were divided by 256." for key in deep)
    train, test = (
        ImageSet(
            torch.from_numpy(images[split]),
            None if labels[split] is None else torch.from_numpy(labels[split]),
            names,
            notes=notes,
        )
        for split in _SPLITS
    )
    return train, test


@contextmanager
def _damage_told(path: Path) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except MemoryError:
        raise DataError(f"{path} does not fit into this machine's memory. Save fewer or smaller images.") from None
    except Exception:  # zipfile, its decompressors and numpy each raise their own errors for damaged files
        raise DataError(f"{path} is no complete .npz file. Copy it again, or save it with numpy.savez.") from None


def _members(path: Path, archive: zipfile.ZipFile) -> dict[str, _Member]:
    """The shape and type of each array that is used, from the headers; raises ``DataError`` for one that is refused."""
    keys = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
    for key in ("x_train", "x_test"):
        if key not in keys:
            there = ", ".join(sorted(keys)[:10]) or "nothing"
            raise DataError(f"{path} has no {key}, only {there}. Save images as {key}.")
    wanted = ("x_train", "y_train", "x_test", "y_test", "class_names")
    return {key: _member(path, archive, key, keys[key]) for key in wanted if key in keys}


def _member(path: Path, archive: zipfile.ZipFile, key: str, info: zipfile.ZipInfo) -> _Member:
    if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        how = "encrypted" if info.flag_bits & 1 else "compressed by a method that numpy does not write"
        raise DataError(f"{path}: {key} is {how}. Save it with numpy.savez or numpy.savez_compressed.")
    with archive.open(info) as file:
        version = npy.read_magic(file)
        parse = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = parse(file)
        if dtype.hasobject:
            raise DataError(f"{path}: {key} holds Python objects, which are not unpickled. Save plain arrays.")
        size = math.prod(shape) * dtype.itemsize
        if size != info.file_size - file.tell():
            raise DataError(
                f"{path}: {key} should have {size:,} bytes by its header {list(shape)}, and has {info.file_size:,}. "
                "Copy the file again, or save it with numpy.savez."
            )
    if size > _SUSPECT_BYTES and size > _SUSPECT_RATIO * info.compress_size:
        raise DataError(
            f"{path}: {key} would take {size:,} bytes, from {info.compress_size:,} in the file. Images are not compressed "
            "as far as that. Save them again."
        )
    if 2 * size > _memory():  # while the channels are moved there are two copies of the array
        raise DataError(
            f"{path}: {key} takes {size:,} bytes, twice for a moment; this machine has {_memory():,}. "
            "Use fewer images, or image files: --data.name imagenet."
        )
    return _Member(info, shape, dtype)


def _memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _check_images(path: Path, members: dict[str, _Member]) -> None:
    for key in ("x_train", "x_test"):
        shape, dtype = members[key].shape, members[key].dtype
        has = f"{path}: {key} is {dtype} {list(shape)}, but images are uint8 [N, side, side, 3]"
        if dtype not in (np.uint8, np.uint16):
            raise DataError(f"{has}. Scale it to 0-255 and use .astype('uint8').")
        if len(shape) == 3 or (len(shape) == 4 and shape[3] == 1):
            raise DataError(f"{has}. Repeat the grey channel: np.repeat(x.reshape(*x.shape[:3], 1), 3, axis=3).")
        if len(shape) == 4 and shape[1] == 3 and shape[3] != 3:
            raise DataError(f"{has}. Move the channels to the end: x.transpose(0, 2, 3, 1).")
        if len(shape) == 4 and shape[3] == 4:
            raise DataError(f"{has}. If the fourth channel is transparency, composite the images over white first.")
        if len(shape) != 4 or shape[3] != 3:
            raise DataError(f"{has}.")
        if shape[1] != shape[2]:
            raise DataError(f"{has}. Crop or resize the images to squares.")
        if math.prod(shape) == 0:
            raise DataError(f"{has}. It is empty.")
    train, test = (members[f"x_{split}"].shape[1] for split in _SPLITS)
    if train != test:
        raise DataError(
            f"{path}: x_train has images of {train} x {train} pixels, x_test of {test} x {test}. Resize one of them."
        )


def _array(archive: zipfile.ZipFile, member: _Member) -> np.ndarray:
    with archive.open(member.info) as file:
        return npy.read_array(file, allow_pickle=False)


def _images(path: Path, archive: zipfile.ZipFile, members: dict[str, _Member], key: str) -> np.ndarray:
    """Reads an array of images and moves its channels.  [N, side, side, 3] -> uint8 [N, 3, side, side]"""
    x = _array(archive, members[key])
    if x.dtype == np.uint16:
        if x.max() < 256:
            raise DataError(f"{path}: {key} is uint16, and its largest value is {x.max()}. Use .astype('uint8').")
        x = (x >> 8).astype(np.uint8)
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2))


def _labels(path: Path, archive: zipfile.ZipFile, members: dict[str, _Member], split: str) -> np.ndarray | None:
    """Reads the labels as they are in the file: integers [N], or None if there are none."""
    member = members.get(f"y_{split}")
    if member is None:
        return None
    shape, dtype = member.shape, member.dtype
    has = f"{path}: y_{split} is {dtype} {list(shape)}, but labels are integers [N]"
    column = len(shape) == 2 and shape[1] == 1  # Keras saves CIFAR-10's labels so
    if not (len(shape) == 1 or column) or dtype.kind not in "iu":
        hint = " Turn one-hot rows into classes with y.argmax(axis=1)." if len(shape) == 2 else ""
        raise DataError(f"{has}.{hint}")
    images = members[f"x_{split}"].shape[0]
    if shape[0] != images:
        raise DataError(f"{path}: y_{split} has {shape[0]} labels for {images} images of x_{split}.")
    y = _array(archive, member).reshape(-1)
    if y.min() < UNLABELLED:
        raise DataError(f"{path}: y_{split} has the label {y.min()}. Classes count from 0, and -1 is no class.")
    return y


def _classes(
    path: Path, labels: dict[str, np.ndarray | None], names: tuple[str, ...] | None
) -> tuple[dict[str, np.ndarray | None], tuple[str, ...]]:
    """Converts labels to positions (int64) in the class names, and returns both."""
    found = sorted({int(label) for y in labels.values() if y is not None for label in np.unique(y)} - {UNLABELLED})
    if names is not None:
        if found and found[-1] >= len(names):
            raise DataError(f"{path}: class_names has {len(names)} names, but the labels go up to {found[-1]}.")
        return {split: None if y is None else y.astype(np.int64) for split, y in labels.items()}, names
    if found and found[-1] == _UNKNOWN and len(found) > 1 and found[-2] != _UNKNOWN - 1:
        raise DataError(
            f"{path}: one label is {_UNKNOWN}, and the others go up to {found[-2]}. If it says that the class is not known, "
            "write -1; if it is a class, give class_names, or number the classes from 0 without a gap."
        )
    return {split: None if y is None else _positions(y, found) for split, y in labels.items()}, tuple(map(str, found))


def _positions(y: np.ndarray, found: list[int]) -> np.ndarray:
    numbers, inverse = np.unique(y, return_inverse=True)
    place = {number: index for index, number in enumerate(found)}
    return np.array([place.get(number, UNLABELLED) for number in numbers.tolist()], np.int64)[inverse]
