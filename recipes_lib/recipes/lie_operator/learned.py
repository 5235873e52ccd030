# SPDX-License-Identifier: Apache-2.0
"""Learns an operator, or a control of it, from pairs of embeddings that do not change: no backbone is trained."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recipes_lib import randomness
from recipes_lib.models.lie_operator import CoefficientNetwork, Input, LieOperator, MLPOperator
from recipes_lib.objectives.equivariance import relative_error, transfer_loss
from recipes_lib.objectives.redundancy import vicreg_loss
from recipes_lib.optim.schedules import cosine

Kind = Literal["lie", "mlp", "random"]
Pairs = Callable[[torch.Generator, int], tuple[Tensor, Tensor]]
"""Draws a number of pairs of embeddings, [n, d] each, with a generator."""


@dataclass(frozen=True, kw_only=True)
class Learning:
    """How an operator is learned; all kinds learn with the same settings from the same pairs."""

    kind: Kind = "lie"
    """lie: learned generators; mlp: a residual MLP; random: generators that keep their start."""
    generators: int = 4
    skew: bool = True
    reads: Input = "antisymmetric"
    hidden: int = 128
    """Width of the network that infers coefficients."""
    width: int | None = None
    """Width of the MLP operator. None: as many parameters as the generators have."""
    steps: int = 500
    batch: int = 64
    """Number of pairs of a step."""
    lr: float = 1e-3
    """Learning rate of AdamW at the first step; a cosine lowers it to 0."""
    weight_decay: float = 0.01
    """Weight decay of networks; generators do not decay."""


@dataclass(frozen=True)
class Learned:
    """A learned operator, the network that infers its coefficients, and the last quarter's mean relative error."""

    infer: CoefficientNetwork
    move: LieOperator | MLPOperator
    relative_error: float


def pairs_of(seen: Tensor) -> Pairs:
    """Draws pairs of different poses of one instance, from embeddings [instances, poses, d]."""
    count, poses = seen.shape[:2]

    def draw(generator: torch.Generator, number: int) -> tuple[Tensor, Tensor]:
        rows = torch.randint(count, (number,), generator=generator)
        first = torch.randint(poses, (number,), generator=generator)
        second = (first + 1 + torch.randint(poses - 1, (number,), generator=generator)) % poses
        return seen[rows, first], seen[rows, second]

    return draw


def learn(pairs: Pairs, dim: int, how: Learning, *, seed: int) -> Learned:
    """Learns to move the first embedding of each pair to the second, by :func:`transfer_loss` over the dimensions."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(randomness.step_key(seed, 0, "operator"))
        infer = CoefficientNetwork(dim, how.generators, hidden=how.hidden, reads=how.reads)
        move: LieOperator | MLPOperator
        if how.kind == "mlp":
            move = MLPOperator(dim, how.generators, hidden=how.width or equal_width(dim, how.generators))
        else:
            move = LieOperator(dim, how.generators, skew=how.skew).requires_grad_(how.kind == "lie")
    decays = how.weight_decay if how.kind == "mlp" else 0.0
    groups = [
        {"params": [*infer.parameters()], "weight_decay": how.weight_decay},
        {"params": [each for each in move.parameters() if each.requires_grad], "weight_decay": decays},
    ]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], how.lr)
    generator, late = randomness.generator(seed, 0, "pairs"), []
    for step in range(how.steps):
        for group in optimizer.param_groups:
            group["lr"] = cosine(step, how.lr, 0.0, how.steps)
        start, end = pairs(generator, how.batch)
        moved = move(start, infer(start, end))
        optimizer.zero_grad()
        (transfer_loss(moved, end) / dim).backward()
        optimizer.step()
        if step >= 3 * how.steps // 4:
            late.append(relative_error(moved.detach(), end, start).item())
    return Learned(infer.requires_grad_(False), move.requires_grad_(False), sum(late) / len(late))


def equal_width(dim: int, generators: int) -> int:
    """The hidden width of the largest :class:`MLPOperator` that has no more parameters than dense generators, K d^2."""

    def size(hidden: int) -> int:
        return (dim + generators + 1) * hidden + (hidden + 1) * hidden + (hidden + 1) * dim

    width = 1
    while size(width + 1) <= generators * dim**2:
        width += 1
    return width


def positives(pairs: Pairs, dim: int, outputs: int, how: Learning, *, seed: int) -> nn.Linear:
    """The control without an operator: a linear map that learns from the same pairs as SSL positives, by VICReg."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(randomness.step_key(seed, 0, "operator"))
        chosen = nn.Linear(dim, outputs, bias=False)
    optimizer = torch.optim.AdamW(chosen.parameters(), how.lr, weight_decay=how.weight_decay)
    generator = randomness.generator(seed, 0, "pairs")
    for step in range(how.steps):
        optimizer.param_groups[0]["lr"] = cosine(step, how.lr, 0.0, how.steps)
        start, end = pairs(generator, how.batch)
        optimizer.zero_grad()
        vicreg_loss(chosen(start), chosen(end))["loss"].backward()
        optimizer.step()
    return chosen.requires_grad_(False)


def principal(train: Tensor, dim: int) -> Callable[[Tensor], Tensor]:
    """The map to the first ``dim`` principal components of ``train`` [N, D], scaled so that their mean variance is 1."""
    mean = train.mean(dim=0)
    _, _, directions = torch.linalg.svd((train - mean).double(), full_matrices=False)
    directions = directions[:dim].T.to(train)  # [D, dim]
    scale = ((train - mean) @ directions).square().mean().sqrt()
    return lambda rows: F.linear(rows - mean, directions.T) / scale
