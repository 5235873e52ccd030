# SPDX-License-Identifier: Apache-2.0
"""Reads ImageNet-X's annotations: the official package's folder, or a compact form with all arrays in one file."""

import csv
import gzip
import zipfile
from pathlib import Path

import numpy as np

from recipes_lib.errors import DataError
from recipes_lib.factors import annotations, imagenet_x_folder
from recipes_lib.factors.annotations import (
    CLASSES,
    FACTORS,
    OBTAIN,
    Annotations,
    Metaclasses,
    Partitions,
    Reassessed,
    bits_to_marks,
    index_to_marks,
    refuse_count,
    refuse_factors,
    validation_names,
)

_KEYS = ("label", "annotated", "prototype", "top_factor", "multi_factor_bits", "factor_names")


def read(path: Path) -> Partitions:
    """Reads ImageNet-X's annotations from ``path``.

    ``path`` is the official package's folder, the compact file ``imagenet_x_val.npz``, or the folder of that file. The
    annotations of training images are read from ``imagenet_x_train.csv.gz`` in the compact file's folder, if it is
    there.

    Raises: ``DataError`` naming the file that is missing, damaged or of another version.
    """
    if not path.exists():
        raise DataError(f"annotations = {path} does not exist. {OBTAIN}")
    compact = path / "imagenet_x_val.npz" if path.is_dir() else path
    if path.is_dir() and not compact.is_file():
        return imagenet_x_folder.read(path)
    if compact.suffix != ".npz":
        raise DataError(f"annotations = {path} is neither a folder nor an .npz file. {OBTAIN}")
    train = compact.with_name("imagenet_x_train.csv.gz")
    return Partitions(_compact(compact), _compact_train(train) if train.is_file() else None)


def _compact(path: Path) -> Annotations:
    try:
        with np.load(path, allow_pickle=False) as file:
            lacking = [key for key in _KEYS if key not in file]
            if lacking:
                raise DataError(f"{path} holds no annotations: {', '.join(lacking)} missing. {OBTAIN}")
            parts = {key: file[key] for key in file if not key.startswith(("pred_", "prob_"))}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read as an .npz file of arrays ({error}). Copy it again.") from None
    names = tuple(map(str, parts["factor_names"]))
    refuse_factors(path, names)
    for key in _KEYS[:-1]:
        refuse_count(path, f"rows of {key}", len(parts[key]), annotations.VERSION.images)
    refuse_count(path, "annotated images", int(parts["annotated"].sum()), annotations.VERSION.annotated)
    refuse_count(path, "prototypes", int(parts["prototype"].sum()), annotations.VERSION.prototypes)
    optional = {}
    if {"real_labels", "real_offsets"} <= parts.keys():
        refuse_count(path, "rows of real_offsets", len(parts["real_offsets"]) - 1, annotations.VERSION.images)
        optional["real"] = Reassessed(parts["real_labels"], parts["real_offsets"])
    if {"metaclass_names", "metaclass_of_class"} <= parts.keys():
        coarse = tuple(map(str, parts["metaclass_names"]))
        optional["metaclasses"] = Metaclasses(coarse, parts["metaclass_of_class"])
    annotated = parts["annotated"].astype(bool)
    return Annotations(
        names=validation_names(),
        labels=_labels(path, parts["label"]),
        classes=CLASSES,
        factors=FACTORS,
        marks={
            "top": index_to_marks(parts["top_factor"], names),
            "multi": bits_to_marks(parts["multi_factor_bits"], names),
        },
        left_out={"not annotated": ~annotated, "prototype": annotated & parts["prototype"].astype(bool)},
        **optional,
    )


def _labels(path: Path, labels: np.ndarray) -> np.ndarray:
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0 or labels.max() >= CLASSES:
        raise DataError(f"{path}: label is not all whole numbers from 0 to {CLASSES - 1}. {OBTAIN}")
    return labels.astype(np.int16)


def _compact_train(path: Path) -> Annotations:
    try:
        with gzip.open(path, "rt", newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        columns = {
            name: [row[name] for row in rows] for name in ("file_name", "label", "top_factor", "multi_factor_bits")
        }
        label, top, multi = (np.array(columns[name], np.int64) for name in list(columns)[1:])
    except (OSError, EOFError, KeyError, ValueError, TypeError) as error:
        wanted = "file_name, label, top_factor, multi_factor_bits"
        raise DataError(f"{path} is no table of {wanted} ({type(error).__name__}: {error}). Copy it again.") from None
    refuse_count(path, "annotated training images", len(label), annotations.VERSION.train)
    marks = {"top": index_to_marks(top, FACTORS), "multi": bits_to_marks(multi, FACTORS)}
    return Annotations(np.array(columns["file_name"]), _labels(path, label), CLASSES, FACTORS, marks)
