# SPDX-License-Identifier: Apache-2.0
"""PAWS's classifier without training: soft nearest neighbours of frozen embeddings among all labelled images.

Source: Assran et al., arXiv 2104.13963, and its code's ``snn_eval.py``: temperature 0.1, labels without smoothing.
"""

from torch import Tensor

from recipes_lib.objectives import snn
from recipes_lib.objectives.prototypes import average_entropy, entropy


def nearest_neighbours(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    *,
    temperature: float = 0.1,
    chunk: int = 1024,
) -> float:
    """Share of test images to which their soft nearest neighbours give most of the right class.

    Every training image votes, with weight softmax(cosine / temperature): a class of more images has more to say.

    Shapes: ``train`` [N, D], ``test`` [M, D], labels int64 [N] and [M]; all on the device that is to do the work.
    ``chunk`` test images are compared at once.
    """
    labels = snn.support_labels(train_labels, int(train_labels.max()) + 1, smoothing=0.0)  # [N, classes]
    right = 0
    for rows, expected in zip(test.float().split(chunk), test_labels.split(chunk), strict=True):
        votes = snn.soft_nearest_neighbours(rows, train.float(), labels, temperature)  # [chunk, classes]
        right += int((votes.argmax(dim=1) == expected).sum())
    return right / len(test)


def describe(
    train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor | None, *, classes: int, temperature: float
) -> dict[str, float]:
    """Figures in which a collapse of the classifier shows.

    ``classes_predicted``: classes that are some test image's first choice. ``exp_mean_entropy``: exp of the entropy of
    the mean prediction, in [1, classes] (1: all images in one class). ``exp_entropy``: exp of the mean entropy of an
    image's prediction (``classes``: flat, so that it says nothing). ``snn_accuracy``, in [0, 1], where there are labels.

    Shapes: as :func:`nearest_neighbours`.
    """
    labels = snn.support_labels(train_labels, classes, smoothing=0.0)
    p = snn.soft_nearest_neighbours(test, train, labels, temperature)  # [M, classes]
    choice = p.argmax(dim=1)
    figures = {
        "classes_predicted": float(choice.unique().numel()),
        "exp_mean_entropy": float(entropy(p.mean(dim=0)).exp()),
        "exp_entropy": float(average_entropy(p).exp()),
    }
    return (
        figures if test_labels is None else figures | {"snn_accuracy": float((choice == test_labels).double().mean())}
    )
