# SPDX-License-Identifier: Apache-2.0
r"""Strategies that keep the processes of a run equal: they average gradients at every step, or weights at intervals.

A strategy wraps a model and its optimiser once, and is then called around every backward pass and after every step::

    sync = SlowMo(period=12, momentum=0.5)
    model = sync.wrap(model, optimizer)                # every rank starts from rank 0's weights
    for step in range(steps):
        with sync.hold(step, last=True):               # last: no further micro-batch is added to this step's gradient
            loss(model(batch)).backward()
        optimizer.step()
        sync.after_step(step)                          # averages if a round ends
    sync.finish(steps - 1)                             # averages if the last round is incomplete

Between two averagings the ranks' weights differ: each rank then evaluates its own model, and clips its gradient by its
own norm. ``alike(step)`` says whether all ranks have the same state after a step. Collectives inside a loss or a
cross-rank batch norm do not change with the strategy, so all ranks must take the same number of steps.

**Bytes.** A ring all-reduce of N bytes over K ranks sends 2 (K - 1) / K N bytes from each rank. ``traffic`` counts
these bytes exactly for averaged gradients, weights, statistics and optimiser means. Broadcasts (at the start, and of
buffers in DDP) and the collectives inside losses are not counted.
"""

import contextlib
import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import zip_longest
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parallel import DistributedDataParallel

from recipes_lib.distributed import collectives
from recipes_lib.errors import RunError

Buffers = Literal["maintain", "reset", "average"]
"""What happens to the optimiser's running means when weights are averaged; see ``SyncConfig.buffers``."""


@dataclass
class Traffic:
    """The number of averagings over ranks so far, and their bytes."""

    averaged: int = 0
    """Bytes of one rank that were all-reduced; an all-gather or a reduce-scatter counts half of its bytes."""
    rounds: int = 0
    """Number of averagings."""

    def add(self, count: int) -> None:
        """Counts one averaging of ``count`` bytes, unless there is only one process."""
        if collectives.world_size() > 1:
            self.averaged, self.rounds = self.averaged + count, self.rounds + 1

    @property
    def bytes_sent(self) -> float:
        """The bytes that each rank sent, by the ring formula."""
        return ring_bytes(self.averaged, collectives.world_size())


def ring_bytes(averaged: float, workers: int) -> float:
    """The bytes that each of ``workers`` sends in a ring all-reduce of ``averaged`` bytes.

    >>> ring_bytes(4 * 4_349_962, workers=2)
    17399848.0
    """
    return 2 * (workers - 1) * averaged / workers


class Strategy(Protocol):
    """The methods of a strategy that the training loop calls."""

    traffic: Traffic
    trained: nn.Module
    """After :meth:`wrap`: the module whose weights the steps update, that is the method or, under FSDP, a copy."""

    def wrap(self, method: nn.Module, optimizer: torch.optim.Optimizer) -> nn.Module:
        """The module to call instead of ``method``. The weights of every rank become those of rank 0."""

    def hold(self, step: int, last: bool) -> AbstractContextManager:
        """The context for forward and backward of a micro-batch; ``last``: it is the last of its step."""

    def meets(self, step: int) -> bool:
        """Whether the ranks wait for each other in ``step`` anyway, so that averaging metrics adds no waiting."""

    def after_step(self, step: int) -> None:
        """Called after the optimiser's step number ``step``, counted from 0."""

    def finish(self, step: int) -> None:
        """Called after :meth:`after_step` of the last step."""

    def alike(self, step: int) -> bool:
        """Whether all ranks have the same weights and the same optimiser state after ``step``."""

    def state_dict(self) -> dict[str, Tensor]:
        """The strategy's own state, equal on all ranks, with names that contain those of the parameters."""

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Loads the state from :meth:`state_dict`."""

    def unwrap(self) -> None:
        """Called after training. Then ``method`` has all its trained weights on every rank."""


class DDP:
    """Averages gradients over ranks at every step, while the backward pass still runs."""

    def __init__(self) -> None:
        self.traffic = Traffic()

    def wrap(self, method: nn.Module, optimizer: torch.optim.Optimizer) -> nn.Module:
        """Returns ``method`` in torch's DistributedDataParallel, or ``method`` itself on one process."""
        self._gradients = sum(p.nbytes for p in method.parameters() if p.requires_grad)
        self.trained = self._model = method
        if collectives.world_size() > 1:
            # the warning is about gradients of 1x1 convolutions, whose two memory layouts are the same
            warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
            self._model = DistributedDataParallel(method)
        return self._model

    def hold(self, step: int, last: bool) -> AbstractContextManager:
        """Exchanges gradients only in the ``last`` micro-batch of a step."""
        if last or collectives.world_size() == 1:
            return contextlib.nullcontext()
        return self._model.no_sync()

    def meets(self, step: int) -> bool:
        """Always true."""
        return True

    def after_step(self, step: int) -> None:
        """Counts the bytes of the gradients."""
        self.traffic.add(self._gradients)

    def finish(self, step: int) -> None:
        """Does nothing: every step has averaged already."""

    def alike(self, step: int) -> bool:
        """Always true."""
        return True

    def state_dict(self) -> dict[str, Tensor]:
        """Returns an empty dict: DDP has no state of its own."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Does nothing: DDP has no state of its own."""

    def unwrap(self) -> None:
        """Does nothing: the steps have updated ``method`` itself."""


class LocalSGD:
    """Each rank takes steps alone; weights are averaged every ``period`` steps. Before ``start`` it is :class:`DDP`.

    A round ends with step t (from 0) if t + 1 - ``start`` is a multiple of ``period``. Then all parameters are
    averaged, also those that the optimiser does not update (a teacher's), and the running statistics of batch norms.
    Other buffers become those of rank 0, as under DDP. ``buffers``: each rank keeps its optimiser state (``maintain``),
    the state is deleted as at the first step, with bias corrections (``reset``), or it is averaged too (``average``).

    Raises: ``ValueError`` for a period below 1 or a negative start.

    Source: Stich, "Local SGD Converges Fast and Communicates Little", ICLR 2019; with ``start``: Lin et al., "Don't Use
    Large Mini-Batches, Use Local SGD", ICLR 2020. Differs: torch's ``PeriodicModelAverager`` ends its first round one step
    after ``start``.
    """

    def __init__(self, period: int, *, start: int = 0, buffers: Buffers = "maintain") -> None:
        if not isinstance(period, int) or period < 1:
            raise ValueError(f"period = {period} is not allowed: use a whole number of at least 1")
        if start < 0:
            raise ValueError(f"start = {start} is not allowed: use at least 0")
        if buffers not in ("maintain", "reset", "average"):
            raise ValueError(f"buffers = {buffers!r} is not allowed: use maintain, reset or average")
        self.period, self.start, self.buffers = period, start, buffers
        self.traffic = Traffic()

    def wrap(self, method: nn.Module, optimizer: torch.optim.Optimizer) -> nn.Module:
        """Returns ``method`` itself, or ``method`` in DDP if there are synchronous steps.

        Raises: ``RunError`` on every rank if the ranks' models differ in a name, shape or dtype.
        """
        refuse_other_models(method)
        collectives.broadcast_in_place([*method.parameters(), *method.buffers()])
        self.trained, self._optimizer = method, optimizer
        self._ddp = DDP()
        self._model = self._ddp.wrap(method, optimizer) if self.start else method
        self._ddp.traffic = self.traffic
        return self._model

    def hold(self, step: int, last: bool) -> AbstractContextManager:
        """Exchanges gradients as DDP does before step ``start``, and not at all from then on."""
        return self._ddp.hold(step, last and step < self.start) if self.start else contextlib.nullcontext()

    def meets(self, step: int) -> bool:
        """Whether the ranks wait for each other in ``step``: in synchronous steps and at the end of a round."""
        return step < self.start or self.ends_round(step) or collectives.world_size() == 1

    def ends_round(self, step: int) -> bool:
        """Whether a round ends with ``step``."""
        return (step + 1 - self.start) % self.period == 0

    def level(self, step: int) -> bool:
        """Whether all ranks have the same weights after ``step``."""
        return step < self.start or self.ends_round(step) or collectives.world_size() == 1

    def after_step(self, step: int) -> None:
        """Averages the weights if a round ends with ``step``."""
        if step < self.start:
            self._ddp.after_step(step)
        elif self.ends_round(step):
            self._average()

    def finish(self, step: int) -> None:
        """Averages the weights at the end of the run, if the last round is incomplete."""
        if not self.level(step):
            self._average()

    def alike(self, step: int) -> bool:
        """Whether all ranks have the same weights, and also the same optimiser state, after ``step``."""
        if collectives.world_size() == 1 or step < self.start:
            return True
        return self.buffers != "maintain" and self.level(step)

    def state_dict(self) -> dict[str, Tensor]:
        """Returns an empty dict: the position in a round follows from the step."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Does nothing: local SGD has no state of its own."""

    def unwrap(self) -> None:
        """Does nothing: the steps have updated ``method`` itself."""

    @torch.no_grad()
    def _average(self) -> None:
        statistics = _running_statistics(self.trained)
        tensors = [*self.trained.parameters(), *statistics]
        if self.buffers == "average":
            tensors += running_means(self._optimizer)
        self.traffic.add(collectives.average_in_place(tensors))
        ours = {id(tensor) for tensor in statistics}
        collectives.broadcast_in_place([buffer for buffer in self.trained.buffers() if id(buffer) not in ours])
        if self.buffers == "reset":
            self._optimizer.state.clear()  # the optimiser makes a new state, as at its first step


def _running_statistics(module: nn.Module) -> list[Tensor]:
    """The running means and variances of batch norms, without their counts of batches, which are integers."""
    norms = [layer for layer in module.modules() if isinstance(layer, _NormBase)]
    found = [buffer for layer in norms for buffer in (layer.running_mean, layer.running_var)]
    return [buffer for buffer in found if buffer is not None]


def running_means(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """An optimiser's running means of gradients or their squares: state with its parameter's shape, except counters.

    Raises: ``ValueError`` for 8-bit codes, which cannot be averaged.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    found = [
        value
        for parameter in parameters
        for key, value in sorted(optimizer.state.get(parameter, {}).items())
        if key != "step" and isinstance(value, Tensor) and value.shape == parameter.shape
    ]
    if any(not value.is_floating_point() for value in found):
        raise ValueError(f"the running means of {type(optimizer).__name__} are codes: they cannot be averaged")
    return found


def refuse_other_models(method: nn.Module) -> None:
    """Raises ``RunError`` on every rank if the ranks' models differ in a name, shape or dtype."""
    state = [*method.named_parameters(), *method.named_buffers()]
    ours = [(name, tuple(tensor.shape), str(tensor.dtype)) for name, tensor in state]
    first, *others = collectives.gather_objects(ours)
    for rank, theirs in enumerate(others, start=1):
        for wanted, found in zip_longest(first, theirs, fillvalue=("nothing", (), "")):
            if wanted != found:
                here, there = (" ".join(map(str, entry)).rstrip() for entry in (found, wanted))
                raise RunError(
                    f"The ranks' models differ: rank {rank} has {here} where rank 0 has {there}. "
                    "Build the same model on every rank; weights of different shapes have no mean."
                )
