# SPDX-License-Identifier: Apache-2.0
"""Images of one's own as a source: a folder, and a CSV file with the factors of each image.

The CSV file has a header and a line per image:

- ``file_name``: the image, relative to the folder;
- ``class`` and ``instance``: names; an instance is one particular object of its class;
- ``split``, if it is there: ``train`` or ``test``, the same for all images of an instance. Without it half of each
  class's instances, drawn at random, are for training;
- every other column is a factor. ``canonical`` or an empty cell is its canonical value, and so is the value that the
  option ``canonical`` gives for the column (``camera_yaw=0``), so that renderers' own tables can be read.

Differs: no release of the paper's seven million images was found, so its layout is not known; any table of image files
with one column per factor is read.
"""

import csv
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torchvision.transforms.v2.functional as TF
from torch import Tensor
from torchvision.transforms import InterpolationMode

from recipes_lib import randomness
from recipes_lib.data.images import ImageFiles
from recipes_lib.errors import DataError, nearest
from recipes_lib.factors.gaps import CANONICAL, Varied, title
from recipes_lib.recipes.natural_variation.sources import Part, Shots, check_varied

NEEDED = ("file_name", "class", "instance")
_SPLIT = "split"
_SHOWN = 3


@dataclass(frozen=True)
class Table:
    """The images of a folder with their factors; :func:`read` makes it."""

    files: ImageFiles
    factors: tuple[str, ...]
    instances: Tensor
    """int64 [N]: id of each image's instance."""
    training: Tensor
    """bool [N]: whether the image's instance is for training."""
    varied: tuple[Varied, ...]
    """N sets of factors: those that are not canonical in each image."""
    side: int
    """Side to which images are scaled, in pixels; of images that are not square the centre is cut out."""
    families: Tensor | None = None

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, sorted."""
        return self.files.class_names

    def has(self, varied: Varied) -> bool:
        """Whether there are images in which exactly these factors vary."""
        return varied in self.varied

    def shots(self, part: Part, varied: Varied) -> Shots:
        """All images of a part in which exactly ``varied`` vary, instance by instance.

        Raises: ``DataError`` if an instance of the part has no such image.
        """
        check_varied(varied, self.factors)
        mine = self.training if part == "train" else ~self.training
        rows = torch.tensor([own == varied for own in self.varied]) & mine
        rows = rows.nonzero()[:, 0]
        rows = rows[self.instances[rows].argsort(stable=True)]
        if lacking := sorted(set(self.instances[mine].tolist()) - set(self.instances[rows].tolist())):
            names = _some([self._instance(number) for number in lacking])
            raise DataError(
                f"{len(lacking):,} {part} instances have no {title(varied)} image: {names}. Pairing needs one of each: add "
                "images, or remove these instances from the table."
            )
        return Shots(varied, self.files.labels[rows], self.instances[rows], rows)

    def images(self, shots: Shots) -> Tensor:
        """The images: uint8 [N, 3, side, side]. Raises: ``DamagedImage`` naming a file that cannot be read."""
        return torch.stack([self._scaled(row) for row in shots.rows.tolist()])

    def _scaled(self, row: int) -> Tensor:
        image = TF.pil_to_tensor(self.files.open(row))
        image = TF.center_crop(image, [min(image.shape[1:])] * 2)
        return TF.resize(image, [self.side, self.side], InterpolationMode.BICUBIC, antialias=True)

    def _instance(self, number: int) -> str:
        return str(self.files.names[int((self.instances == number).nonzero()[0, 0])])


def read(root: Path, path: Path, *, canonical: Sequence[str], side: int, seed: int) -> Table:
    """Reads the table ``path`` of the images under ``root``; ``canonical`` has entries like ``camera_yaw=0``.

    Raises: ``DataError`` in one line for a table that cannot be used.
    """
    columns = _columns(path)
    factors = tuple(name for name in columns if name not in (*NEEDED, _SPLIT))
    if not factors:
        raise DataError(f"{path} has no factors: add a column for each, beside {', '.join(NEEDED)}.")
    normal = _canonical(path, canonical, factors)
    names = columns["file_name"]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise DataError(f"{path} names {len(twice):,} files more than once: {_some(twice)}. Leave one line of each.")
    if lost := [name for name in names if not (root / name).is_file()]:
        raise DataError(f"{root} lacks {len(lost):,} of {len(names):,} files that {path} names: {_some(lost)}.")
    classes = tuple(sorted(set(columns["class"])))
    if len(classes) < 2:
        raise DataError(f"{path} has {len(classes)} class; a classifier needs two.")
    labels = torch.tensor([classes.index(name) for name in columns["class"]])
    keys = list(zip(columns["class"], columns["instance"], strict=True))
    numbers = {key: number for number, key in enumerate(sorted(set(keys)))}
    instances = torch.tensor([numbers[key] for key in keys])
    varied = tuple(
        tuple(factor for factor, value in zip(factors, values, strict=True) if value not in normal[factor])
        for values in zip(*(columns[factor] for factor in factors), strict=True)
    )
    if CANONICAL not in varied:
        raise DataError(
            f"{path} has no canonical image: in none are all of {', '.join(factors)} canonical. Say which values are, with "
            f"--data.canonical {factors[0]}=VALUE."
        )
    training = _split(path, columns.get(_SPLIT), keys, instances, labels, seed)
    files = ImageFiles(root, np.array(names), labels, classes)
    return Table(files, factors, instances, training, varied, side)


def _columns(path: Path) -> dict[str, list[str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = [line for line in csv.reader(file) if line]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"data.table = {path} cannot be read as a CSV file ({error}).") from None
    header, rows = [name.strip() for name in lines[0]] if lines else [], lines[1:]
    if lacking := [name for name in NEEDED if name not in header]:
        raise DataError(f"{path} lacks the column {lacking[0]}; it has {', '.join(header) or 'none'}.")
    if twice := [name for name, count in Counter(header).items() if count > 1]:
        raise DataError(f"{path} has the column {twice[0]!r} more than once. Leave one.")
    if odd := next((number for number, line in enumerate(rows, start=2) if len(line) != len(header)), None):
        raise DataError(f"{path}, line {odd}, has {len(rows[odd - 2])} values for {len(header)} columns.")
    if not rows:
        raise DataError(f"{path} has a header and no images.")
    return {name: [line[place].strip() for line in rows] for place, name in enumerate(header)}


def _canonical(path: Path, entries: Iterable[str], factors: Sequence[str]) -> Mapping[str, set[str]]:
    normal = {factor: {"", "canonical"} for factor in factors}
    for entry in entries:
        factor, equals, value = entry.partition("=")
        if not equals or factor not in normal:
            raise DataError(
                f"data.canonical has {entry!r}: use FACTOR=VALUE. {nearest(factor, factors)} They are {path}'s columns."
            )
        normal[factor].add(value.strip())
    return normal


def _split(
    path: Path,
    given: Sequence[str] | None,
    keys: Sequence[tuple[str, str]],
    instances: Tensor,
    labels: Tensor,
    seed: int,
) -> Tensor:
    """Whether each image is for training: bool [N]; all images of an instance are on one side."""
    if given is None:
        half = randomness.uniform(randomness.sample_keys(seed, 0, instances), "table split", 1)[:, 0]
        training = torch.zeros(len(instances), dtype=torch.bool)
        for label in labels.unique():
            rows = (labels == label).nonzero()[:, 0]
            order = half[rows].unique()  # one number per instance, sorted
            kept = (len(order) + 1) // 2
            training[rows] = half[rows] < (order[kept] if kept < len(order) else 1.0)
        sides = training
    else:
        if odd := next((value for value in given if value not in ("train", "test")), None):
            raise DataError(f"{path} has the split {odd!r}: use train or test.")
        sides = torch.tensor([value == "train" for value in given])
        both = {keys[i] for i in range(len(keys)) if sides[i]} & {keys[i] for i in range(len(keys)) if not sides[i]}
        if both:
            names = _some([f"{name} of {label}" for label, name in sorted(both)])
            raise DataError(f"{path}: train and test share {len(both):,} instances ({names}). Put each on one side.")
    for label in labels.unique():
        if len(sides[labels == label].unique()) < 2:
            name = keys[int((labels == label).nonzero()[0, 0])][0]
            raise DataError(f"{path}: class {name!r} needs at least one training and one test instance.")
    return sides


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
