# SPDX-License-Identifier: Apache-2.0
"""Weighted k-nearest-neighbour classification of frozen features.

Source: Wu et al., "Unsupervised feature learning via non-parametric instance discrimination", CVPR 2018, section 3.4.
The values are those of DINO (Caron et al., ICCV 2021): k = 20, temperature 0.07.
"""

import torch.nn.functional as F
from torch import Tensor


def weighted_knn(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    *,
    k: int = 20,
    temperature: float = 0.07,
    chunk: int = 1024,
) -> float:
    """The share of test images, in [0, 1], for which the ``k`` nearest training images vote for the right class.

    A neighbour with cosine similarity s votes with weight exp(s / temperature). A draw goes to the lower class number.

    Shapes: ``train`` [N, D], ``test`` [M, D], labels int64 [N] and [M], all on the device that computes. ``chunk`` test
    images are compared at once.

    Raises: ``ValueError`` if ``k`` is not in [1, N].
    """
    if not 1 <= k <= len(train):
        raise ValueError(f"k = {k}; it must be in 1 to {len(train)}, the number of training images.")
    train = F.normalize(train.float(), dim=1)
    classes = int(max(train_labels.max(), test_labels.max())) + 1
    right = 0
    for rows, labels in zip(test.float().split(chunk), test_labels.split(chunk), strict=True):
        similarity, neighbours = (F.normalize(rows, dim=1) @ train.T).topk(k, dim=1)  # [chunk, k]
        # exp((s - 1) / T) instead of exp(s / T): a common factor changes no vote, and a small T does not overflow
        weights = ((similarity - 1) / temperature).exp()  # [chunk, k]
        votes = rows.new_zeros(len(rows), classes).scatter_add_(1, train_labels[neighbours], weights)
        right += int((votes.argmax(dim=1) == labels).sum())
    return right / len(test)
