# SPDX-License-Identifier: Apache-2.0
"""Reads ImageNet-X's annotations from the official package ``imagenet-x``: JSON lines and lists in one folder.

Rows are joined by file name, because the package's rows are in the order of class folders. Factors are found by name,
because the package's JSON lists them in another order than its code.
"""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from recipes_lib.errors import DataError
from recipes_lib.factors import annotations
from recipes_lib.factors.annotations import CLASSES, FACTORS, OBTAIN, Annotations, Partitions

METACLASSES = (
    "device",
    "dog",
    "commodity",
    "bird",
    "structure",
    "covering",
    "wheeled_vehicle",
    "food",
    "equipment",
    "insect",
    "vehicle",
    "furniture",
    "primate",
    "vessel",
    "snake",
    "natural_object",
    "other",
)
"""The sixteen metaclasses that the paper names; all other classes belong to ``other``."""
KINDS = ("top", "multi")
_NOT_FACTORS = {"file_name", "class", "justification", "one_word"}


def read(folder: Path) -> Partitions:
    """Reads the annotations in ``folder``, which may also be the folder of the package or of its repository.

    Raises: ``DataError`` naming the file that is missing, damaged or of another version.
    """
    places = [folder, folder / "annotations", folder / "imagenet_x" / "annotations"]
    place = next((place for place in places if _jsonl(place, "val", "top").is_file()), None)
    if place is None:
        raise DataError(f"annotations = {folder} has no {_jsonl(folder, 'val', 'top').name}. {OBTAIN}")
    train = _train(place) if all(_jsonl(place, "train", kind).is_file() for kind in KINDS) else None
    return Partitions(_validation(place), train)


def _jsonl(folder: Path, partition: str, kind: str) -> Path:
    return folder / f"imagenet_x_{partition}_{kind}_factor.jsonl"


def _validation(folder: Path) -> Annotations:
    listed = folder / "filename_label.csv"
    table = _table(listed, ("file_name", "label"))
    names = annotations.validation_names()
    place = {name: row for row, name in enumerate(names.tolist())}
    rows = _rows(listed, [row["file_name"] for row in table], place)
    annotations.refuse_count(listed, "images", len(np.unique(rows)), annotations.VERSION.images)
    labels = np.empty(annotations.VERSION.images, np.int16)
    labels[rows] = _whole_numbers(listed, "label", [row["label"] for row in table])
    marks, annotated = {}, np.zeros(annotations.VERSION.images, bool)
    for kind in KINDS:
        path = _jsonl(folder, "val", kind)
        files, classes, given = _lines(path)
        rows = _rows(path, files, place)
        annotations.refuse_count(path, "annotated images", len(np.unique(rows)), annotations.VERSION.annotated)
        if marks and not annotated[rows].all():
            raise DataError(f"{path} annotates other images than {_jsonl(folder, 'val', 'top').name}. {OBTAIN}")
        if (odd := np.flatnonzero(labels[rows] != classes)).size:
            first = files[odd[0]]
            raise DataError(f"{path} is of another version: class of {first} is not that of {listed.name}. {OBTAIN}")
        annotated[rows] = True
        marks[kind] = np.zeros((annotations.VERSION.images, len(FACTORS)), bool)
        marks[kind][rows] = given
    return Annotations(
        names=names,
        labels=labels,
        classes=CLASSES,
        factors=FACTORS,
        marks=marks,
        left_out={"not annotated": ~annotated, "prototype": annotated & _prototypes(folder, place)},
        real=_reassessed(folder),
        metaclasses=_metaclasses(folder),
    )


def _train(folder: Path) -> Annotations:
    found = {kind: _lines(_jsonl(folder, "train", kind)) for kind in KINDS}
    names, labels, _ = found["top"]
    annotations.refuse_count(
        _jsonl(folder, "train", "top"), "annotated training images", len(names), annotations.VERSION.train
    )
    if found["multi"][0] != names:
        path = _jsonl(folder, "train", "multi")
        raise DataError(f"{path} annotates other images, or in another order, than its neighbour of top. {OBTAIN}")
    return Annotations(np.array(names), labels, CLASSES, FACTORS, {kind: parts[2] for kind, parts in found.items()})


def _lines(path: Path) -> tuple[list[str], np.ndarray, np.ndarray]:
    """The file names, classes (int16 [n]) and marks (bool [n, 16]) in a file of JSON lines."""
    names, classes, marks = [], [], []
    for number, line in _text(path):
        try:
            row = json.loads(line)
            if not marks:
                annotations.refuse_factors(path, tuple(key for key in row if key not in _NOT_FACTORS))
            names.append(row["file_name"])
            classes.append(row["class"])
            marks.append([row[name] for name in FACTORS])
        except (ValueError, KeyError, TypeError) as error:
            why = f"{type(error).__name__}: {error}"
            raise DataError(f"{path}, line {number}, is no annotation of this version ({why}). {OBTAIN}") from None
    return names, _whole_numbers(path, "class", classes), np.array(marks).reshape(-1, len(FACTORS)) == 1


def _text(path: Path) -> Iterator[tuple[int, str]]:
    try:
        with path.open(encoding="utf-8") as file:
            yield from enumerate(file, start=1)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}). {OBTAIN}") from None


def _table(path: Path, columns: tuple[str, ...]) -> list[dict[str, Any]]:
    reader = csv.DictReader(line for _, line in _text(path))
    rows = list(reader)
    if not set(columns) <= set(reader.fieldnames or ()):
        raise DataError(f"{path} lacks a column of {', '.join(columns)}. {OBTAIN}")
    return rows


def _rows(path: Path, names: list[str], place: dict[str, int]) -> np.ndarray:
    try:
        return np.array([place[name] for name in names], np.int64)
    except KeyError as error:
        raise DataError(f"{path} names {error}, which is no validation image of ImageNet. {OBTAIN}") from None


def _whole_numbers(path: Path, column: str, values: list[Any]) -> np.ndarray:
    try:
        numbers = np.array(values, np.int64)
    except (ValueError, TypeError):
        numbers = np.array([-1])
    if len(numbers) and not 0 <= numbers.min() <= numbers.max() < CLASSES:
        raise DataError(f"{path}: {column} is not all whole numbers from 0 to {CLASSES - 1}. {OBTAIN}")
    return numbers.astype(np.int16)


def _prototypes(folder: Path, place: dict[str, int]) -> np.ndarray:
    path = folder / "prototypical_paths.csv"
    rows = _rows(path, [row["file_name"] for row in _table(path, ("file_name",))], place)
    found = np.zeros(annotations.VERSION.images, bool)
    found[rows] = True
    annotations.refuse_count(path, "prototypes", int(found.sum()), annotations.VERSION.prototypes)
    return found


def _reassessed(folder: Path) -> annotations.Reassessed:
    path = folder / "imagenet_real_labels.jsonl"
    try:
        lists = json.loads("".join(line for _, line in _text(path)))
        lengths = [len(labels) for labels in lists]
        flat = [label for labels in lists for label in labels]
    except (ValueError, TypeError) as error:
        raise DataError(f"{path} is no list of lists of classes ({error}). {OBTAIN}") from None
    annotations.refuse_count(path, "images", len(lists), annotations.VERSION.images)
    return annotations.Reassessed(_whole_numbers(path, "labels", flat), np.concatenate([[0], np.cumsum(lengths)]))


def _metaclasses(folder: Path) -> annotations.Metaclasses:
    path = folder / "imagenet_1k_classes_to_100_metaclasses.csv"
    rows = _table(path, ("name",))
    annotations.refuse_count(path, "classes", len(rows), CLASSES)
    place = {name: number for number, name in enumerate(METACLASSES)}
    other = place["other"]
    return annotations.Metaclasses(METACLASSES, np.array([place.get(row["name"], other) for row in rows], np.int8))
