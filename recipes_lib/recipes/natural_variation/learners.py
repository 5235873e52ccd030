# SPDX-License-Identifier: Apache-2.0
"""How a network learns the classes from the images of a lesson: a probe on frozen features, or fine-tuning.

- *probe*: logistic regression on standardised features of the frozen network;
- *finetune*: all weights and a new linear layer, by AdamW on cross-entropy. For ``convnet`` this is training from
  scratch.

Neither augments: random crops vary position and size, colour jitter varies the light, and so would train on the factors
that are studied.
"""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recipes_lib import randomness
from recipes_lib.distributed import collectives
from recipes_lib.evaluation import baselines
from recipes_lib.recipes.natural_variation.catalogue import Network

Progress = Callable[[int, dict[str, float]], None]


@dataclass(frozen=True)
class Head:
    """A linear classifier of standardised features."""

    weight: Tensor
    """float32 [C, D]."""
    bias: Tensor
    """float32 [C]."""

    def answers(self, features: Tensor) -> Tensor:
        """The class of each row of features: float32 [B, D] -> int64 [B]."""
        return (features @ self.weight.T + self.bias).argmax(dim=1)


def probe(features: Tensor, labels: Tensor, *, penalty: float, steps: int = 300) -> Head:
    """Fits a multinomial logistic regression with an L2 penalty on the standardised features; bias is not penalised.

    Shapes: float32 [n, D], int64 [n]. Rows that are equal count as often as they occur.

    The loss is the sum of the errors plus ``penalty`` / 2 times the squared norm of the weights, as in scikit-learn with
    C = 1 / ``penalty``. ``steps`` is the largest number of steps of L-BFGS.
    """
    from sklearn.exceptions import ConvergenceWarning  # takes a second, and --help does not need it
    from sklearn.linear_model import LogisticRegression

    mean, deviation = features.mean(dim=0), features.std(dim=0, correction=0)
    scale = torch.where(deviation > 1e-6 * deviation.max(), deviation, torch.inf)  # a constant feature becomes 0
    whole, number = torch.cat([features, labels[:, None].to(features.dtype)], dim=1).unique(dim=0, return_counts=True)
    model = LogisticRegression(C=1 / penalty, max_iter=steps)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the features of few images are often separable
        model.fit(
            ((whole[:, :-1] - mean) / scale).double().numpy(), whole[:, -1].long().numpy(), number.double().numpy()
        )
    weight, bias = torch.from_numpy(model.coef_).float(), torch.from_numpy(model.intercept_).float()
    if len(weight) == 1:  # of two classes scikit-learn keeps one row
        weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
    weight = weight / scale
    return Head(weight, bias - weight @ mean)


def finetune(
    network: Network,
    images: Tensor,
    labels: Tensor,
    rows: Tensor,
    *,
    classes: int,
    steps: int,
    batch_size: int,
    lr: float,
    seed: int,
    progress: Progress = lambda step, metrics: None,
) -> nn.Module:
    """Trains a copy of the network with a new linear layer; prepared images [B, 3, side, side] -> logits [B, classes].

    Shapes: ``images`` uint8 [n, 3, H, W], ``labels`` int64 [n], ``rows`` int64 [m]: the images of the lesson, each as
    often as it occurs. Lessons of one seed start from the same weights, and an epoch visits positions of ``rows`` in the
    same order.
    """
    body = network.trainable()
    with torch.no_grad():
        width = network.features(images[:2]).shape[1]
    model = baselines.classifier(body, width=width, classes=classes, seed=seed)
    device = next(model.parameters()).device

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        epoch = 0
        while True:
            order = rows[randomness.permutation(seed, epoch, len(rows))]
            whole = len(order) // batch_size * batch_size or len(order)  # a last, small batch would upset batch norms
            for chosen in order[:whole].split(batch_size):
                yield network.prepare(images[chosen].to(device)), labels[chosen].to(device)
            epoch += 1

    def loss_of(batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        with collectives.pretend(1):  # each rank trains lessons of its own, so batch norms must not wait for others
            return {"loss": F.cross_entropy(model(batch[0]), batch[1])}

    how = {"steps": steps, "lr": lr, "weight_decay": 0.05, "warmup": 0.05, "clip": 3.0}
    baselines.descend(model, batches(), loss_of, **how, progress=progress)
    return model.eval().requires_grad_(False)


def untrained_classifier(network: Network, *, width: int, classes: int) -> nn.Module:
    """A classifier like that of :func:`finetune`, into which its weights can be loaded."""
    return baselines.classifier(network.trainable(), width=width, classes=classes, seed=0).eval().requires_grad_(False)
