# SPDX-License-Identifier: Apache-2.0
"""Images with a class and an attribute: the Pantry and emoji with groups made by hand, and the public data sets."""

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from recipes_lib import randomness
from recipes_lib.data import grouped_files, groups, pantry
from recipes_lib.data.cache import cached
from recipes_lib.data.grouped_files import ATTRIBUTE
from recipes_lib.data.images import ImageSet
from recipes_lib.data.load import Images, Splits
from recipes_lib.data.pantry.factors import Factors
from recipes_lib.data.pantry.render import VERSION
from recipes_lib.data.pantry.scenes import PLACES, Split
from recipes_lib.errors import DataError
from recipes_lib.pretraining.scoring import DATA_SEED
from recipes_lib.recipes.barack.settings import GroupData, ModelConfig

THINGS, BACKGROUNDS = ("bottle", "jar"), ("wood", "tiles")
"""Classes and attributes of the Pantry's groups."""
CATEGORIES, DRAWINGS = ("Animals & Nature", "Food & Drink"), ("noto", "twemoji")
"""Classes and attributes of the emoji's groups."""
_TEST_SHARE = 1 / 3
"""Share of the emoji that are test images."""


def load(data: GroupData, model: ModelConfig, warn: Callable[[str], None]) -> Splits:
    """Loads training and test images; ``factors["attribute"]`` of both holds the attributes.

    Raises: ``DataError`` if files are missing or damaged, or classes and attributes are not as many as the model's.
    """
    splits, attributes = _read(data)
    for name, there, allowed in (
        ("classes", splits.train.class_names, model.classes),
        ("attributes", attributes, model.attributes),
    ):
        if len(there) != allowed:
            raise DataError(
                f"data.name {data.name} has {len(there)} {name}, but model.{name} = {allowed}. Add --model.{name} "
                f"{len(there)}."
            )
    train = splits.train
    known = groups.group_index(train.labels, train.factors[ATTRIBUTE], model.attributes)
    sizes = torch.bincount(known[known >= 0], minlength=model.groups)
    for name, size in zip(groups.group_names(train.class_names, attributes), sizes.tolist(), strict=True):
        if not size:
            warn(f"No training image is known to be in group {name}: nothing is guaranteed for it.")
    return splits


def names_of(data: GroupData, classes: tuple[str, ...]) -> tuple[str, ...]:
    """The names of the groups, in the order of their numbers."""
    attributes = {
        "pantry": BACKGROUNDS,
        "emoji": DRAWINGS,
        "waterbirds": ("land", "water"),
        "celeba": ("not Male", "Male"),
    }
    return groups.group_names(classes, attributes[data.name])


def _read(data: GroupData) -> tuple[Splits, tuple[str, ...]]:
    match data.name:
        case "pantry":
            train, test = (
                pantry_groups(count, data.image_size, split, agree)
                for count, split, agree in ((data.train_size, "train", data.fits), (data.test_size, "test", 0.5))
            )
            return Splits(train, test), BACKGROUNDS
        case "emoji":
            return Splits(*emoji_groups(data.root, data.fits)), DRAWINGS
    parts = grouped_files.waterbirds(data.root) if data.name == "waterbirds" else grouped_files.celeba(data.root)
    return Splits(parts.train, parts.val if data.scored == "val" else parts.test), parts.attribute_names


def pantry_groups(count: int, size: int, split: Split, agree: float) -> ImageSet:
    """Bottles and jars in controlled scenes, on wood or tiles; bottles stand on wood in the share ``agree``.

    Class and attribute are set by hand and nothing else: all other factors are drawn independently of both, except that
    there is one object, uncovered, in a photograph.
    """
    factors = pantry.sample_factors(count, DATA_SEED, "controlled", split=split)
    keys = randomness.sample_keys(DATA_SEED, 0, torch.arange(count))
    draws = randomness.uniform(keys, f"pantry groups {split}", 4)
    labels = (draws[:, 0] < 0.5).long()
    attributes = torch.where(draws[:, 1] < agree, labels, 1 - labels)
    factors = _set(factors, labels, attributes, draws[:, 2:])
    arguments = {"groups": f"{split} {count} {agree}", "size": size, "version": VERSION}
    images = cached(lambda: {"images": pantry.render(factors, size)}, arguments)["images"]
    return ImageSet(images, labels, THINGS, {**factors.to_dict(), ATTRIBUTE: attributes})


def _set(factors: Factors, labels: Tensor, attributes: Tensor, draws: Tensor) -> Factors:
    """Sets the class, the background and one of its usual colours for table and wall.  ``draws``: [N, 2] in [0, 1)."""
    label = torch.tensor([pantry.CLASSES.index(name) for name in THINGS])[labels]
    background = torch.tensor([pantry.factors.BACKGROUNDS.index(name) for name in BACKGROUNDS])[attributes]
    colours = [
        torch.stack([_rgb(PLACES[name][part]) for name in BACKGROUNDS])  # [attributes, colours, 3]
        for part in (0, 1)
    ]
    table, wall = (
        palette[attributes, (draw * palette.shape[1]).long()]
        for palette, draw in zip(colours, draws.unbind(dim=1), strict=True)
    )
    scene = {"occluder": 0, "objects": 1, "style": "photo", "table_colour": table, "wall_colour": wall}
    return pantry.fix(factors, label=label, background=background, **scene)


def _rgb(palette: tuple[str, ...]) -> Tensor:
    return torch.tensor([[int(colour[at : at + 2], 16) / 255 for at in (0, 2, 4)] for colour in palette])


def emoji_groups(root: Path, agree: float) -> tuple[ImageSet, ImageSet]:
    """Drawings of animals and of food; animals are drawn by noto's artists in the share ``agree`` of the training set.

    A training emoji is there in one drawing, a test emoji in both. No emoji is in both sets.

    Raises: ``DataError`` if ``root`` has no ``emoji32.npz`` with ``noto`` and ``twemoji``, or no ``captions.csv``.
    """
    pictures, labels, rows = _emoji(root)
    keys = randomness.sample_keys(DATA_SEED, 0, torch.from_numpy(rows))
    draws = randomness.uniform(keys, "emoji groups", 2)
    held, chosen = draws[:, 0] < _TEST_SHARE, torch.where(draws[:, 1] < agree, labels, 1 - labels)
    position = torch.arange(len(labels))
    train, attributes = position[~held], chosen[~held]
    test = position[held].repeat(2)
    both = torch.arange(2).repeat_interleave(int(held.sum()))

    def part(at: Tensor, drawing: Tensor) -> ImageSet:
        names = tuple(f"{int(rows[i])} {DRAWINGS[a]}" for i, a in zip(at.tolist(), drawing.tolist(), strict=True))
        return ImageSet(pictures[drawing, at], labels[at], CATEGORIES, {ATTRIBUTE: drawing}, names)

    return part(train, attributes), part(test, both)


def _emoji(root: Path) -> tuple[Tensor, Tensor, np.ndarray]:
    """Both drawings uint8 [2, N, 3, 32, 32], classes int64 [N], and rows of the file, of the two categories."""
    for name in ("emoji32.npz", "captions.csv"):
        if not (root / name).is_file():
            raise DataError(f"data.root = {root} has no {name}. Give the folder that holds it.")
    with (root / "captions.csv").open(encoding="utf-8", newline="") as file:
        categories = [line["category"] for line in csv.DictReader(file)]
    rows = np.array([row for row, category in enumerate(categories) if category in CATEGORIES])
    with np.load(root / "emoji32.npz", allow_pickle=False) as arrays:
        if lacking := [name for name in DRAWINGS if name not in arrays]:
            raise DataError(
                f"{root / 'emoji32.npz'} has no {lacking[0]}. It holds uint8 [N, 32, 32, 3] of each artist."
            )
        pictures = np.stack([arrays[name][rows] for name in DRAWINGS])
    labels = torch.tensor([CATEGORIES.index(categories[row]) for row in rows])
    return torch.from_numpy(pictures).movedim(-1, 2).contiguous(), labels, rows


def attributes_of(images: Images) -> Tensor:
    """The attributes of images, int64 [N]; -1 where none is known."""
    return images.factors[ATTRIBUTE]


def as_groups(images: Images, kept: Tensor, values: int, names: tuple[str, ...]) -> Images:
    """The images with a group label, with the group in place of the class; ``kept`` is bool [N]."""
    chosen = images.select(kept.nonzero()[:, 0])
    found = groups.group_index(chosen.labels, chosen.factors[ATTRIBUTE], values)
    return replace(chosen, labels=found, class_names=names)
