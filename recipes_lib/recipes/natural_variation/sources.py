# SPDX-License-Identifier: Apache-2.0
"""Where controlled images come from: a source lists its shots, and makes the images of any of them.

A shot is one image that is asked for: an instance of a class, the factors that vary, and which of their values. Sources
that draw images (:class:`Drawn`) make each from the seed and the shot alone, so any process makes the same bytes in any
order, nothing is stored, and a run goes on where it stopped. Instances are split into training and test instances, never
images: all images of an instance are on one side.

Rules of drawing: values depend on (seed, instance, number of the value) and the factor's name. So factors that vary
together have the values that they have alone, and all else about the image stays as in the canonical view.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from recipes_lib.errors import nearest
from recipes_lib.factors.gaps import CANONICAL, Varied, title
from recipes_lib.randomness import sample_keys

FACTORS = ("pose", "position", "background", "lighting", "size")
"""The factors of the paper."""
Part = Literal["train", "test"]
MOST_VALUES = 2**20
"""Largest number of values of a set of factors for one instance."""


@dataclass(frozen=True)
class Shots:
    """N images that are asked for, all with the same factors varied."""

    varied: Varied
    """The factors that vary; empty for the canonical view."""
    labels: Tensor
    """int64 [N]: classes."""
    instances: Tensor
    """int64 [N]: ids of instances, which no two classes share."""
    rows: Tensor
    """int64 [N]: which of the instance's images it is; the number of the value, or of the row in a table."""

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, indices: Tensor | slice) -> "Shots":
        """The shots at ``indices``."""
        return replace(self, labels=self.labels[indices], instances=self.instances[indices], rows=self.rows[indices])


class Source(Protocol):
    """Controlled images."""

    class_names: tuple[str, ...]
    """Names of the classes."""
    factors: tuple[str, ...]
    """Names of the factors that vary."""
    families: Tensor | None
    """int64 [C]: classes with the same number are near twins; None if that is not known."""

    def has(self, varied: Varied) -> bool:
        """Whether there are images in which exactly these factors vary."""
        ...

    def shots(self, part: Part, varied: Varied) -> Shots:
        """All shots of a part, instance by instance. Raises: ``ValueError`` for factors that the source lacks."""
        ...

    def images(self, shots: Shots) -> Tensor:
        """The images: uint8 [N, 3, side, side]."""
        ...


class Scenes(Protocol):
    """What :class:`Drawn` draws; ``Any`` stands for a struct of factors."""

    class_names: tuple[str, ...]
    families: Tensor | None

    def canonical(self, labels: Tensor, numbers: Tensor) -> Any:
        """The factors of the canonical view of instance ``numbers`` [N] of classes ``labels`` [N]."""
        ...

    def vary(self, scenes: Any, factor: str, keys: Tensor) -> Any:
        """The same scenes with one factor drawn anew from ``keys`` [N]."""
        ...

    def render(self, scenes: Any, side: int) -> Tensor:
        """The images: uint8 [N, 3, side, side]."""
        ...


def check_varied(varied: Varied, factors: Sequence[str]) -> None:
    """Raises ``ValueError`` for a factor that is not among ``factors``, or that is named twice."""
    for name in varied:
        if name not in factors:
            raise ValueError(f"There is no factor {name!r}. {nearest(name, factors)}")
    if len(set(varied)) < len(varied):
        raise ValueError(
            f"{title(varied)} names a factor twice; pairs are of two different ones: {', '.join(factors)}."
        )


def singles_and_pairs(factors: Sequence[str], *, pairs: bool) -> list[Varied]:
    """Each factor alone, then each pair if ``pairs``: 5 + 10 sets for five factors."""
    found: list[Varied] = [(name,) for name in factors]
    return found + list(itertools.combinations(factors, 2)) if pairs else found


@dataclass(frozen=True)
class Drawn:
    """Images that are drawn from scratch, in any number."""

    scenes: Scenes
    train: int
    """Number of training instances of each class."""
    test: int
    """Number of test instances of each class."""
    values: int
    """Number of values that are drawn for each instance and set of factors."""
    side: int
    """Side of an image in pixels."""
    seed: int
    """Seed of the values; scenes have their own for what is fixed."""
    factors: tuple[str, ...] = FACTORS

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.scenes.class_names

    @property
    def families(self) -> Tensor | None:
        """int64 [C]: classes with the same number are near twins."""
        return self.scenes.families

    def has(self, varied: Varied) -> bool:
        """Whether ``varied`` are factors that can be drawn: any of them, together."""
        return set(varied) <= set(self.factors)

    def shots(self, part: Part, varied: Varied) -> Shots:
        """All shots of a part: one per instance in the canonical view, ``values`` per instance otherwise.

        Instances of the two parts have different numbers.
        """
        check_varied(varied, self.factors)
        classes, count = len(self.class_names), 1 if varied == CANONICAL else self.values
        numbers = torch.arange(self.train) if part == "train" else self.train + torch.arange(self.test)
        labels, numbers, rows = torch.meshgrid(torch.arange(classes), numbers, torch.arange(count), indexing="ij")
        labels, numbers, rows = (grid.flatten() for grid in (labels, numbers, rows))
        return Shots(varied, labels, numbers * classes + labels, rows)

    def images(self, shots: Shots) -> Tensor:
        """The images: uint8 [N, 3, side, side]."""
        scenes = self.scenes.canonical(shots.labels, shots.instances // len(self.class_names))
        keys = sample_keys(self.seed, 0, shots.instances * MOST_VALUES + shots.rows)
        for factor in shots.varied:
            scenes = self.scenes.vary(scenes, factor, keys)
        return self.scenes.render(scenes, self.side)
