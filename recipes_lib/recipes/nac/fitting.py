# SPDX-License-Identifier: Apache-2.0
"""Trains a circuit, or its dense control, on a toy task, with or without module dropout and a graph prior.

A step's batch, distortions, links and kept modules derive from (seed, step, sample), so two runs with the same seed see
the same data whatever network they train.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recipes_lib import randomness
from recipes_lib.models.nac.network import NeuralAttentiveCircuit, draw_kept
from recipes_lib.models.perceiver import PerceiverIO
from recipes_lib.recipes.nac import priors
from recipes_lib.recipes.nac.answering import Answering
from recipes_lib.recipes.nac.tasks import Part, Task

Network = NeuralAttentiveCircuit | PerceiverIO | Answering


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a network is trained."""

    steps: int = 4000
    batch_size: int = 64
    lr: float = 3e-3
    """Peak learning rate of AdamW, after a warm-up of 40 steps; then it falls to 0 along a cosine."""
    weight_decay: float = 0.02
    """Of matrices; codes, signatures, latents, biases and norms do not decay."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    module_dropout: float = 0.0
    """Share of the steps that keep only a random number of random modules."""
    prior: float = 0.0
    """Weight of the graph prior."""
    graph: Tensor | None = None
    """Target of the graph prior, [U, U]."""


class Classifier(nn.Module):
    """A network and a linear head.  inputs -> logits [B, classes]"""

    def __init__(self, network: Network, classes: int) -> None:
        super().__init__()
        self.network, self.head = network, nn.Linear(network.num_features, classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, inputs: Tensor, *, kept: Tensor | None = None, keys: Tensor | None = None) -> Tensor:
        """The logits; ``kept`` and ``keys`` are those of the network."""
        if isinstance(self.network, PerceiverIO):
            return self.head(self.network(inputs, kept=kept))
        return self.head(self.network(inputs, kept=kept, keys=keys))

    def param_groups(self, weight_decay: float) -> list[dict[str, object]]:
        """Two groups of parameters: matrices, which decay, and all others."""
        still = ("circuit", "latents", "queries", "positions")
        groups: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
        for name, parameter in self.named_parameters():
            groups[parameter.ndim > 1 and not any(part in still for part in name.split("."))].append(parameter)
        return [{"params": groups[1], "weight_decay": weight_decay}, {"params": groups[0], "weight_decay": 0.0}]


def fit(
    make: Callable[[], Network],
    task: Task,
    settings: Settings,
    *,
    seed: int,
    watch: Callable[[int, Classifier], None] | None = None,
) -> Classifier:
    """Trains the network that ``make`` builds, and returns it in evaluation mode.

    ``watch`` is called after each step. Torch's global random state stays as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(randomness.step_key(seed, 0, "initial weights"))
        model = Classifier(make(), task.classes)
    optimizer = torch.optim.AdamW(model.param_groups(settings.weight_decay), lr=settings.lr, fused=True)
    for step in range(settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * _share(step, settings.steps)
        loss = _loss(model.train(), task, settings, seed, step)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        optimizer.step()
        if watch is not None:
            watch(step, model)
    return model.eval()


def _share(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / 40) * 0.5 * (1 + math.cos(math.pi * step / steps))


def _loss(model: Classifier, task: Task, settings: Settings, seed: int, step: int) -> Tensor:
    per_epoch = len(task.train.labels) // settings.batch_size
    epoch, place = divmod(step, per_epoch)
    order = randomness.permutation(seed, epoch, len(task.train.labels))
    rows = order[place * settings.batch_size : (place + 1) * settings.batch_size]
    keys = randomness.sample_keys(seed, epoch, rows)
    inputs = task.train.inputs[rows]
    if task.distort is not None:
        inputs = task.distort(inputs, keys)
    kept = None
    if settings.module_dropout:
        generator = randomness.generator(seed, step, "modules")
        kept = draw_kept(modules(model.network), settings.module_dropout, generator)
    loss = F.cross_entropy(model(inputs, kept=kept, keys=keys), task.train.labels[rows])
    if settings.graph is not None and isinstance(model.network, NeuralAttentiveCircuit):
        signatures = model.network.circuit().signatures[: model.network.shape.modules]
        bandwidth = model.network.link.bandwidth
        loss = loss + settings.prior * priors.prior_loss(signatures, settings.graph, bandwidth=bandwidth)
    return loss


def modules(network: Network) -> int:
    """Number of modules of a circuit without its output modules, or of latents of a Perceiver IO."""
    if isinstance(network, PerceiverIO):
        return len(network.latents)
    circuit = network.network.circuit if isinstance(network, Answering) else network.circuit
    return circuit.modules


@torch.no_grad()
def accuracy(model: Classifier, part: Part, kept: Tensor | None = None) -> float:
    """Share of the samples that a trained model classifies rightly, if only the ``kept`` modules run."""
    return float((model(part.inputs, kept=kept).argmax(dim=1) == part.labels).double().mean())


@torch.no_grad()
def loss(model: Classifier, part: Part, kept: Tensor | None = None) -> float:
    """Mean cross-entropy of a trained model, if only the ``kept`` modules run."""
    return float(F.cross_entropy(model(part.inputs, kept=kept), part.labels))
