# SPDX-License-Identifier: Apache-2.0
"""Factor accuracies and error ratios of many models at once: counting is one matrix product.

A model's error ratio of a factor is its error rate among the images that have the factor, over its error rate among all:
1 says that the factor makes no difference, 2 that errors are twice as frequent.

# M: models, N: images, F: factors, c: right or wrong [M, N], S: the images that count

Source: Youbi Idrissi et al., "ImageNet-X", arXiv 2211.01866, section 3, and the official toolkit's arithmetic, to the bit.
Differs: a model that is right on no image has accuracy 0, where the toolkit loses it; images are joined by name, not by
row.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import numpy as np

from recipes_lib.factors.annotations import Annotations, Reassessed
from recipes_lib.factors.predictions import Predictions

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


@dataclass(frozen=True)
class ClassCounts:
    """How many images, and how many right answers, each class of the labels has."""

    images: np.ndarray
    """int64 [C]"""
    right: np.ndarray
    """int64 [M, C]"""

    @property
    def accuracy(self) -> np.ndarray:
        """float64 [M, C]: accuracy over a class's images; NaN of none."""
        return _ratio(self.right, self.images)

    def worst(self, most: int) -> np.ndarray:
        """Each model's classes of lowest accuracy, the worst first: int64 [M, K]; of equal ones, the lowest number first.

        K is ``most``, or the number of classes that have images, where that is smaller.
        """
        order = np.argsort(self.accuracy, axis=1, kind="stable")  # NaN comes last
        return order[:, : min(most, int((self.images > 0).sum()))]

    def accuracy_over(self, chosen: np.ndarray) -> np.ndarray:
        """Accuracy over all images of each model's ``chosen`` classes: integers [M, K] -> float64 [M]."""
        return _ratio(np.take_along_axis(self.right, chosen, axis=1).sum(axis=1), self.images[chosen].sum(axis=1))


@dataclass(frozen=True)
class Split:
    """One look at all answers, counted in three ways."""

    whole: dict[str, Counts]
    """Kind of mark -> counts of all images that count: what :func:`count` finds."""
    metaclasses: dict[str, dict[str, Counts]]
    """Metaclass -> kind of mark -> counts of its images alone; empty where the annotations have no metaclasses."""
    classes: ClassCounts


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
    rows = _rows(predictions, annotations, correctness, rows)
    columns = annotations.columns
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
    """Counts of all images, of each metaclass's and of each class's, for little more than :func:`count` takes.

    Images are put in order of metaclass and class, so that each answer is judged once, and a metaclass is a slice.

    Shapes, memory and ``Raises``: as :func:`count`.
    """
    rows, labels = _rows(predictions, annotations, correctness, rows), annotations.labels
    coarse = annotations.metaclasses
    of_image = np.zeros(len(labels), np.int64) if coarse is None else coarse.of_class[labels]
    chosen = np.flatnonzero(rows)
    order = chosen[np.lexsort((labels[chosen], of_image[chosen]))]
    names = ("all",) if coarse is None else coarse.names
    ends = np.searchsorted(of_image[order], np.arange(len(names) + 1))  # [G + 1]
    starts = np.sort(np.unique(labels[order], return_index=True)[1])  # a class is of one metaclass, so it is one run
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
    """bool [N]: the images to count, once predictions and annotations are seen to fit together."""
    images, given = len(annotations.names), predictions.classes.shape[1]
    if given != images:
        raise ValueError(f"predictions of {given} images for {images} annotated ones")
    if images >= 1 << 24:
        raise ValueError(f"{images} images: float32 counts to {1 << 24} without fault; count parts and add them")
    return counting(annotations, correctness) if rows is None else rows


def _chunks(
    predictions: Predictions, annotations: Annotations, correctness: Correctness
) -> Iterator[tuple[slice, np.ndarray]]:
    """Some models at a time, and which of their answers are right: bool [m, N]."""
    judge = _judge(annotations, correctness)
    for start in range(0, len(predictions.classes), _CHUNK):
        part = slice(start, start + _CHUNK)
        yield part, judge(predictions.classes[part])


def _counts(annotations: Annotations, rows: np.ndarray, found: np.ndarray) -> dict[str, Counts]:
    """Products of right answers among ``rows`` with the annotations' columns, int64 [M, kinds * F + 1], by kind of mark."""
    images, width = (rows.astype(np.float32) @ annotations.columns).astype(np.int64), len(annotations.factors)
    own = {kind: slice(place * width, (place + 1) * width) for place, kind in enumerate(annotations.marks)}
    return {
        kind: Counts(
            images=int(images[-1]), with_factor=images[part], right=found[:, -1], right_with_factor=found[:, part]
        )
        for kind, part in own.items()
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
    first = np.full(len(lengths), np.iinfo(real.labels.dtype).min, real.labels.dtype)  # which is no class
    rounds = []
    for place in range(int(lengths.max(initial=0))):
        images = np.flatnonzero(lengths > place)
        rounds.append((images, real.labels[starts[images] + place]))
    if rounds:
        first[rounds[0][0]] = rounds[0][1]

    def judge(classes: np.ndarray) -> np.ndarray:
        found = classes == first
        for images, labels in rounds[1:]:  # few images have a second one
            found[:, images] |= classes[:, images] == labels
        return found

    return judge


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole; NaN where whole is 0."""
    part, whole = np.broadcast_arrays(np.asarray(part, np.float64), np.asarray(whole, np.float64))
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole != 0)
