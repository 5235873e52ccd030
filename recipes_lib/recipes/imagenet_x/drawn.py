# SPDX-License-Identifier: Apache-2.0
"""Draws annotations and predictions at random, without images or models, with known effects of all factors.

It shows that a factor report finds the true effects. There are two procedures with three models each; "augmented" makes
fewer errors than "plain" on dark images, and more on images with an odd pose.
"""

from typing import NamedTuple

import numpy as np

from recipes_lib import randomness
from recipes_lib.factors.annotations import Annotations, Metaclasses, Partitions, Reassessed
from recipes_lib.factors.predictions import Predictions

SHARES = {"pose": 0.35, "background": 0.3, "smaller": 0.12, "darker": 0.1, "texture": 0.05, "object_blocking": 0.08}
"""Share of the validation images that have each factor."""
TRAIN_SHARES = SHARES | {"texture": 0.01, "darker": 0.2}
EFFECTS = {
    "plain": {"pose": 0.9, "background": 1.1, "smaller": 1.6, "darker": 2.0, "texture": 2.4, "object_blocking": 1.8},
    "augmented": {
        "pose": 1.3,
        "background": 1.1,
        "smaller": 1.6,
        "darker": 1.2,
        "texture": 2.4,
        "object_blocking": 1.8,
    },
}
"""Factor by which each factor of variation multiplies the probability of an error, by procedure."""
ERRORS = 0.12
"""Probability of an error on an image without any factor."""
SEEDS = 3
CLASSES, COARSE = 20, ("dog", "bird", "device", "other")


class Drawn(NamedTuple):
    """The input of a factor report: annotations, predictions, and the groups of models (model -> column -> group)."""

    annotations: Partitions
    predictions: Predictions
    groups: dict[str, dict[str, str]] | None


def draw(images: int, seed: int) -> Drawn:
    """Draws ``images`` annotated images, two thirds as many training images, and the predictions of six models."""
    generator = np.random.default_rng(randomness.step_key(seed, 0, "drawn factors"))
    val = _images(images, SHARES, generator, "val")
    train = _images(max(1, images * 2 // 3), TRAIN_SHARES, generator, "train")
    answers, groups = {}, {}
    for procedure, effects in EFFECTS.items():
        for number in range(1, SEEDS + 1):
            answers[f"{procedure}-{number}"] = _answers(val, effects, generator)
            groups[f"{procedure}-{number}"] = {"procedure": procedure}
    return Drawn(Partitions(val, train), Predictions(tuple(answers), np.stack(list(answers.values()))), groups)


def chance_of_error(annotations: Annotations, effects: dict[str, float]) -> np.ndarray:
    """The true probability of an error on each image: float64 [N]."""
    factor = np.array([effects[name] for name in annotations.factors])
    return np.minimum(ERRORS * np.prod(np.where(annotations.marks["multi"], factor, 1), axis=1), 0.95)


def _images(images: int, shares: dict[str, float], generator: np.random.Generator, split: str) -> Annotations:
    labels = generator.integers(CLASSES, size=images)
    multi = generator.random((images, len(shares))) < np.array(list(shares.values()))
    rarest_first = np.argsort(list(shares.values()))
    top = np.zeros_like(multi)
    for place in rarest_first:  # the top factor is the rarest one, which an annotator would name first
        top[:, place] = multi[:, place] & ~top.any(axis=1)
    more = generator.random(images)
    second = (labels + generator.integers(1, CLASSES, size=images)) % CLASSES
    lists = [
        [] if share < 0.05 else [label, other] if share > 0.85 else [label]
        for label, other, share in zip(labels.tolist(), second.tolist(), more.tolist(), strict=True)
    ]
    lengths = [len(each) for each in lists]
    return Annotations(
        names=np.array([f"{split}_{number:06d}.png" for number in range(images)]),
        labels=labels.astype(np.int16),
        classes=CLASSES,
        factors=tuple(shares),
        marks={"top": top, "multi": multi},
        left_out={"prototype": generator.random(images) < 0.02},
        real=Reassessed(
            np.array([label for each in lists for label in each], np.int16), np.concatenate([[0], np.cumsum(lengths)])
        ),
        metaclasses=Metaclasses(COARSE, np.arange(CLASSES) % len(COARSE)),
    )


def _answers(annotations: Annotations, effects: dict[str, float], generator: np.random.Generator) -> np.ndarray:
    """The predicted classes, int16 [N]; half of the errors stay within the metaclass."""
    wrong = generator.random(len(annotations.names)) < chance_of_error(annotations, effects)
    anywhere = generator.integers(1, CLASSES, size=len(wrong))
    near = len(COARSE) * generator.integers(1, CLASSES // len(COARSE), size=len(wrong))
    step = np.where(generator.random(len(wrong)) < 0.5, near, anywhere)
    return ((annotations.labels + wrong * step) % CLASSES).astype(np.int16)
