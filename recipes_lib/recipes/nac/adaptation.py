# SPDX-License-Identifier: Apache-2.0
"""Low-shot adaptation: a trained network learns new classes from a few labels, and only a part of it moves.

Source: the paper's low-shot experiments adapt to CIFAR and CUB; what moves and for how long is not released. The three
parts below are ours.
"""

import copy
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recipes_lib.models.nac.network import NeuralAttentiveCircuit
from recipes_lib.models.perceiver import PerceiverIO

Moves = Literal["head", "circuit", "all"]
Network = NeuralAttentiveCircuit | PerceiverIO


def moving(network: Network, moves: Moves) -> list[nn.Parameter]:
    """The parameters of a network that adaptation changes, beside the head.

    ``head``: none; ``circuit``: codes and signatures, or a Perceiver IO's latents and queries; ``all``: all.
    """
    match moves:
        case "head":
            return []
        case "circuit":
            if isinstance(network, PerceiverIO):
                return [network.latents, network.queries]
            return list(network.circuit.parameters())
        case "all":
            return list(network.parameters())
    raise ValueError(f"moves = {moves!r} is none of head, circuit, all.")


def adapt(
    network: Network,
    inputs: Tensor,
    labels: Tensor,
    *,
    classes: int,
    moves: Moves,
    lr: float,
    steps: int = 50,
    views: Callable[[Tensor, int], Tensor] | None = None,
) -> nn.Module:
    """A copy of a trained network with a new head, trained on a few labelled inputs: inputs -> logits [B, classes].

    Every step takes all inputs, with Adam. The head starts at 0. Nothing is drawn, so the network is in evaluation: its
    links have their mean strength. ``views`` distorts the inputs of a step.

    Shapes: ``inputs`` as for the network, ``labels`` int64 [n] in [0, classes).
    Raises: ``ValueError`` for labels out of range.
    """
    if len(labels) != len(inputs) or int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise ValueError(f"{len(labels)} labels from {int(labels.min())} to {int(labels.max())} for {len(inputs)} inputs "
                         f"of {classes} classes: every input needs a label from 0 to {classes - 1}.")  # fmt: skip
    made = copy.deepcopy(network).eval().requires_grad_(False)
    head = nn.Linear(made.num_features, classes).to(labels.device)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    moved = [*(parameter.requires_grad_() for parameter in moving(made, moves)), *head.parameters()]
    model, optimizer = nn.Sequential(made, head), torch.optim.Adam(moved, lr=lr)
    for step in range(steps):
        given = inputs if views is None else views(inputs, step)
        optimizer.zero_grad()
        F.cross_entropy(model(given), labels).backward()
        optimizer.step()
    return model.requires_grad_(False)
