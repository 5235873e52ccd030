# SPDX-License-Identifier: Apache-2.0
"""The toy tasks as training needs them: inputs and labels in three parts, tokens, and distortions of the inputs.

Symbols: B samples of a batch.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recipes_lib import randomness
from recipes_lib.data.digits import HELD_OUT_SCANS
from recipes_lib.models.nac.tokens import ImageTokens, PointTokens, SequenceTokens
from recipes_lib.recipes.nac import toys
from recipes_lib.recipes.nac.samples import Sequences

VALIDATION_SCANS = 300
"""Number of scans of digits on which modules are ranked and settings chosen."""
ANGLE, SCALE, SHIFT, NOISE = 0.1, 0.06, 0.1, 0.1
"""Largest rotation in radians, change of size, and shift in half images, and the noise's standard deviation, where black
and white are 2 apart."""


@dataclass(frozen=True)
class Part:
    """Some inputs with their labels."""

    inputs: Any
    """Images [N, 1, 8, 8], points [N, P, 3], or ids int64 [N, L]; or what is indexed by rows as these are."""
    labels: Tensor
    """int64 [N]"""

    def where(self, chosen: Tensor) -> "Part":
        """The samples where ``chosen`` is true (bool [N]), or at these indices (int64 [n])."""
        return Part(self.inputs[chosen], self.labels[chosen])


@dataclass(frozen=True)
class Task:
    """A classification task of one modality."""

    train: Part
    validation: Part
    test: Part
    classes: int
    tokens: Callable[[int], nn.Module]
    """Makes the tokens of a network, given their width."""
    distort: Callable[[Any, Tensor], Any] | None = None
    """Changes training inputs: (inputs, one key per sample) -> inputs."""


def digits() -> Task:
    """Scans of handwritten digits, 8x8 pixels in grey, as 16 patches of 2x2; rotated, scaled and shifted in training.

    The test scans are those of :mod:`recipes_lib.data.digits`; 300 of the other scans are for validation.
    """
    from sklearn.datasets import load_digits  # takes a second, and --help does not need it

    bunch = load_digits()
    order = randomness.permutation(0, 0, len(bunch.target))  # as in recipes_lib.data.digits
    images = torch.from_numpy(bunch.images).float()[order][:, None] / 8 - 1  # paper is -1, ink 1
    every = Part(images, torch.from_numpy(bunch.target).long()[order])
    place, held = torch.arange(len(images)), HELD_OUT_SCANS + VALIDATION_SCANS
    return Task(
        train=every.where(place >= held),
        validation=every.where((place >= HELD_OUT_SCANS) & (place < held)),
        test=every.where(place < HELD_OUT_SCANS),
        classes=10,
        tokens=lambda width: ImageTokens(8, 2, width, stem="patch", position_width=16, channels=1),
        distort=distort_scans,
    )


def only(task: Task, classes: range) -> Task:
    """The same task with the samples of some classes, numbered from 0."""

    def of(part: Part) -> Part:
        kept = part.where((part.labels >= classes.start) & (part.labels < classes.stop))
        return Part(kept.inputs, kept.labels - classes.start)

    return replace(task, train=of(task.train), validation=of(task.validation), test=of(task.test), classes=len(classes))


def distort_scans(images: Tensor, keys: Tensor) -> Tensor:
    """Rotates, scales and shifts each image a little, and adds noise.  [B, 1, 8, 8], int64 [B] -> [B, 1, 8, 8]"""
    u = 2 * randomness.uniform(keys, "distort", 4) - 1  # [B, 4]
    angle, scale, shift = ANGLE * u[:, 0], 1 + SCALE * u[:, 1], SHIFT * u[:, 2:]
    cos, sin = angle.cos() * scale, angle.sin() * scale
    maps = torch.stack([cos, -sin, shift[:, 0], sin, cos, shift[:, 1]], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(maps, list(images.shape), align_corners=False)
    moved = F.grid_sample(images + 1, grid, align_corners=False) - 1  # what comes in from outside is paper
    return moved + NOISE * randomness.normal(keys, "noise", images[0].numel()).view_as(images)


def corrupt(images: Tensor, kind: Literal["noise", "rows", "shift"], keys: Tensor) -> Tensor:
    """Scans unlike those of training: ``noise`` of six times the size, two ``rows`` of paper, or a ``shift`` by a pixel.

    Shapes: [N, 1, 8, 8], int64 [N] -> [N, 1, 8, 8].
    """
    if kind == "noise":
        return images + 6 * NOISE * randomness.normal(keys, "corrupt", images[0].numel()).view_as(images)
    u = randomness.uniform(keys, "corrupt", 2)
    if kind == "rows":
        first = (u[:, 0] * 7).long()[:, None]  # of two neighbouring rows
        row = torch.arange(8)
        return images.masked_fill(((row == first) | (row == first + 1))[:, None, :, None], -1.0)
    steps = 2 * (u >= 0.5).long() - 1  # down or up, right or left
    padded = F.pad(images, (1, 1, 1, 1), value=-1.0)
    rows = torch.arange(8) + 1 + steps[:, :1]  # [N, 8]
    columns = torch.arange(8) + 1 + steps[:, 1:]
    return padded[torch.arange(len(images))[:, None, None], 0, rows[:, :, None], columns[:, None]][:, None]


def clouds(seed: int, *, train: int = 2000, points: int = 48) -> Task:
    """Four solids as clouds of points."""
    drawn = {split: toys.clouds(count, points, seed=seed, split=split) for split, count in _sizes(train)}
    parts = {split: Part(each.points, each.labels) for split, each in drawn.items()}
    return Task(**parts, classes=len(toys.SHAPES), tokens=PointTokens)


def sequences(kind: Literal["symbols", "letters"], seed: int, *, train: int = 4000, length: int = 20) -> Task:
    """Expressions of symbols (10 classes), or strings of letters as bytes (4 classes), of at most ``length`` ids."""
    make = toys.symbols if kind == "symbols" else toys.letters
    drawn = {split: make(count, seed=seed, split=split, length=length) for split, count in _sizes(train)}
    parts = {split: Part(_padded(each, length), each.labels) for split, each in drawn.items()}
    some = drawn["train"]
    return Task(
        **parts,
        classes=len(some.class_names),
        tokens=lambda width: SequenceTokens(some.vocabulary, length, width),
    )


def _sizes(train: int) -> list[tuple[toys.Split, int]]:
    return [("train", train), ("validation", 500), ("test", 1000)]


def _padded(sequences: Sequences, length: int) -> Tensor:
    found = sequences.batch(torch.arange(len(sequences)))
    return F.pad(found, (0, length - found.shape[1]), value=sequences.vocabulary)
