# SPDX-License-Identifier: Apache-2.0
"""The config group ``data``: which images a run uses, and where they come from."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from recipes_lib.errors import Faults

DRAWN = ("digits", "pantry", "four_digits", "neighbour_pairs", "pantry_poses", "object_poses")
"""Names of the data sets that the library draws itself, as many images as are asked for; the last two are of one recipe."""
MOST_WORKERS = 256
"""Largest number of loading processes per rank; thousands would fill the memory before the first batch."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images the run uses, and where they come from."""

    name: Literal[
        "digits",
        "pantry",
        "four_digits",
        "neighbour_pairs",
        "npz",
        "cifar10",
        "stl10",
        "imagenet",
        "inat18",
        "places365",
    ] = "imagenet"
    """Name of the data set. The first four come with the library; all others are read from ``root``.
    ``four_digits``: the class is that of the brightest of four digits; ``neighbour_pairs``: patterns whose class only
    neighbouring pixels tell."""
    root: Path | None = None
    """Folder of the data set in torchvision's layout, or the ``.npz`` file.
    ``imagenet`` stands for any folder of images with ``train/CLASS`` and ``val/CLASS``.
    Images directly in ``train`` or in ``train/unlabeled`` have no label.
    If no probe is asked for, ``val`` may be missing and the images may lie in the folder itself."""
    on_damage: Literal["stop", "skip"] = "stop"
    """What happens if an image cannot be read. stop: the run ends with the image's name;
    skip: such images are left out and counted."""
    changed: Literal["refuse", "accept"] = "refuse"
    """What a resumed run does if its images have changed since it began. refuse: stop;
    accept: continue with the images that are there now."""
    image_size: int = 224
    """Side in pixels at which images are drawn or evaluated, at least 8."""
    train_size: int = 6000
    """Number of training images to draw, for the data sets that come with the library."""
    test_size: int = 1000
    """Number of test images to draw, for the data sets that come with the library."""
    scenes: Literal["natural", "controlled"] = "natural"
    """``pantry`` only. natural: each class has its usual materials, colours and places;
    controlled: these are drawn independently of the class."""
    labelled: Path | None = None
    """Text file that lists the labelled images of the low-shot probe, one name per line;
    for images in memory, their numbers from 0. None: labelled images are drawn at random."""
    tail: float = 0.0
    """Exponent of a power law for the sizes of the training classes, at least 0; 0: all images stay.
    Class r, counted from 1, keeps r ** -tail times as many images as class 1."""
    classes_per_batch: int | None = None
    """Number of random classes in each batch, with equally many images of each. None: images come in random order."""
    repeats: int = 1
    """Number of times that each image of an epoch is in it, at least 1, with an augmentation of its own each time
    (repeated augmentation; DeiT's recipe has 3). An epoch stays as long, so it has one image of ``repeats``."""
    share: float = 1.0
    """Share of each class's training images that stay, above 0 and at most 1: the first ones, in the order of their names."""
    holdout: float = 0.0
    """Share of the training images, in [0, 1), that is held out and scored instead of the test set, for choosing
    hyper-parameters. With ``digits``, images of one scan stay together."""
    workers: int = 0
    """Number of processes per rank that load batches, at most 256. 0: the training process loads them itself."""

    def check(self, faults: Faults) -> None:
        """Adds every fault of this group to ``faults``."""
        if self.name in DRAWN:
            need = f"data.name {self.name} draws its own images"
            if self.root is not None:
                faults.add(
                    f"data.root = {self.root} has no use here: {need}. Leave it out, or choose another data.name."
                )
        elif self.root is None:
            faults.add(
                f"data.root is missing: data.name {self.name} is read from disk. "
                f"Add --data.root {'FILE.npz' if self.name == 'npz' else 'FOLDER'}."
            )
        faults.need(self.image_size >= 8, "data.image_size", self.image_size, "of at least 8")
        faults.need(self.train_size >= 1, "data.train_size", self.train_size, "of at least 1")
        faults.need(self.test_size >= 1, "data.test_size", self.test_size, "of at least 1")
        faults.need(
            0 <= self.tail < float("inf"), "data.tail", self.tail, "of at least 0", "0 leaves the classes as they are."
        )
        classes = self.classes_per_batch
        faults.need(classes is None or classes >= 1, "data.classes_per_batch", classes, "of at least 1")
        faults.need(self.repeats >= 1, "data.repeats", self.repeats, "of at least 1")
        if self.repeats > 1 and classes is not None:
            faults.add(
                f"data.repeats = {self.repeats} and data.classes_per_batch = {classes} exclude each other. Leave one of them out."
            )
        faults.need(0 < self.share <= 1, "data.share", self.share, "above 0 and at most 1")
        faults.need(0 <= self.holdout < 1, "data.holdout", self.holdout, "in [0, 1)")
        faults.need(0 <= self.workers <= MOST_WORKERS, "data.workers", self.workers, f"of 0 to {MOST_WORKERS}")
