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
    top: int = 1,
    chunk: int = 1024,
) -> float:
    """The top-``top`` accuracy of soft nearest neighbours on the test images, in [0, 1].

    Every training image votes with weight softmax(cosine / temperature), so a class with more images has more votes.

    Shapes: ``train`` [N, D], ``test`` [M, D], labels int64 [N] and [M], all on the device that computes.
    ``chunk`` test images are compared at once.
    Raises: ``ValueError`` if there are fewer than ``top`` classes.
    """
    if not 1 <= top <= int(train_labels.max()) + 1:
        raise ValueError(f"top = {top}; it must be in 1 to {int(train_labels.max()) + 1}, the number of classes.")
    labels = snn.support_labels(train_labels, int(train_labels.max()) + 1, smoothing=0.0)  # [N, classes]
    right = 0
    for rows, expected in zip(test.float().split(chunk), test_labels.split(chunk), strict=True):
        votes = snn.soft_nearest_neighbours(rows, train.float(), labels, temperature)  # [chunk, classes]
        best = votes.argmax(dim=1, keepdim=True) if top == 1 else votes.topk(top, dim=1).indices
        right += int((best == expected[:, None]).sum())
    return right / len(test)


def describe(
    train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor | None, *, classes: int, temperature: float
) -> dict[str, float]:
    """Metrics of the soft-nearest-neighbour predictions, which show a collapse.

    ``classes_predicted``: the number of classes that are the first choice for at least one test image.
    ``exp_mean_entropy``: exp of the entropy of the mean prediction, in [1, classes] (1: all images in one class).
    ``exp_entropy``: exp of the mean entropy of an image's prediction, in [1, classes] (``classes``: all predictions are
    uniform). With test labels also ``snn_accuracy`` and, for more than five classes, ``snn_top5_accuracy``, in [0, 1].

    Shapes: those of :func:`nearest_neighbours`.
    """
    labels = snn.support_labels(train_labels, classes, smoothing=0.0)
    p = snn.soft_nearest_neighbours(test, train, labels, temperature)  # [M, classes]
    choice = p.argmax(dim=1)
    metrics = {
        "classes_predicted": float(choice.unique().numel()),
        "exp_mean_entropy": float(entropy(p.mean(dim=0)).exp()),
        "exp_entropy": float(average_entropy(p).exp()),
    }
    if test_labels is None:
        return metrics
    metrics["snn_accuracy"] = float((choice == test_labels).double().mean())
    if classes > 5:
        among = (p.topk(5, dim=1).indices == test_labels[:, None]).any(dim=1)
        metrics["snn_top5_accuracy"] = float(among.double().mean())
    return metrics
