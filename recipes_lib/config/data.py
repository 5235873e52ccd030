# SPDX-License-Identifier: Apache-2.0
"""The config group ``data``: which images, from where."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from recipes_lib.errors import Faults

MOST_WORKERS = 256
"""Loading processes of a rank: more than a machine has cores for would fill its memory before the first batch."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images, from where."""

    name: Literal["digits", "pantry", "npz", "cifar10", "stl10", "imagenet", "inat18", "places365"] = "imagenet"
    """``digits`` and ``pantry`` need nothing else; the others are read from ``root``."""
    root: Path | None = None
    """Folder of the data set as torchvision lays it out, or the ``.npz`` file. ``imagenet`` is any folder of images:
    ``train/CLASS`` and ``val/CLASS``; images in ``train`` itself or in ``train/unlabeled`` have no label; without a
    probe ``val`` may be missing, and images may lie in the folder itself."""
    on_damage: Literal["stop", "skip"] = "stop"
    """What to do about an image that cannot be read: stop with its name, or leave it out and say how many were."""
    changed: Literal["refuse", "accept"] = "refuse"
    """What to do where the images are no longer those that the run began with: stop, or go on with what is there now."""
    image_size: int = 224
    """Side in pixels at which images are drawn, or evaluated."""
    train_size: int = 6000
    """Images drawn for training; ``digits`` and ``pantry`` only."""
    test_size: int = 1000
    """Images drawn for testing; ``digits`` and ``pantry`` only."""
    scenes: Literal["natural", "controlled"] = "natural"
    """``pantry`` only. natural: each class has its usual materials, colours and places; controlled: no such ties."""
    labelled: Path | None = None
    """Text file that names the labelled images, a name a line (of images in memory: their numbers, from 0), for low-shot
    evaluation; none: splits are drawn."""
    tail: float = 0.0
    """Exponent of a power law of the classes' sizes in training: class r keeps r ** -tail of the first's; 0: all of them."""
    classes_per_batch: int | None = None
    """Every batch has images of this many random classes, equally many of each; none: images come in random order."""
    holdout: float = 0.0
    """Share of the training images kept apart and scored in place of the test set: for choosing hyper-parameters. With
    ``digits``, images of one scan stay together."""
    workers: int = 0
    """Processes that load batches, per rank, at most 256; 0 loads in the training process."""

    def check(self, faults: Faults) -> None:
        """Notes every fault of this group in ``faults``."""
        if self.name in ("digits", "pantry"):
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
        faults.need(0 <= self.holdout < 1, "data.holdout", self.holdout, "in [0, 1)")
        faults.need(0 <= self.workers <= MOST_WORKERS, "data.workers", self.workers, f"of 0 to {MOST_WORKERS}")
