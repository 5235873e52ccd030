# SPDX-License-Identifier: Apache-2.0
"""Trains models on Pantry-X, plainly and with each augmentation, and makes a report's annotations and predictions."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from recipes_lib.data.images import ImageSet
from recipes_lib.data.pantry.factors import CLASSES
from recipes_lib.errors import Faults
from recipes_lib.factors.annotations import Partitions
from recipes_lib.factors.predictions import Predictions
from recipes_lib.recipes.clip import recipe as clip
from recipes_lib.recipes.imagenet_x import pantry_nets, pantry_study, pantry_x
from recipes_lib.recipes.imagenet_x.drawn import Drawn
from recipes_lib.training import checkpoint, stages
from recipes_lib.training.folder import RunFolder


@dataclass(frozen=True, kw_only=True)
class NetsConfig:
    """The models that ``data.name`` pantry trains, without augmentation and with each of three augmentations."""

    images: int = pantry_study.TRAIN
    """Number of training images, at least one batch (256)."""
    share: float = pantry_study.TRAIN_SHARE
    """Share of the training images in which a factor is made odd, for each factor separately; in [0, 1]."""
    asked_share: float = pantry_study.TEST_SHARE
    """The same share for the test images, of which there are ``data.images``; in [0, 1]."""
    steps: int = pantry_nets.STEPS
    """Number of training steps of each classifier, which learns with labels; at least 1."""
    clip_steps: int = 0
    """Number of training steps of each CLIP, which learns with captions of the same images. 0: no CLIP is trained."""

    def check(self, faults: Faults) -> None:
        """Adds every fault of this group to ``faults``."""
        batch = clip.PRESETS["toy"].train.batch_size
        faults.need(self.images >= batch, "nets.images", self.images, f"of at least {batch}, one batch")
        for name in ("share", "asked_share"):
            faults.need(0 <= getattr(self, name) <= 1, f"nets.{name}", getattr(self, name), "in [0, 1]")
        faults.need(self.steps >= 1, "nets.steps", self.steps, "of at least 1")
        faults.need(self.clip_steps >= 0, "nets.clip_steps", self.clip_steps, "of at least 0", "0 trains none.")


def make(config: Any, run: RunFolder) -> Drawn:
    """Makes the annotations of images and the predictions of models, which are trained in the run's folder ``nets``.

    A model that is stored there already is loaded.
    """
    seed, chosen = config.report.seed, config.nets
    train = pantry_x.image_set(chosen.images, seed, "train", dict.fromkeys(pantry_x.FACTORS, chosen.share))
    asked = pantry_x.image_set(config.data.images, seed, "test", dict.fromkeys(pantry_x.FACTORS, chosen.asked_share))
    (run.path / "nets").mkdir(exist_ok=True)
    answers, groups = {}, {}
    for augmentation in pantry_nets.AUGMENTATIONS:
        _learn_once(augmentation, pantry_nets.with_labels, train, seed, chosen.steps, run)
        answers[augmentation] = pantry_nets.answers(reopen(run.path, augmentation), asked)
        groups[augmentation] = {"teacher": "labels"}
    for augmentation in pantry_nets.AUGMENTATIONS if chosen.clip_steps else ():
        name = f"clip-{augmentation}"
        _learn_once(name, pantry_nets.with_captions, train, seed, chosen.clip_steps, run)
        answers[name] = pantry_nets.named_by_sentences(reopen_clip(run.path, name), asked)
        groups[name] = {"teacher": "captions"}
    given = Predictions(tuple(answers), np.stack(list(answers.values())))
    known = Partitions(pantry_x.annotations(asked), pantry_x.annotations(train))
    return Drawn(known, given, groups if chosen.clip_steps else None)


def reopen(run: Path, name: str) -> nn.Module:
    """Loads a classifier that a run trained; ``name`` is its augmentation."""
    net = pantry_nets.untrained(len(CLASSES), seed=0)
    net.load_state_dict(checkpoint.read_weights(_weights(run, name)))
    return net.eval()


def reopen_clip(run: Path, name: str) -> clip.CLIP:
    """Loads a CLIP that a run trained; ``name`` is ``clip-`` and its augmentation."""
    towers = pantry_nets.untrained_clip(pantry_nets.PLAIN, seed=0)
    towers.load_state_dict(checkpoint.read_weights(_weights(run, name)))
    return towers.eval()


def _weights(run: Path, name: str) -> Path:
    return run / "nets" / f"{name}.safetensors"


def _learn_once(name: str, teach: Callable, train: ImageSet, seed: int, steps: int, run: RunFolder) -> None:
    """Trains the model ``name`` by ``teach`` and stores its weights, unless they are stored already.

    One line per step is written to ``metrics.jsonl``.
    """
    if _weights(run.path, name).is_file():
        return
    stages.keep(run)
    views = pantry_nets.AUGMENTATIONS[name.removeprefix("clip-")]
    with stages.Stage(run, f"net {name}", steps, "steps") as stage:

        def progress(step: int, metrics: dict[str, float]) -> None:
            stage.note({"net": name, "step": step, **metrics})
            stage.show(step, f"loss {metrics['loss']:.4f}")

        checkpoint.write_weights(_weights(run.path, name), teach(train, views, seed, steps, progress).state_dict())
