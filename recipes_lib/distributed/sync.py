# SPDX-License-Identifier: Apache-2.0
r"""How often the processes of a run agree, and on what: gradients at every step, or weights every so many.

A strategy wraps a model and its optimiser once, and is then told of every backward pass and every step::

    sync = SlowMo(period=12, momentum=0.5)
    model = sync.wrap(model, optimizer)                # every rank starts from rank 0's weights
    for step in range(steps):
        with sync.hold(step, last=True):               # last: no further micro-batch is added to this step's gradient
            loss(model(batch)).backward()
        optimizer.step()
        sync.after_step(step)                          # averages where it is due
    sync.finish(steps - 1)                             # averages what the last, shorter round left

Between averagings the ranks' weights differ: what is evaluated then is that rank's own model, and a gradient is clipped
by that rank's own norm. ``alike(step)`` says whether after a step one rank's state is every rank's. What a loss or a
cross-rank batch norm exchanges inside a step stays as it is; all ranks must take the same number of steps.

**Bytes.** A ring all-reduce of N bytes over K ranks sends 2 (K - 1) / K N from each. ``traffic`` counts that, exactly, for
the gradients and the weights, statistics and optimiser means that were averaged. Broadcasts (at the start; DDP's, of
buffers) and the collectives inside losses are not counted.
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
"""What becomes of the optimiser's running means when weights are averaged."""


@dataclass
class Traffic:
    """What was averaged over ranks so far."""

    averaged: int = 0
    """Bytes that went into all-reduces, on one rank; what is only gathered, or only reduced and scattered, counts half."""
    rounds: int = 0
    """How many times ranks averaged."""

    def add(self, count: int) -> None:
        """Notes one averaging of ``count`` bytes; none on one process."""
        if collectives.world_size() > 1:
            self.averaged, self.rounds = self.averaged + count, self.rounds + 1

    @property
    def bytes_sent(self) -> float:
        """Bytes that each rank sent, by the ring formula."""
        return ring_bytes(self.averaged, collectives.world_size())


def ring_bytes(averaged: float, workers: int) -> float:
    """Bytes that each of ``workers`` sends in a ring all-reduce of ``averaged`` bytes.

    >>> ring_bytes(4 * 4_349_962, workers=2)
    17399848.0
    """
    return 2 * (workers - 1) * averaged / workers


class Strategy(Protocol):
    """What the loop asks of a strategy."""

    traffic: Traffic
    trained: nn.Module
    """From :meth:`wrap` on: the module whose weights the steps move. It is the method itself, or, under FSDP, a copy of it."""

    def wrap(self, method: nn.Module, optimizer: torch.optim.Optimizer) -> nn.Module:
        """What to call in place of ``method``; every rank's weights become rank 0's."""

    def hold(self, step: int, last: bool) -> AbstractContextManager:
        """Surrounds forward and backward of a micro-batch, the ``last`` of its step or not."""

    def meets(self, step: int) -> bool:
        """Whether the ranks wait for each other in ``step`` in any case, so that a figure more costs nothing."""

    def after_step(self, step: int) -> None:
        """To be called after the optimiser's step number ``step``, counted from 0."""

    def finish(self, step: int) -> None:
        """To be called after :meth:`after_step` of the last step."""

    def alike(self, step: int) -> bool:
        """Whether after ``step`` every rank has the same weights and the same optimiser state."""

    def state_dict(self) -> dict[str, Tensor]:
        """What goes on beyond a step, the same on every rank, under names that hold the parameters'."""

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes what :meth:`state_dict` gave."""

    def unwrap(self) -> None:
        """To be called when training has ended, last of all: ``method`` is whole and its own on every rank."""


class DDP:
    """Gradients are averaged over ranks at every step, while the backward pass still runs."""

    def __init__(self) -> None:
        self.traffic = Traffic()

    def wrap(self, method: nn.Module, optimizer: torch.optim.Optimizer) -> nn.Module:
        """``method`` under torch's DistributedDataParallel; itself on one process."""
        self._gradients = sum(p.nbytes for p in method.parameters() if p.requires_grad)
        self.trained = self._model = method
        if collectives.world_size() > 1:
            # of a 1x1 convolution's gradient alone: its two memory layouts are one and the same, the copy costs nothing
            warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
            self._model = DistributedDataParallel(method)
        return self._model

    def hold(self, step: int, last: bool) -> AbstractContextManager:
        """Gradients are exchanged in the ``last`` micro-batch alone."""
        if last or collectives.world_size() == 1:
            return contextlib.nullcontext()
        return self._model.no_sync()

    def meets(self, step: int) -> bool:
        """Always."""
        return True

    def after_step(self, step: int) -> None:
        """Counts the gradients."""
        self.traffic.add(self._gradients)

    def finish(self, step: int) -> None:
        """Nothing is left to do."""

    def alike(self, step: int) -> bool:
        """Always."""
        return True

    def state_dict(self) -> dict[str, Tensor]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Nothing."""

    def unwrap(self) -> None:
        """Nothing: it is."""


class LocalSGD:
    """Every rank steps alone; every ``period`` steps their weights become their mean. Before ``start``: as :class:`DDP`.

    A round ends with step t (from 0) where t + 1 - ``start`` is a multiple of ``period``. Averaged are all parameters, also
    those that another rule than the optimiser moves (a teacher), and the running statistics of batch norms; other
    buffers become rank 0's, as under DDP. ``buffers``: the optimiser's state is kept by each rank (``maintain``),
    forgotten (``reset``: as at the first step, bias corrections too) or averaged too (``average``).

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
        """``method`` itself, or under DDP where there are synchronous steps.

        Raises: ``RunError`` on every rank where the ranks' models differ in a name, shape or dtype.
        """
        refuse_other_models(method)
        collectives.broadcast_in_place([*method.parameters(), *method.buffers()])
        self.trained, self._optimizer = method, optimizer
        self._ddp = DDP()
        self._model = self._ddp.wrap(method, optimizer) if self.start else method
        self._ddp.traffic = self.traffic
        return self._model

    def hold(self, step: int, last: bool) -> AbstractContextManager:
        """Gradients stay on their rank from step ``start`` on."""
        return self._ddp.hold(step, last and step < self.start) if self.start else contextlib.nullcontext()

    def meets(self, step: int) -> bool:
        """In synchronous steps, and where a round ends."""
        return step < self.start or self.ends_round(step) or collectives.world_size() == 1

    def ends_round(self, step: int) -> bool:
        """Whether a round ends with ``step``."""
        return (step + 1 - self.start) % self.period == 0

    def level(self, step: int) -> bool:
        """Whether after ``step`` every rank has the same weights."""
        return step < self.start or self.ends_round(step) or collectives.world_size() == 1

    def after_step(self, step: int) -> None:
        """Averages where a round ends."""
        if step < self.start:
            self._ddp.after_step(step)
        elif self.ends_round(step):
            self._average()

    def finish(self, step: int) -> None:
        """Averages what a last, incomplete round left."""
        if not self.level(step):
            self._average()

    def alike(self, step: int) -> bool:
        """Where weights are level, and the optimiser's state was never any rank's own, or is no longer."""
        if collectives.world_size() == 1 or step < self.start:
            return True
        return self.buffers != "maintain" and self.level(step)

    def state_dict(self) -> dict[str, Tensor]:
        """Nothing: where a round stands follows from the step."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Nothing."""

    def unwrap(self) -> None:
        """Nothing: it is."""

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
            self._optimizer.state.clear()  # every optimiser makes it anew, as at its first step


def _running_statistics(module: nn.Module) -> list[Tensor]:
    """The floating running statistics of batch norms; their count of batches is none."""
    norms = [layer for layer in module.modules() if isinstance(layer, _NormBase)]
    found = [buffer for layer in norms for buffer in (layer.running_mean, layer.running_var)]
    return [buffer for buffer in found if buffer is not None]


def running_means(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """An optimiser's state that is a mean of gradients or their squares: of its parameter's shape, the counter apart.

    Raises: ``ValueError`` for 8-bit codes, whose mean means nothing.
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
    """Raises ``RunError`` on every rank where the ranks' models differ in a name, shape or dtype."""
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
