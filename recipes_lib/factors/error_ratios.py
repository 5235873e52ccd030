# SPDX-License-Identifier: Apache-2.0
"""Accuracies and error ratios per factor, of many models at once: counting is one matrix product.

A model's error ratio for a factor is its error rate on the images with the factor, divided by its error rate on all
images. A ratio of 1 means that the factor makes no difference, 2 that errors are twice as frequent.

Symbols: M models, N images, F factors, C classes, G metaclasses.

Source: Youbi Idrissi et al., "ImageNet-X", arXiv 2211.01866, section 3, and the official toolkit's arithmetic, to the
bit.
Differs: a model that is right on no image has accuracy 0; the toolkit loses it. Images are joined by name, not by row.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import numpy as np

from recipes_lib.factors.annotations import Annotations, Reassessed
from recipes_lib.factors.predictions import Predictions

Correctness = Literal["class", "real_class", "metaclass"]
"""The answers that are right: class: the label; real_class: any of ReaL's labels; metaclass: any class of the label's
metaclass."""
Scope = Literal["toolkit", "decided"]
"""The images that count. toolkit: as in the official toolkit, every answer is wrong for an image without ReaL labels,
and all classes outside the sixteen metaclasses form one more; decided: such images do not count."""
_CHUNK = 32
"""Number of models that are counted together: 32 x 50,000 float32 values are 6 MB."""


@dataclass(frozen=True)
class Counts:
    """The numbers of images and of right answers, in total and per factor."""

    images: int
    """Number of images that count."""
    with_factor: np.ndarray
    """int64 [F]: number of images with each factor."""
    right: np.ndarray
    """int64 [M]: number of right answers among all images that count."""
    right_with_factor: np.ndarray
    """int64 [M, F]: number of right answers among the images with each factor."""

    @property
    def average(self) -> np.ndarray:
        """The accuracy over all images that count, also those without any factor, as float64 [M]."""
        return _ratio(self.right, np.array(self.images))

    @property
    def accuracy(self) -> np.ndarray:
        """The accuracy over the images with each factor, as float64 [M, F]; NaN if there is no such image."""
        return _ratio(self.right_with_factor, self.with_factor)

    @property
    def error_ratio(self) -> np.ndarray:
        """The error ratio (1 - accuracy) / (1 - average), as float64 [M, F]; NaN without images or without errors."""
        return _ratio(1 - self.accuracy, 1 - self.average[:, None])

    @property
    def prevalence(self) -> np.ndarray:
        """The share of images that have each factor, as float64 [F]."""
        return _ratio(self.with_factor, np.array(self.images))

    @property
    def shift(self) -> np.ndarray:
        """The relative growth (q - p) / p of each factor's share of all marks, as float64 [M, F].

        p is the factor's share among all images, q its share among the model's errors. If every image has exactly one
        factor, this is the error ratio minus 1.
        """
        wrong = self.with_factor - self.right_with_factor
        share = _ratio(self.with_factor, self.with_factor.sum())
        return _ratio(_ratio(wrong, wrong.sum(axis=1, keepdims=True)) - share, share)


@dataclass(frozen=True)
class ClassCounts:
    """The numbers of images and of right answers per class of the labels."""

    images: np.ndarray
    """int64 [C]: number of images of each class."""
    right: np.ndarray
    """int64 [M, C]: number of right answers among them."""

    @property
    def accuracy(self) -> np.ndarray:
        """The accuracy over each class's images, as float64 [M, C]; NaN for a class without images."""
        return _ratio(self.right, self.images)

    def worst(self, most: int) -> np.ndarray:
        """Each model's classes with the lowest accuracy, as int64 [M, K]: the worst first, equal ones by number.

        K is the smaller of ``most`` and the number of classes that have images.
        """
        order = np.argsort(self.accuracy, axis=1, kind="stable")  # NaN comes last
        return order[:, : min(most, int((self.images > 0).sum()))]

    def accuracy_over(self, chosen: np.ndarray) -> np.ndarray:
        """The accuracy over all images of each model's ``chosen`` classes.  integers [M, K] -> float64 [M]"""
        return _ratio(np.take_along_axis(self.right, chosen, axis=1).sum(axis=1), self.images[chosen].sum(axis=1))


@dataclass(frozen=True)
class Split:
    """The counts of all answers: over all images, per metaclass and per class."""

    whole: dict[str, Counts]
    """Kind of mark -> counts over all images that count, the result of :func:`count`."""
    metaclasses: dict[str, dict[str, Counts]]
    """Metaclass -> kind of mark -> counts over its images only; empty if the annotations have no metaclasses."""
    classes: ClassCounts
    """Counts per class."""


def allowed(annotations: Annotations) -> tuple[Correctness, ...]:
    """The kinds of correctness for which these annotations have the labels."""
    has = {"class": True, "real_class": annotations.real, "metaclass": annotations.metaclasses}
    return tuple(kind for kind in get_args(Correctness) if has[kind] is not None)


def right(classes: np.ndarray, annotations: Annotations, correctness: Correctness) -> np.ndarray:
    """Whether each answer is right.  integers [M, N] -> bool [M, N]

    Raises: ``ValueError`` for a kind of correctness for which the annotations have no labels.
    """
    return _judge(annotations, correctness)(classes)


def counting(annotations: Annotations, correctness: Correctness, scope: Scope = "toolkit") -> np.ndarray:
    """The images that count in ``scope``, as bool [N]."""
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
    """Counts images and right answers per factor, for each kind of mark (``top``, ``multi``).

    Shapes: ``rows`` bool [N], the images that count; default: :func:`counting`. Memory: the predictions, and 6 MB per
    chunk.

    Raises: ``ValueError`` if predictions and annotations differ in length, or there are too many images for float32.
    """
    rows = _rows(predictions, annotations, correctness, rows)
    columns = annotations.columns  # [N, kinds * F + 1]
    found = np.empty((len(predictions.classes), columns.shape[1]), np.int64)
    for part, answers in _chunks(predictions, annotations, correctness):
        found[part] = (answers & rows).astype(np.float32) @ columns
    return _counts(annotations, rows, found)


def split(
    predictions: Predictions,
    annotations: Annotations,
    correctness: Correctness = "class",
    *,
    rows: np.ndarray | None = None,
) -> Split:
    """Counts over all images, per metaclass and per class, in little more time than :func:`count`.

    Images are sorted by metaclass and class, so that each answer is judged once and a metaclass is a slice.

    Shapes, memory and ``Raises``: those of :func:`count`.
    """
    rows, labels = _rows(predictions, annotations, correctness, rows), annotations.labels
    coarse = annotations.metaclasses
    of_image = np.zeros(len(labels), np.int64) if coarse is None else coarse.of_class[labels]
    chosen = np.flatnonzero(rows)
    order = chosen[np.lexsort((labels[chosen], of_image[chosen]))]
    names = ("all",) if coarse is None else coarse.names
    ends = np.searchsorted(of_image[order], np.arange(len(names) + 1))  # [G + 1]
    starts = np.sort(np.unique(labels[order], return_index=True)[1])  # a class has one metaclass, so it is one run
    columns = annotations.columns[order]
    found = np.zeros((len(names), len(predictions.classes), columns.shape[1]), np.int64)
    right = np.zeros((len(predictions.classes), annotations.classes), np.int64)
    for part, answers in _chunks(predictions, annotations, correctness):
        answers = answers.take(order, axis=1).astype(np.float32)
        for place, (low, high) in enumerate(pairwise(ends)):
            found[place, part] = answers[:, low:high] @ columns[low:high]
        right[part, labels[order[starts]]] = np.add.reduceat(answers, starts, axis=1)
    parts = {name: _counts(annotations, rows & (of_image == place), found[place]) for place, name in enumerate(names)}
    return Split(
        whole=_counts(annotations, rows, found.sum(axis=0)),
        metaclasses={} if coarse is None else parts,
        classes=ClassCounts(np.bincount(labels[rows], minlength=annotations.classes), right),
    )


def _rows(
    predictions: Predictions, annotations: Annotations, correctness: Correctness, rows: np.ndarray | None
) -> np.ndarray:
    """The images that count, as bool [N], after a check that predictions and annotations fit together."""
    images, given = len(annotations.names), predictions.classes.shape[1]
    if given != images:
        raise ValueError(f"predictions of {given} images for {images} annotated ones")
    if images >= 1 << 24:
        raise ValueError(f"{images} images: float32 counts to {1 << 24} without fault; count parts and add them")
    return counting(annotations, correctness) if rows is None else rows


def _chunks(
    predictions: Predictions, annotations: Annotations, correctness: Correctness
) -> Iterator[tuple[slice, np.ndarray]]:
    """Yields slices of models, and whether each of their answers is right, as bool [m, N]."""
    judge = _judge(annotations, correctness)
    for start in range(0, len(predictions.classes), _CHUNK):
        part = slice(start, start + _CHUNK)
        yield part, judge(predictions.classes[part])


def _counts(annotations: Annotations, rows: np.ndarray, found: np.ndarray) -> dict[str, Counts]:
    """Splits ``found`` by kind of mark.

    ``found``: the product of the right answers among ``rows`` and the annotations' columns, int64 [M, kinds * F + 1].
    """
    images, width = (rows.astype(np.float32) @ annotations.columns).astype(np.int64), len(annotations.factors)
    own = {kind: slice(place * width, (place + 1) * width) for place, kind in enumerate(annotations.marks)}
    return {
        kind: Counts(
            images=int(images[-1]), with_factor=images[part], right=found[:, -1], right_with_factor=found[:, part]
        )
        for kind, part in own.items()
    }


def _judge(annotations: Annotations, correctness: Correctness) -> Callable[[np.ndarray], np.ndarray]:
    """A function that says whether answers are right.  integers [m, N] -> bool [m, N]"""
    if correctness not in allowed(annotations):
        raise ValueError(f"correctness = {correctness!r}; these annotations allow: {', '.join(allowed(annotations))}")
    labels = annotations.labels
    if correctness == "real_class":
        return _among(annotations.real)
    if correctness == "metaclass":
        of_class = annotations.metaclasses.of_class
        wanted = of_class[labels]
        return lambda classes: of_class[classes] == wanted
    return lambda classes: classes == labels


def _among(real: Reassessed) -> Callable[[np.ndarray], np.ndarray]:
    """A function that says whether answers are among the images' ReaL labels.  integers [m, N] -> bool [m, N]

    It compares with the first labels of all images at once, then with the second ones, and so on.
    """
    starts, lengths = real.offsets[:-1].astype(np.int64), np.diff(real.offsets)
    first = np.full(len(lengths), np.iinfo(real.labels.dtype).min, real.labels.dtype)  # the least integer is no class
    rounds = []
    for place in range(int(lengths.max(initial=0))):
        images = np.flatnonzero(lengths > place)
        rounds.append((images, real.labels[starts[images] + place]))
    if rounds:
        first[rounds[0][0]] = rounds[0][1]

    def judge(classes: np.ndarray) -> np.ndarray:
        found = classes == first
        for images, labels in rounds[1:]:  # few images have a second label
            found[:, images] |= classes[:, images] == labels
        return found

    return judge


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """The quotient part / whole, in float64; NaN where whole is 0."""
    part, whole = np.broadcast_arrays(np.asarray(part, np.float64), np.asarray(whole, np.float64))
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole != 0)
