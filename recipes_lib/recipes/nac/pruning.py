# SPDX-License-Identifier: Apache-2.0
"""Which modules to keep: four rankings, and what a pruned circuit costs and how well it does.

A ranking is an order of all modules, the most useful first: int64 [U]. A circuit of n modules keeps the first n.
Source: the paper drops the least useful modules; its rule is not released. All rankings here are ours.
"""

import copy
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from recipes_lib.models.nac.network import NeuralAttentiveCircuit
from recipes_lib.models.perceiver import PerceiverIO

Loss = Callable[[Tensor], float]
"""The validation loss of a network that runs only these modules (int64 [n])."""
Prunable = NeuralAttentiveCircuit | PerceiverIO
"""A network whose modules, or latents, can be left out."""


@torch.no_grad()
def by_link_mass(network: NeuralAttentiveCircuit) -> Tensor:
    """Ranks modules by the mean probability of their links to the other modules and the output modules; no data is used.

    The circuit must be a learned one, the same for all samples.
    """
    circuit = network.circuit()
    p = network.log_links(circuit).exp()[:, : circuit.modules]
    return (p.sum(dim=0) - p.diagonal()).argsort(descending=True)


def by_single_removal(modules: int, loss: Loss) -> Tensor:
    """Ranks modules by the loss that the whole circuit without each of them has: ``modules`` evaluations.

    It looks only at the whole circuit, of which removing one module may change next to nothing.
    """
    losses = torch.tensor([loss(_without(torch.arange(modules), place)) for place in range(modules)])
    return losses.argsort(descending=True)


def by_elimination(modules: int, loss: Loss) -> Tensor:
    """Ranks modules by greedy backward elimination: again and again the module goes whose removal costs least.

    It takes modules * (modules + 1) / 2 evaluations.
    """
    left, gone = torch.arange(modules), []
    while len(left) > 1:
        losses = torch.tensor([loss(_without(left, place)) for place in range(len(left))])
        place = int(losses.argmin())
        gone.append(int(left[place]))
        left = _without(left, place)
    return torch.tensor([int(left), *reversed(gone)])


def at_random(modules: int, generator: torch.Generator) -> Tensor:
    """Ranks modules at random: the control."""
    return torch.randperm(modules, generator=generator)


def _without(modules: Tensor, place: int) -> Tensor:
    return torch.cat([modules[:place], modules[place + 1 :]])


def pruned(network: Prunable, kept: Tensor) -> Prunable:
    """A copy of the network that has these modules (or latents) only, for inference.

    What depends on codes alone is computed once (:meth:`NeuralAttentiveCircuit.fix`), so the copy is not for training.
    Raises: ``ValueError`` if ``kept`` is empty, or names a module twice or one that there is not.
    """
    made = copy.deepcopy(network).eval()
    if isinstance(made, PerceiverIO):
        made.prune(kept)
    else:
        made.circuit.prune(kept)
        made.fix()
    return made


@dataclass(frozen=True)
class Point:
    """One size of a pruned network: a point of the curve of latency and accuracy."""

    kept: int
    """Number of modules that run."""
    accuracy: float
    """Share of the inputs that are classified rightly."""
    seconds: float
    """Median time of one forward pass of the network."""
    spread: float
    """Slowest over fastest pass: near 1 on a quiet machine."""


@torch.no_grad()
def curve(
    network: Prunable,
    order: Tensor,
    sizes: Sequence[int],
    accuracy: Callable[[Prunable], float],
    inputs: Tensor,
    *,
    rounds: int = 21,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Point]:
    """Accuracy and latency of a network of which the first n modules of ``order`` run, for each n of ``sizes``.

    ``accuracy`` scores a pruned network; ``inputs`` is the batch whose forward pass is timed, ``rounds`` times,
    alternately for all sizes (:func:`median_seconds`).
    """
    networks = {size: pruned(network, order[:size]) for size in sizes}
    times = median_seconds(
        {size: lambda made=made: made(inputs) for size, made in networks.items()}, rounds=rounds, clock=clock
    )
    return [Point(size, accuracy(made), *times[size]) for size, made in networks.items()]


def median_seconds(
    calls: Mapping[int, Callable[[], object]], *, rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[int, tuple[float, float]]:
    """The median seconds of each call, and its slowest over its fastest one.

    The calls take turns, so that a busy machine slows all of them alike; the first turn is not counted.
    """
    times: dict[int, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            start = clock()
            call()
            if turn:
                times[name].append(clock() - start)
    return {name: (statistics.median(taken), max(taken) / min(taken)) for name, taken in times.items()}
