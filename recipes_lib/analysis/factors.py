# SPDX-License-Identifier: Apache-2.0
"""Factor accuracies and error ratios of many models at once: counting is one matrix product.

A model's error ratio of a factor is its error rate among the images that have the factor, over its error rate among all:
1 says that the factor makes no difference, 2 that errors are twice as frequent.

# M: models, N: images, F: factors, c: right or wrong [M, N], S: the images that count

Source: Youbi Idrissi et al., "ImageNet-X", arXiv 2211.01866, section 3, and the official toolkit's arithmetic, to the bit.
Differs: a model that is right on no image has accuracy 0, where the toolkit loses it; images are joined by name, not by
row.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from recipes_lib.analysis.annotations import Annotations, Reassessed
from recipes_lib.analysis.predictions import Predictions

Correctness = Literal["class", "real_class", "metaclass"]
"""class: the label; real_class: any of ReaL's labels; metaclass: a class of the label's metaclass."""
Scope = Literal["toolkit", "decided"]
"""toolkit: images without ReaL labels are wrong, and all classes outside the sixteen metaclasses are one, as in the official
toolkit; decided: such images do not count."""
_CHUNK = 32
"""Models that are counted together: 32 x 50,000 float32 are 6 MB."""


@dataclass(frozen=True)
class Counts:
    """How many images, and how many right answers, there are with each factor."""

    images: int
    """Images that count."""
    with_factor: np.ndarray
    """int64 [F]"""
    right: np.ndarray
    """int64 [M]: right answers among all images that count."""
    right_with_factor: np.ndarray
    """int64 [M, F]"""

    @property
    def average(self) -> np.ndarray:
        """float64 [M]: accuracy over all images that count, those without any factor among them."""
        return _ratio(self.right, np.array(self.images))

    @property
    def accuracy(self) -> np.ndarray:
        """float64 [M, F]: accuracy over the images with a factor; NaN where there is none."""
        return _ratio(self.right_with_factor, self.with_factor)

    @property
    def error_ratio(self) -> np.ndarray:
        """float64 [M, F]: (1 - accuracy) / (1 - average); NaN where there is no image, or a model makes no error."""
        return _ratio(1 - self.accuracy, 1 - self.average[:, None])

    @property
    def prevalence(self) -> np.ndarray:
        """float64 [F]: the share of the images that have a factor."""
        return _ratio(self.with_factor, np.array(self.images))

    @property
    def shift(self) -> np.ndarray:
        """float64 [M, F]: how far a factor's share of all marks grows among the errors, (q - p) / p.

        Where every image has one factor, that is the error ratio less 1.
        """
        wrong = self.with_factor - self.right_with_factor
        share = _ratio(self.with_factor, self.with_factor.sum())
        return _ratio(_ratio(wrong, wrong.sum(axis=1, keepdims=True)) - share, share)


def allowed(annotations: Annotations) -> tuple[Correctness, ...]:
    """The kinds of correctness that these annotations can tell."""
    has = {"class": True, "real_class": annotations.real, "metaclass": annotations.metaclasses}
    return tuple(kind for kind in get_args(Correctness) if has[kind] is not None)


def right(classes: np.ndarray, annotations: Annotations, correctness: Correctness) -> np.ndarray:
    """Which answers are right: integers [M, N] -> bool [M, N].

    Raises: ``ValueError`` for a kind that these annotations cannot tell.
    """
    return _judge(annotations, correctness)(classes)


def counting(annotations: Annotations, correctness: Correctness, scope: Scope = "toolkit") -> np.ndarray:
    """bool [N]: the images that count."""
    rows = annotations.kept
    if scope == "decided" and correctness == "real_class":
        return rows & (np.diff(annotations.real.offsets) > 0)
    if scope == "decided" and correctness == "metaclass":
        coarse = annotations.metaclasses
        return rows & (np.array(coarse.names)[coarse.of_class[annotations.labels]] != coarse.rest)
    return rows


def count(
    predictions: Predictions,
    annotations: Annotations,
    correctness: Correctness = "class",
    *,
    rows: np.ndarray | None = None,
) -> dict[str, Counts]:
    """Counts for each kind of mark (``top``, ``multi``).

    Shapes: ``rows`` bool [N], the images that count; default: :func:`counting`. Memory: the predictions, and 6 MB for a chunk.

    Raises: ``ValueError`` where predictions and annotations differ in length, or there are too many images for float32.
    """
    images, classes = len(annotations.names), predictions.classes
    if classes.shape[1] != images:
        raise ValueError(f"predictions of {classes.shape[1]} images for {images} annotated ones")
    if images >= 1 << 24:
        raise ValueError(f"{images} images: float32 counts to {1 << 24} without fault; count parts and add them")
    rows = counting(annotations, correctness) if rows is None else rows
    kinds, width = tuple(annotations.marks), len(annotations.factors)
    columns = [annotations.marks[kind] & rows[:, None] for kind in kinds]
    weights = np.concatenate([*columns, rows[:, None]], axis=1, dtype=np.float32)  # [N, kinds * F + 1]
    judge = _judge(annotations, correctness)
    found = np.empty((len(classes), weights.shape[1]), np.int64)
    for start in range(0, len(classes), _CHUNK):
        part = slice(start, start + _CHUNK)
        found[part] = judge(classes[part]).astype(np.float32) @ weights
    return {
        kind: Counts(
            images=int(rows.sum()),
            with_factor=columns[place].sum(axis=0),
            right=found[:, -1],
            right_with_factor=found[:, place * width : (place + 1) * width],
        )
        for place, kind in enumerate(kinds)
    }


def by_metaclass(
    predictions: Predictions, annotations: Annotations, correctness: Correctness
) -> dict[str, dict[str, Counts]]:
    """Counts of each metaclass's images alone: metaclass -> kind of mark -> counts.

    Raises: ``ValueError`` where the annotations have no metaclasses.
    """
    if annotations.metaclasses is None:
        raise ValueError("these annotations have no metaclasses")
    of_image = annotations.metaclasses.of_class[annotations.labels]
    rows = counting(annotations, correctness)
    return {
        name: count(predictions, annotations, correctness, rows=rows & (of_image == place))
        for place, name in enumerate(annotations.metaclasses.names)
    }


def _judge(annotations: Annotations, correctness: Correctness) -> Callable[[np.ndarray], np.ndarray]:
    """What tells right answers, integers [m, N], from wrong ones: bool [m, N]."""
    if correctness not in allowed(annotations):
        raise ValueError(f"correctness = {correctness!r}; these annotations tell: {', '.join(allowed(annotations))}")
    labels = annotations.labels
    if correctness == "real_class":
        return _among(annotations.real)
    if correctness == "metaclass":
        of_class = annotations.metaclasses.of_class
        wanted = of_class[labels]
        return lambda classes: of_class[classes] == wanted
    return lambda classes: classes == labels


def _among(real: Reassessed) -> Callable[[np.ndarray], np.ndarray]:
    """Whether an answer is among an image's labels: all first labels at once, then the second ones, and so on."""
    starts, lengths = real.offsets[:-1].astype(np.int64), np.diff(real.offsets)
    rounds = []
    for place in range(int(lengths.max(initial=0))):
        images = np.flatnonzero(lengths > place)
        rounds.append((images, real.labels[starts[images] + place]))

    def judge(classes: np.ndarray) -> np.ndarray:
        found = np.zeros(classes.shape, bool)
        for images, labels in rounds:
            found[:, images] |= classes[:, images] == labels
        return found

    return judge


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole; NaN where whole is 0."""
    part, whole = np.broadcast_arrays(np.asarray(part, np.float64), np.asarray(whole, np.float64))
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole != 0)
