# SPDX-License-Identifier: Apache-2.0
"""Images from one ``.npz`` file with the keys of Keras: ``x_train``, ``y_train``, ``x_test``, ``y_test``."""

import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from recipes_lib.data.images import ImageSet
from recipes_lib.errors import DataError


def read(path: Path) -> tuple[ImageSet, ImageSet]:
    """The training and the test images of ``path``.

    ``x_*``: uint8 [N, side, side, 3]; ``y_*``: integers [N] or [N, 1], which may be absent; ``class_names``: strings,
    optional. Nothing is unpickled.

    Raises: ``DataError`` saying what the file has and what it should have.
    """
    arrays = _arrays(path)
    labels = {split: _labels(path, arrays, split) for split in ("train", "test")}
    names = _class_names(path, arrays, labels)
    train, test = (ImageSet(_images(path, arrays, f"x_{split}"), labels[split], names) for split in ("train", "test"))
    return train, test


def _arrays(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise DataError(f"data.root = {path} is no file. data.name npz wants the path of an .npz file.")
    try:
        with np.load(path, allow_pickle=False) as archive:  # an array file (.npy) has no `files`: AttributeError
            return {name: archive[name] for name in archive.files}
    except (OSError, EOFError, ValueError, AttributeError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        if "Object arrays" in str(error):
            raise DataError(f"{path} holds Python objects, which are not unpickled. Save plain arrays.") from None
        raise DataError(f"{path} is no complete .npz file. Copy it again, or save it with numpy.savez.") from None


def _images(path: Path, arrays: dict[str, np.ndarray], key: str) -> Tensor:
    if key not in arrays:
        raise DataError(f"{path} has no {key}, only {', '.join(sorted(arrays)) or 'nothing'}. Save images as {key}.")
    x = arrays[key]
    has = f"{path}: {key} is {x.dtype} {list(x.shape)}, but images are uint8 [N, side, side, 3]"
    if x.dtype != np.uint8:
        raise DataError(f"{has}. Scale it to 0-255 and use .astype('uint8').")
    if x.ndim == 3 or (x.ndim == 4 and x.shape[3] == 1):
        raise DataError(f"{has}. Repeat the grey channel: np.repeat(x.reshape(*x.shape[:3], 1), 3, axis=3).")
    if x.ndim == 4 and x.shape[1] == 3 and x.shape[3] != 3:
        raise DataError(f"{has}. Move the channels to the end: x.transpose(0, 2, 3, 1).")
    if x.ndim != 4 or x.shape[3] != 3:
        raise DataError(f"{has}.")
    if x.shape[1] != x.shape[2]:
        raise DataError(f"{has}. Crop or resize the images to squares.")
    if x.size == 0:
        raise DataError(f"{has}. It is empty.")
    return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))


def _labels(path: Path, arrays: dict[str, np.ndarray], split: str) -> Tensor | None:
    y = arrays.get(f"y_{split}")
    if y is None:
        return None
    has = f"{path}: y_{split} is {y.dtype} {list(y.shape)}, but labels are integers [N]"
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]  # as Keras saves CIFAR-10
    if y.ndim != 1 or not np.issubdtype(y.dtype, np.integer):
        hint = " Turn one-hot rows into classes with y.argmax(axis=1)." if y.ndim == 2 else ""
        raise DataError(f"{has}.{hint}")
    images = arrays.get(f"x_{split}")
    if images is not None and images.ndim and len(y) != len(images):
        raise DataError(f"{path}: y_{split} has {len(y)} labels for {len(images)} images of x_{split}.")
    if len(y) and y.min() < 0:
        raise DataError(f"{path}: y_{split} has the label {y.min()}, but classes count from 0.")
    return torch.from_numpy(y.astype(np.int64))


def _class_names(path: Path, arrays: dict[str, np.ndarray], labels: dict[str, Tensor | None]) -> tuple[str, ...]:
    classes = max((int(y.max()) + 1 for y in labels.values() if y is not None and len(y)), default=0)
    if "class_names" not in arrays:
        return tuple(str(number) for number in range(classes))
    names = tuple(str(name) for name in arrays["class_names"].ravel())
    if len(names) < classes:
        raise DataError(f"{path}: class_names has {len(names)} names, but the labels go up to {classes - 1}.")
    return names
