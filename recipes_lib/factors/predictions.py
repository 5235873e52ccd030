# SPDX-License-Identifier: Apache-2.0
"""Reads the predictions of models into one array, joins them to annotated images by file name, and checks them.

A CSV file, in the official ImageNet-X toolkit's format, holds one model: columns file_name, predicted_class and
predicted_probability (optional). An ``.npz`` file holds ``predicted_class``, integers [N] or [models, N] with
``models`` (str [models]), or an array ``pred_NAME`` [N] per model. With ``file_name`` (str [N]) the images may be in
any order; without it they must be in the order of their names.
"""

import csv
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recipes_lib.errors import DataError
from recipes_lib.factors.annotations import Annotations

_COLUMNS = "file_name,predicted_class,predicted_probability"
_SHOWN = 5
_RELABELLED = 0.2
"""The least accuracy of another order of the classes for which a file is said to use that order."""
_SHIFTED_CLASSES, _SHIFTED_BEYOND_CHANCE = 3, 6.0
"""A shift of the ids is reported if it covers at least this many classes and is this many standard deviations better
than no shift."""
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True)
class Predictions:
    """The predicted classes of M models for N images, in the order of the annotations.

    Raises: ``ValueError`` if the parts do not fit together.
    """

    models: tuple[str, ...]
    """The models' names, all different."""
    classes: np.ndarray
    """integers [M, N]: predicted class ids; int16 takes the least memory."""

    def __post_init__(self) -> None:
        if self.classes.ndim != 2 or len(self.classes) != len(self.models):
            raise ValueError(f"classes of shape {self.classes.shape} for {len(self.models)} models")
        if not np.issubdtype(self.classes.dtype, np.integer):
            raise ValueError(f"classes are {self.classes.dtype}, not integers")
        if len(set(self.models)) != len(self.models):
            raise ValueError(f"models share a name: {self.models}")


def read(paths: Sequence[Path], annotations: Annotations) -> Predictions:
    """Reads the predictions for the images of ``annotations`` from all files, CSV or ``.npz``.

    Raises: ``DataError`` naming the file and what is wrong with it, or two files with models of the same name.
    """
    place = {name: row for row, name in enumerate(annotations.names.tolist())}
    rows: list[np.ndarray] = []
    origin: dict[str, Path] = {}
    for path in paths:
        for given, classes in _models_of(path, annotations, place).items():
            model = given.strip()
            if model in origin:
                raise DataError(
                    f"{path} and {origin[model]} both hold a model {model!r}. A CSV file's model has the file's name: "
                    "rename one."
                )
            origin[model] = path
            refuse_other_classes(path, model, classes, annotations)
            rows.append(classes)
    if not rows:
        raise DataError("There are no predictions. Name CSV or .npz files.")
    return Predictions(tuple(origin), np.stack(rows))


def write(path: Path, names: Sequence[str], classes: np.ndarray, probabilities: np.ndarray) -> None:
    """Writes a CSV file in the official toolkit's format.

    Shapes: N names, ``classes`` integers [N], ``probabilities`` float32 [N], those of ``classes``.
    """
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_COLUMNS.split(","))
        rows = zip(map(cell, names), classes.tolist(), probabilities.tolist(), strict=True)
        writer.writerows((name, number, f"{probability:.9g}") for name, number, probability in rows)


def cell(text: str) -> str:
    """``text`` for a CSV file: an apostrophe is put before text that a spreadsheet would run as a formula.

    >>> cell("=1+1"), cell("model")
    ("'=1+1", 'model')
    """
    return f"'{text}" if text.startswith(_FORMULA) else text


def refuse_other_classes(path: Path, model: str, classes: np.ndarray, annotations: Annotations) -> None:
    """Raises ``DataError`` if the class ids seem to be shifted by one, or in another order of the classes.

    A shift may cover all ids, or those from one class on, for example because a class folder was missing or one too
    many. The tests compare the accuracy with that after adding 1 to, or subtracting 1 from, the ids of a range of
    classes, and with that after renaming each id to its most frequent label.
    """
    count = annotations.classes
    wanted = f"expected are 0 to {count - 1} in the order of the sorted class folders"
    wanted += " (ImageNet: sorted WordNet ids)" if count == 1000 else ""
    # table[id, label]: number of images
    table = np.bincount(classes.astype(np.int64) * count + annotations.labels, minlength=count**2).reshape(count, count)
    _refuse_shift(path, model, table, wanted)
    images = max(1, len(annotations.labels))
    right, renamed = np.trace(table) / images, table.max(axis=1).sum() / images
    if renamed > _RELABELLED and right < renamed / 4:
        raise DataError(
            f"{path}: class ids of {model} are in another order: {right:.1%} of the images are right as they are, "
            f"{renamed:.1%} would be if each id were renamed; {wanted}. Write the ids in that order."
        )


def _refuse_shift(path: Path, model: str, table: np.ndarray, wanted: str) -> None:
    """Raises ``DataError`` if a range of classes has ids one too high or low; ``table``: images [id, label]."""
    if (shift := max(filter(None, (_shift(table, step) for step in (-1, 1))), default=None)) is None:
        return
    gain, step, first, last, whole = shift
    word, fix = ("high", "Subtract 1.") if step < 0 else ("low", "Add 1.")
    where = "" if whole else f" for the images of classes {first} to {last}"
    if not whole:
        fix = (
            f"The shift begins at class {first}, so a class folder was missing or one too many when the ids were made: "
            f"number all {len(table):,} sorted class folders again."
        )
    images, right = table.sum(), np.trace(table)
    raise DataError(
        f"{path}: class ids of {model} are one too {word}{where}: {right / images:.1%} of the images are right as they are, "
        f"{(right + gain) / images:.1%} after a shift by {step:+d}{'' if whole else ' there'}; {wanted}. {fix}"
    )


def _shift(table: np.ndarray, step: int) -> tuple[int, int, int, int, bool] | None:
    """The range of labels whose images would be right far more often if ``step`` were added to their ids; or None.

    Returns how many more images would be right, ``step``, the first and last label of the range, and whether the range
    is in effect the whole set of classes.
    """
    images, right, moved = table.sum(axis=0), np.diagonal(table), np.zeros(len(table), np.int64)  # [C] each, per label
    labels = np.arange(len(table))[max(0, step) : len(table) + min(0, step)]
    moved[labels] = table[labels - step, labels]
    first, last = _best_range(moved - right)
    inside = np.zeros(len(table), bool)
    inside[first : last + 1] = True
    before, after = int(right[inside].sum()), int(moved[inside].sum())
    if last - first + 1 < _SHIFTED_CLASSES or after <= 2 * before:
        return None
    if after - before <= _SHIFTED_BEYOND_CHANCE * np.sqrt(after + before):
        return None
    # a few right labels outside the range are confusions rather than a sign that the shift begins later
    whole = right[~inside].sum() / max(1, images[~inside].sum()) < after / images[inside].sum() / 4
    return after - before, step, first, last, bool(whole)


def _best_range(gains: np.ndarray) -> tuple[int, int]:
    """The first and last position of the contiguous range of ``gains`` with the largest sum."""
    sums = np.concatenate([[0], np.cumsum(gains)])
    lowest = np.minimum.accumulate(sums)
    last = int(np.argmax(sums[1:] - lowest[:-1]))
    return int(np.argmin(sums[: last + 1])), last


def _models_of(path: Path, annotations: Annotations, place: Mapping[str, int]) -> dict[str, np.ndarray]:
    """The predictions in one file: model -> int16 [N], in the order of the annotations."""
    if not path.is_file():
        raise DataError(f"predictions = {path} is no file. Give CSV files ({_COLUMNS}) or .npz files.")
    match path.suffix.lower():
        case ".csv":
            names, columns = _read_csv(path)
        case ".npz":
            names, columns = _read_npz(path, annotations)
        case _:
            raise DataError(f"predictions = {path} is neither .csv nor .npz. Write {_COLUMNS} as a CSV file.")
    rows = None if names is None else _rows(path, names, place)
    found = {}
    for model, values in columns.items():
        whole = _whole(path, values, annotations)
        if rows is None:
            _refuse_folder_order(path, model, whole, annotations.labels)
        else:
            whole, given = np.empty_like(whole), whole
            whole[rows] = given
        found[model] = whole
    return found


def _refuse_folder_order(path: Path, model: str, classes: np.ndarray, labels: np.ndarray) -> None:
    """Raises ``DataError`` if rows without file names seem to be in the order of class folders."""
    right, in_folders = float((classes == labels).mean()), float((classes == np.sort(labels)).mean())
    if in_folders > 2 * right + 0.05:
        raise DataError(
            f"{path}: the rows of {model} are in the order of class folders: {right:.1%} of them are right in the order of file "
            f"names, {in_folders:.1%} in that one. Add file_name, or sort them by file name."
        )


def _read_csv(path: Path) -> tuple[list[str], dict[str, np.ndarray]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = csv.reader(file)
            header = [name.strip() for name in next(lines, [])]
            if "file_name" not in header or "predicted_class" not in header:
                raise DataError(f"{path} has the columns {', '.join(header) or 'none'}; wanted are {_COLUMNS}.")
            table = [line for line in lines if line]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as a CSV file ({error}). Write it again.") from None
    if odd := next((number for number, line in enumerate(table, start=2) if len(line) != len(header)), None):
        raise DataError(
            f"{path}, line {odd}, has another number of values than the {len(header)} columns. Write it again."
        )
    if twice := [name for name, count in Counter(header).items() if count > 1]:
        raise DataError(f"{path} has the column {twice[0]!r} more than once. Leave one.")
    columns = dict(zip(header, zip(*table, strict=True), strict=True)) if table else {name: () for name in header}
    _numbers(path, "predicted_probability", columns.get("predicted_probability", ()))
    return list(columns["file_name"]), {path.stem: _numbers(path, "predicted_class", columns["predicted_class"])}


def _numbers(path: Path, column: str, values: Sequence[str]) -> np.ndarray:
    """Converts a column to float64 [n]; raises ``DataError`` naming the first value that is not a finite number."""
    try:
        found = np.array(values, dtype=np.float64)
    except ValueError:
        found = np.array([_number(value) for value in values])
    if (odd := np.flatnonzero(~np.isfinite(found))).size:
        raise DataError(
            f"{path}, line {odd[0] + 2}: {column} is {values[odd[0]]!r}, which is no finite number"
            f" ({odd.size:,} such values). Predict these images again."
        )
    return found


def _number(value: str) -> float:
    try:
        return float(value)
    except ValueError:
        return np.nan


def _read_npz(path: Path, annotations: Annotations) -> tuple[list[str] | None, dict[str, np.ndarray]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            _refuse_twice(path, "array", file.files)
            chosen = [
                key for key in file if key in ("file_name", "models", "predicted_class") or key.startswith("pred_")
            ]
            parts = {key: file[key] for key in chosen}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read as an .npz file of arrays ({error}). Write it again.") from None
    names = parts.pop("file_name", None)
    models = parts.pop("models", None)
    table = parts.pop("predicted_class", None)
    given = [(key.removeprefix("pred_"), values) for key, values in parts.items()]
    if table is not None:
        titles = [path.stem] if models is None else list(map(str, np.atleast_1d(models)))
        table = np.atleast_2d(table)
        if len(table) != len(titles):
            raise DataError(
                f"{path}: predicted_class has {len(table)} rows for {len(titles)} models. Add models [rows]."
            )
        given += zip(titles, table, strict=True)
    _refuse_twice(path, "model", [model for model, _ in given])
    columns = dict(given)
    if not columns:
        raise DataError(
            f"{path} holds no predictions: give predicted_class [images] or [models, images], or pred_NAME."
        )
    count = len(annotations.names) if names is None else len(names)
    for model, values in columns.items():
        if values.shape != (count,):
            whose = "images are annotated" if names is None else "file names are given"
            raise DataError(f"{path}: predictions of {model} have shape {values.shape}, but {count:,} {whose}.")
    return (None if names is None else list(map(str, names))), columns


def _refuse_twice(path: Path, what: str, names: Iterable[str]) -> None:
    """Raises ``DataError`` if two names are equal, apart from white space around them."""
    if twice := [name for name, count in Counter(map(str.strip, names)).items() if count > 1]:
        raise DataError(f"{path} holds {what} {twice[0]!r} more than once. Give each a name of its own.")


def _rows(path: Path, names: Iterable[str], place: Mapping[str, int]) -> np.ndarray:
    """The row in the annotations of each prediction, as int64 [N]; folders in front of a name are ignored."""
    bare = [_bare(name) for name in names]
    rows = np.array([place.get(name, -1) for name in bare], dtype=np.int64)
    pattern = next(iter(place))
    if unknown := [name for name, row in zip(bare, rows.tolist(), strict=True) if row < 0]:
        none = " No name is known: are these predictions of another set?" if len(unknown) == len(bare) else ""
        raise DataError(
            f"{path} has {len(unknown):,} unknown image names: {_some(unknown)}. Names are like {pattern}.{none}"
        )
    if twice := [name for name, count in Counter(bare).items() if count > 1]:
        raise DataError(f"{path} has {len(twice):,} images more than once: {_some(twice)}. Leave one line of each.")
    if len(rows) != len(place):
        there = set(rows.tolist())
        missing = [name for name, row in place.items() if row not in there]
        raise DataError(
            f"{path} has {len(rows):,} rows for {len(place):,} images; {len(missing):,} are missing: {_some(missing)}. "
            "Predict every image once."
        )
    return rows


def _bare(name: str) -> str:
    """An image's name without folders, white space around it, and the apostrophe of :func:`cell`."""
    last = name.strip().replace("\\", "/").rpartition("/")[2]
    return last[1:] if last.startswith("'") and last[1:].startswith(_FORMULA) else last


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _whole(path: Path, values: np.ndarray, annotations: Annotations) -> np.ndarray:
    """Converts class ids to int16; raises ``DataError`` with the first value that is none, and its likely cause."""
    last = annotations.classes - 1
    if not np.issubdtype(values.dtype, np.number):
        raise DataError(f"{path}: predicted classes are {values.dtype}; give whole numbers from 0 to {last}.")
    if np.issubdtype(values.dtype, np.integer) and np.iinfo(values.dtype).max < last:
        raise DataError(
            f"{path}: predicted classes are {values.dtype}, which ends at {np.iinfo(values.dtype).max} and cannot hold "
            f"{annotations.classes:,} classes: larger ids were cut when they were stored. Write them again as int16."
        )
    wrong = ~((values >= 0) & (values <= last) & (values == np.floor(values)))  # NaN is among them
    if not wrong.any():
        return values.astype(np.int16)
    said = f"{path}: predicted_class has the value {values[wrong][0]:g} ({int(wrong.sum()):,} such values); "
    allowed = f"allowed are whole numbers from 0 to {last}."
    if np.isnan(values).any():
        raise DataError(f"{said}{allowed} Predict these images again.")
    if ((values != np.floor(values)) & (values >= 0) & (values <= 1)).any():
        raise DataError(f"{said}{allowed} These look like probabilities: write the class ids there.")
    if values.min() >= 1 and values.max() == last + 1:
        raise DataError(f"{said}{allowed} The ids run from 1: subtract 1.")
    if values.min() == 0 and values.max() == last + 1:
        raise DataError(
            f"{said}{allowed} There are {annotations.classes + 1:,} ids. If 0 is a background class, the others run from 1: "
            "leave the background out when you take the most probable class, and subtract 1."
        )
    raise DataError(f"{said}{allowed}")
