# SPDX-License-Identifier: Apache-2.0
"""PAWS's classifier without training: soft nearest neighbours of frozen embeddings among all labelled images.

Source: Assran et al., arXiv 2104.13963, and its code's ``snn_eval.py``: temperature 0.1, labels without smoothing.
"""

from torch import Tensor

from recipes_lib.objectives import snn


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
