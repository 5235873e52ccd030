# SPDX-License-Identifier: Apache-2.0
"""Linear and MLP probes with several learning rates at once; the rate is chosen on held-out training images.

The best learning rate of a probe depends on the features' scale, and so differs between methods. Choosing it on the test
images would make every score too high, most of all that of the features that need luck; so a tenth of the training
images is held out for the choice, and the test images are looked at once.

All heads learn from the same batches, stacked in one tensor, so that ten cost little more than one.

Source: DINOv2's ``linear.py`` (Oquab et al., arXiv 2304.07193) trains a linear layer for each of 13 learning rates at
once and reports the best one; it chooses on the validation images unless told otherwise.
Differs: the choice is made on held-out training images. Features are extracted once, without augmentation, and
standardised with the mean and standard deviation of each dimension over the training images.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from recipes_lib import randomness
from recipes_lib.data import splits
from recipes_lib.optim.schedules import cosine

RATES = (1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0)
"""Learning rates of the heads, per 256 images of a batch."""
HELD_OUT = 0.1
"""The share of the training images on which the learning rate is chosen."""


@dataclass(frozen=True)
class HeadScore:
    """The accuracy of the chosen head, and how it was chosen."""

    accuracy: float
    """Test accuracy, in [0, 1]."""
    rate: float
    """The chosen learning rate, one of those given."""
    held_out: tuple[float, ...]
    """Accuracy of each head on the held-out training images, in the order of the rates."""


def best_head(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    *,
    seed: int,
    hidden: int = 0,
    rates: Sequence[float] = RATES,
    epochs: int = 100,
    batch_size: int = 256,
) -> HeadScore:
    """The test accuracy of the head whose learning rate does best on held-out training images.

    A head is a linear layer or, with ``hidden`` > 0, an MLP with one hidden layer of that width and ReLU. SGD with
    momentum 0.9, no weight decay; each learning rate is multiplied by ``batch_size`` / 256 and falls to 0 by a cosine.
    ``seed`` draws the held-out images, the batches and the MLP's weights.

    Shapes: ``train`` [N, D], ``test`` [M, D], labels int64 [N] and [M], all on the device that computes.

    Raises: ``ValueError`` if there is no rate, or there are too few images to hold some out.
    """
    held = splits.held_out(torch.arange(len(train)), HELD_OUT, seed).to(train.device)
    if not rates or not held.any():
        raise ValueError(f"{len(rates)} learning rates and {len(train)} training images; use at least 1 and 5.")
    train, test = _standardised(train.float(), test.float())
    classes = int(max(train_labels.max(), test_labels.max())) + 1
    heads = _heads(len(rates), train.shape[1], hidden, classes, seed, train.device)
    fit, labels = train[~held], train_labels[~held]
    batch_size = min(batch_size, len(fit))
    peaks = torch.tensor(rates, device=train.device) * batch_size / 256
    optimizer = torch.optim.SGD(heads, lr=1.0, momentum=0.9)  # the gradient is multiplied by each head's own rate
    steps_per_epoch = math.ceil(len(fit) / batch_size)
    for epoch in range(epochs):
        order = randomness.permutation(seed, epoch, len(fit)).to(train.device)
        for step, rows in enumerate(order.split(batch_size), start=epoch * steps_per_epoch):
            optimizer.zero_grad()
            logits = _logits(fit[rows], heads)  # [heads, batch, classes]
            wanted = labels[rows].expand(len(rates), -1)
            F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="sum").div(len(rows)).backward()
            for weight in heads:  # the rate is inside the momentum; with a slow cosine this changes next to nothing
                weight.grad *= (peaks * cosine(step, 1.0, 0.0, epochs * steps_per_epoch)).view(-1, 1, 1)
            optimizer.step()
    with torch.no_grad():
        found = _accuracies(heads, train[held], train_labels[held])
        chosen = max(range(len(rates)), key=lambda i: found[i])  # of equal ones the first, the smallest rate
        return HeadScore(_accuracies(heads, test, test_labels)[chosen], rates[chosen], tuple(found))


def _standardised(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """Both with mean 0 and standard deviation 1 of each dimension over ``train``; a constant dimension becomes 0."""
    mean, std = train.mean(dim=0), train.std(dim=0, correction=0)
    scale = torch.where(std > 0, std, torch.ones_like(std))
    return (train - mean) / scale, (test - mean) / scale


def _heads(count: int, width: int, hidden: int, classes: int, seed: int, device: torch.device) -> list[Tensor]:
    """Weights and biases of ``count`` heads that start alike: [count, in, out] and [count, 1, out] for each layer."""
    sizes = [(width, hidden), (hidden, classes)] if hidden else [(width, classes)]
    draw, made = randomness.generator(seed, 0, "heads"), []
    for fan_in, fan_out in sizes:
        # zeros suffice for a linear head, which is convex; the units of a hidden layer would all stay the same
        weight = torch.randn(fan_in, fan_out, generator=draw) * math.sqrt(2 / fan_in) if hidden else None
        weight = torch.zeros(fan_in, fan_out) if weight is None else weight
        made += [weight.expand(count, -1, -1).clone(), torch.zeros(count, 1, fan_out)]
    return [part.to(device).requires_grad_() for part in made]


def _logits(rows: Tensor, heads: list[Tensor]) -> Tensor:
    """The logits of all heads.  [B, D] -> [heads, B, classes]"""
    out = rows @ heads[0] + heads[1]
    for weight, bias in zip(heads[2::2], heads[3::2], strict=True):
        out = F.relu(out) @ weight + bias
    return out


def _accuracies(heads: list[Tensor], rows: Tensor, labels: Tensor) -> list[float]:
    """The accuracy of each head on these rows; a head that has diverged has no right answer."""
    logits = _logits(rows, heads)
    right = (logits.argmax(dim=2) == labels) & logits.isfinite().all(dim=2)  # [heads, B]
    return right.double().mean(dim=1).tolist()
