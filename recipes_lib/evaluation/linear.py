# SPDX-License-Identifier: Apache-2.0
"""Linear probe: how well a linear layer classifies frozen features.

Source: the MSN paper's code, ``linear_eval.py``: the backbone's last normalisation is replaced by a LayerNorm,
then each row is scaled to length 1, then a linear layer follows. SGD with Nesterov momentum 0.9, no weight decay, 100
epochs; the learning rate falls from 6.4 to 0 by a cosine schedule.
Differs: features are extracted once, so there are no random crops and flips of the training images. Batches have 1,024
rows where the paper has 16,384 (appendix A.3; the released config has 256 on each of 32 GPUs, 8,192), at the same
learning rate, because a small data set gives few steps. Weights start at 0.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recipes_lib import randomness
from recipes_lib.optim.schedules import cosine


def linear_probe(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    *,
    seed: int,
    epochs: int = 100,
    batch_size: int = 1024,
    lr: float = 6.4,
) -> float:
    """The test accuracy of a linear probe, in [0, 1]; it depends only on the features and ``seed`` (the rows' order).

    Shapes: ``train`` [N, D], ``test`` [M, D], before the backbone's last normalisation; labels int64 [N] and [M]; all
    on the device that computes.
    """
    classes = int(max(train_labels.max(), test_labels.max())) + 1
    how = {"seed": seed, "epochs": epochs, "batch_size": batch_size, "lr": lr}
    logits = linear_classifier(train, train_labels, classes=classes, **how)
    return (logits(test).argmax(dim=1) == test_labels).double().mean().item()


def linear_classifier(
    train: Tensor,
    train_labels: Tensor,
    *,
    classes: int,
    seed: int,
    epochs: int = 100,
    batch_size: int = 1024,
    lr: float = 6.4,
) -> Callable[[Tensor], Tensor]:
    """Trains the linear probe, and returns the function from features to logits: [M, D] -> [M, ``classes``].

    Shapes: as in :func:`linear_probe`. The function has no gradients.
    """
    train = train.float()
    norm = nn.LayerNorm(train.shape[1], device=train.device)
    weight = train.new_zeros(classes, train.shape[1]).requires_grad_()  # zeros suffice: the linear part is convex
    bias = train.new_zeros(classes).requires_grad_()

    def logits(rows: Tensor) -> Tensor:
        return F.linear(F.normalize(norm(rows), dim=1), weight, bias)

    optimizer = torch.optim.SGD([*norm.parameters(), weight, bias], lr=lr, momentum=0.9, nesterov=True)
    steps_per_epoch = math.ceil(len(train) / batch_size)
    for epoch in range(epochs):
        order = randomness.permutation(seed, epoch, len(train)).to(train.device)
        for step, rows in enumerate(order.split(batch_size), start=epoch * steps_per_epoch):
            optimizer.param_groups[0]["lr"] = cosine(step, lr, 0.0, epochs * steps_per_epoch)
            optimizer.zero_grad()
            F.cross_entropy(logits(train[rows]), train_labels[rows]).backward()
            optimizer.step()

    @torch.no_grad()
    def classify(rows: Tensor) -> Tensor:
        return logits(rows.float())

    return classify
