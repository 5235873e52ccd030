# SPDX-License-Identifier: Apache-2.0
"""Reads the public data sets of group robustness, in the layouts of WILDS and of the group DRO code.

Waterbirds and CelebA are images; CivilComments and MultiNLI are texts. Nothing is unpickled: of MultiNLI the tokens that
the group DRO code stores as pickles are not read, but the published sentences.

Source: Sagawa et al., arXiv 1911.08731 (Waterbirds, CelebA, MultiNLI); Koh et al., WILDS, arXiv 2012.07421
(CivilComments).
"""

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from recipes_lib.data.groups import check_attributes
from recipes_lib.data.images import UNLABELLED, ImageFiles
from recipes_lib.errors import DataError, nearest

SPLITS = ("train", "val", "test")
ATTRIBUTE = "attribute"
"""Name under which ``factors`` hold the attribute: int64 [N], -1 where it is not known."""
IDENTITIES = ("male", "female", "LGBTQ", "christian", "muslim", "other_religions", "black", "white")
"""The identities that a comment of CivilComments can name. A comment may name several."""
_ENTAILMENTS = ("contradiction", "entailment", "neutral")


@dataclass(frozen=True)
class TextSet:
    """Texts with their classes and attributes."""

    texts: tuple[str, ...]
    """A text; of a pair, both sentences with a tab between them."""
    labels: Tensor
    """int64 [N], positions in ``class_names``."""
    class_names: tuple[str, ...]
    factors: dict[str, Tensor] = field(default_factory=dict)
    """The attribute, and more about the texts, each [N]."""

    def __len__(self) -> int:
        return len(self.texts)

    def select(self, indices: Tensor) -> "TextSet":
        """The texts at ``indices`` (int64 [n], in that order), with their labels and factors."""
        factors = {name: factor[indices] for name, factor in self.factors.items()}
        return replace(
            self, texts=tuple(self.texts[i] for i in indices.tolist()), labels=self.labels[indices], factors=factors
        )


@dataclass(frozen=True)
class GroupedParts:
    """The three parts of a data set with groups; ``factors["attribute"]`` of each part holds the attribute."""

    train: ImageFiles | TextSet
    val: ImageFiles | TextSet
    test: ImageFiles | TextSet
    attribute_names: tuple[str, ...]


def waterbirds(root: Path) -> GroupedParts:
    """Waterbirds, or data of one's own in its layout: ``metadata.csv`` and the images that it names.

    Columns: ``img_filename``; ``y`` (0: landbird, 1: waterbird); ``place`` (0: land, 1: water), empty or -1 where the
    group is not known; ``split`` (0: train, 1: val, 2: test).

    Raises: ``DataError`` naming the file, the line and the value that does not fit.
    """
    path = _file(root, "metadata.csv")
    rows = list(_rows(path, ("img_filename", "y", "place", "split")))
    columns = {name: _integers(path, rows, name) for name in ("y", "place", "split")}
    names = np.array([row["img_filename"] for row in rows])
    classes, places = ("landbird", "waterbird"), ("land", "water")
    parts = _parts(path, names, root, columns["y"], columns["place"], columns["split"], classes, places)
    return GroupedParts(*parts, places)


def celeba(root: Path, target: str = "Blond_Hair", attribute: str = "Male") -> GroupedParts:
    """CelebA: ``list_attr_celeba.csv``, ``list_eval_partition.csv`` and ``img_align_celeba/``, in ``root`` or ``root/data``.

    ``target`` and ``attribute`` are columns with the values -1 and 1.

    Raises: ``DataError`` naming what is missing, with the most similar column that there is.
    """
    root = root / "data" if (root / "data" / "list_attr_celeba.csv").is_file() else root
    path, partition = _file(root, "list_attr_celeba.csv"), _file(root, "list_eval_partition.csv")
    rows = list(_rows(path, ("image_id", target, attribute)))
    split_of = {row["image_id"]: row for row in _rows(partition, ("image_id", "partition"))}
    if lacking := next((row["image_id"] for row in rows if row["image_id"] not in split_of), None):
        raise DataError(f"{partition} has no line for {lacking}, which {path.name} lists. Copy both files again.")
    y, a = (_signs(path, rows, name) for name in (target, attribute))
    split = _integers(partition, [split_of[row["image_id"]] for row in rows], "partition")
    names = np.array([f"img_align_celeba/{row['image_id']}" for row in rows])
    classes, attributes = ((f"not {name}", name) for name in (target, attribute))
    return GroupedParts(*_parts(path, names, root, y, a, split, classes, attributes), attributes)


def civilcomments(root: Path, attribute: str = "identity_any") -> GroupedParts:
    """CivilComments of WILDS: ``all_data_with_identities.csv``. Toxic, identity: a rating of at least 0.5.

    ``attribute``: ``identity_any``, as group DRO and JTT train on, or one of :data:`IDENTITIES`. ``factors`` hold all
    identities, bool [N] each: WILDS reports the worst of the 16 groups (an identity that is named, class), which overlap.

    Raises: ``DataError`` naming the file, the line and the value that does not fit.
    """
    path = _file(root, "all_data_with_identities.csv")
    needed = ("comment_text", "split", "toxicity", attribute, *IDENTITIES)
    rows = list(_rows(path, needed))
    split = torch.tensor([_position(path, number, "split", row["split"], SPLITS) for number, row in enumerate(rows, 2)])
    rated = {name: _ratings(path, rows, name) for name in dict.fromkeys(("toxicity", attribute, *IDENTITIES))}
    found = TextSet(
        tuple(row["comment_text"] for row in rows),
        rated["toxicity"].long(),
        ("not toxic", "toxic"),
        {ATTRIBUTE: rated[attribute].long()} | {name: rated[name] for name in IDENTITIES},
    )
    return GroupedParts(*_of_each_split(path, found, split), (f"not {attribute}", attribute))


def multinli(root: Path) -> GroupedParts:
    """MultiNLI: ``data/metadata_random.csv`` of the group DRO code, and the published sentences beside it.

    The attribute is whether the second sentence has a negation. The sentences are those of
    ``multinli_1.0_train.jsonl``, ``..._dev_matched.jsonl`` and ``..._dev_mismatched.jsonl``, in this order, of which the
    CSV file's first column counts the lines.

    Raises: ``DataError`` naming the file and the line that does not fit.
    """
    root = root / "data" if (root / "data" / "metadata_random.csv").is_file() else root
    path = _file(root, "metadata_random.csv")
    files = [_file(root, f"multinli_1.0_{name}.jsonl") for name in ("train", "dev_matched", "dev_mismatched")]
    sentences = [line for file in files for line in _json_lines(file)]
    rows = list(_rows(path, ("gold_label", "sentence2_has_negation", "split")))
    y, a, split = (_integers(path, rows, name) for name in ("gold_label", "sentence2_has_negation", "split"))
    texts = []
    for number, row in enumerate(rows, 2):
        place = str(next(iter(row.values())))  # the first column, which has no name, is the row of the sentences
        if not place.isdigit() or int(place) >= len(sentences):
            raise DataError(f"{path}, line {number}: {place!r} is none of the {len(sentences):,} pairs of sentences.")
        pair = sentences[int(place)]
        if pair.get("gold_label") != _ENTAILMENTS[_position(path, number, "gold_label", row["gold_label"], "012")]:
            raise DataError(
                f"{path}, line {number}: its class is not that of pair {place}, {pair.get('gold_label')}. Use the files "
                "from which the list was made."
            )
        texts.append(f"{pair['sentence1']}\t{pair['sentence2']}")
    _check(path, y, a, _ENTAILMENTS, 2)
    found = TextSet(tuple(texts), y, _ENTAILMENTS, {ATTRIBUTE: a})
    return GroupedParts(*_of_each_split(path, found, split), ("no negation", "negation"))


def _parts(
    path: Path,
    names: np.ndarray,
    root: Path,
    labels: Tensor,
    attributes: Tensor,
    split: Tensor,
    classes: tuple[str, ...],
    attribute_names: tuple[str, ...],
) -> list[ImageFiles]:
    _check(path, labels, attributes, classes, len(attribute_names))
    found = ImageFiles(root, names, labels, classes, factors={ATTRIBUTE: attributes})
    return _of_each_split(path, found, split)


def _check(path: Path, labels: Tensor, attributes: Tensor, classes: Sequence[str], count: int) -> None:
    if wrong := labels[(labels < 0) | (labels >= len(classes))].tolist():
        raise DataError(f"{path}: the class {wrong[0]} is outside 0 to {len(classes) - 1}. Every point needs a class.")
    try:
        check_attributes(attributes, count)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def _of_each_split(path: Path, found: ImageFiles | TextSet, split: Tensor) -> list:
    parts = [found.select((split == number).nonzero()[:, 0]) for number in range(len(SPLITS))]
    for name, part in zip(SPLITS, parts, strict=True):
        if not len(part):
            raise DataError(f"{path} has no point of split {name}. Mark training 0, validation 1 and test 2.")
    return parts


def _file(root: Path, name: str) -> Path:
    if not (root / name).is_file():
        raise DataError(f"data.root = {root} has no {name}. Give the folder that holds it.")
    return root / name


def _rows(path: Path, needed: Sequence[str]) -> Iterator[dict[str, str]]:
    """The lines of a CSV file as dicts. Raises: ``DataError`` if a column is missing or the file is no text."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            there = reader.fieldnames or []
            if lacking := next((name for name in needed if name not in there), None):
                raise DataError(f"{path} has no column {lacking}. {nearest(lacking, there[:60])}")
            yield from reader
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is no CSV file in UTF-8: {error}. Copy it again.") from None


def _json_lines(path: Path) -> Iterator[dict]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                yield json.loads(line)
            except ValueError:
                raise DataError(f"{path}, line {number} is no JSON. Copy the file again.") from None


def _integers(path: Path, rows: Sequence[dict[str, str]], name: str) -> Tensor:
    """A column of integers; an empty field is -1.  -> int64 [N]"""
    found = []
    for number, row in enumerate(rows, 2):
        text = (row[name] or "").strip() or str(UNLABELLED)
        try:
            value = float(text)  # pandas writes 1.0 where another line of the column is empty
            found.append(int(value))
            if value != int(value):
                raise ValueError
        except (ValueError, OverflowError):
            raise DataError(
                f"{path}, line {number}: {name} is {text!r}. Write an integer, or -1 where it is not known."
            ) from None
    return torch.tensor(found, dtype=torch.int64)


def _signs(path: Path, rows: Sequence[dict[str, str]], name: str) -> Tensor:
    values = _integers(path, rows, name)
    if wrong := values[values.abs() != 1].tolist():
        raise DataError(f"{path}: {name} has the value {wrong[0]}. CelebA's attributes are -1 or 1.")
    return (values > 0).long()


def _ratings(path: Path, rows: Sequence[dict[str, str]], name: str) -> Tensor:
    """Whether a rating in [0, 1] is at least 0.5; an empty one, of a comment that nobody was asked about, is not."""
    found = []
    for number, row in enumerate(rows, 2):
        try:
            found.append(float(row[name] or 0) >= 0.5)
        except ValueError:
            raise DataError(f"{path}, line {number}: {name} is {row[name]!r}. Ratings are numbers in [0, 1].") from None
    return torch.tensor(found)


def _position(path: Path, number: int, name: str, value: str, options: Sequence[str]) -> int:
    if value not in options:
        raise DataError(f"{path}, line {number}: {name} is {value!r}. {nearest(value, options)}")
    return list(options).index(value)
