# SPDX-License-Identifier: Apache-2.0
"""Simulates several workers in one process: their weights are stacked, and all workers take a step at once.

The weights follow the same path as those of as many gloo processes under :mod:`recipes_lib.distributed.sync`, but
nothing waits for a network, so a notebook can sweep over periods and numbers of workers. Bytes are counted, times are
not.
"""

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _NormBase

from recipes_lib.config import SyncConfig
from recipes_lib.distributed.slowmo import slow_step
from recipes_lib.distributed.sync import LocalSGD, Traffic, ring_bytes, running_means
from recipes_lib.errors import Faults

Loss = Callable[..., Tensor | Mapping[str, Tensor]]
"""``loss(output, *rest)`` for a worker's batch ``(input, *rest)``: a scalar, or scalars by name with ``loss``."""


@dataclass
class SimulatedTraffic(Traffic):
    """The traffic that the simulated workers would have had."""

    workers: int = 1

    def add(self, count: int) -> None:
        """Counts one averaging of ``count`` bytes, unless there is only one worker."""
        if self.workers > 1:
            self.averaged, self.rounds = self.averaged + count, self.rounds + 1

    @property
    def bytes_sent(self) -> float:
        """The bytes that each worker would have sent, by the ring formula."""
        return ring_bytes(self.averaged, self.workers)


class Workers:
    """``workers`` copies of ``model``, each with its own batches, whose weights the strategy ``sync`` averages.

    ``optimizer`` makes a torch optimiser from the list of stacked weights, each [workers, ...]. It must work element by
    element (SGD, AdamW), because an optimiser that uses the norm of a tensor (LARS, StableAdamW) would take the norm
    over all workers. ``clip``: the largest norm of each worker's gradient; ``None``: no clipping.

    Raises: ``ConfigError`` for a bad ``sync``; ``ValueError`` for fewer than one worker, and for a batch norm in training
    mode, whose running statistics cannot be stacked (put it in eval mode, or use another norm).
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        *,
        workers: int,
        sync: SyncConfig,
        optimizer: Callable[[list[Tensor]], torch.optim.Optimizer],
        clip: float | None = None,
    ) -> None:
        faults = Faults()
        sync.check(faults)
        if sync.name == "fsdp":
            faults.add("sync.name = fsdp cannot be simulated: simulated workers hold whole models. Use another.")
        faults.raise_any()
        if workers < 1:
            raise ValueError(f"workers = {workers} is not allowed: use at least 1")
        for name, layer in model.named_modules():
            if isinstance(layer, _NormBase) and layer.training and layer.track_running_stats:
                raise ValueError(f"{name} is a batch norm in training mode: its running statistics cannot be stacked")
        self.size, self.sync, self.clip = workers, sync, clip
        self.traffic, self.done = SimulatedTraffic(workers=workers), 0
        self.figures: dict[str, Tensor] = {}
        self._norms: Tensor | None = None
        start = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
        fixed = {name: p.detach() for name, p in model.named_parameters() if not p.requires_grad}
        fixed |= dict(model.named_buffers())
        # clone makes real copies: with expand alone all workers would share one tensor
        self.weights = {name: p.expand(workers, *p.shape).clone() for name, p in start.items()}
        self._anchor = {name: p.clone() for name, p in start.items()}
        self._slow = {name: torch.zeros_like(p) for name, p in start.items()}
        self.optimizer = optimizer(list(self.weights.values()))
        never = sys.maxsize
        begin = {"ddp": never, "local_sgd": 0, "post_local_sgd": sync.start, "slowmo": sync.start}[sync.name]
        self._rule = LocalSGD(sync.period, start=begin, buffers=sync.buffers)

        def one(weights: dict[str, Tensor], batch: tuple[Any, ...]) -> tuple[Tensor, dict[str, Tensor]]:
            found = loss(functional_call(model, {**fixed, **weights}, (batch[0],)), *batch[1:])
            return (found["loss"], dict(found)) if isinstance(found, Mapping) else (found, {"loss": found})

        self._gradients = vmap(grad_and_value(one, has_aux=True), randomness="different")

    def step(self, batch: tuple[Any, ...], lr: float | None = None) -> Tensor:
        """Takes one step of every worker and the averaging that is due after it; returns the losses, [workers].

        ``batch``: tensors [workers, batch, ...], or dicts and lists of them. ``lr``: the learning rate of this step;
        ``None``: the optimiser's. Afterwards ``figures`` holds the loss's metrics by name, [workers] each.
        """
        with sdpa_kernel(SDPBackend.MATH):  # vmap has no rule for the fused attention kernels
            gradients, (losses, figures) = self._gradients(self.weights, batch)
        synchronous = self.done < self._rule.start
        if synchronous:
            gradients = {name: g.mean(0).expand_as(g) for name, g in gradients.items()}
        self.figures = {name: value.detach() for name, value in figures.items()}
        for name, weight in self.weights.items():
            weight.grad = gradients[name]
        self._norms = None if self.clip is None else self._measured()
        if self.clip is not None:
            shrink = (self.clip / (self._norms + 1e-6)).clamp_max(1)  # [workers]; 1e-6 as in clip_grad_norm_
            for weight in self.weights.values():
                weight.grad = weight.grad * shrink.view(-1, *[1] * (weight.dim() - 1))
        if lr is not None:
            for group in self.optimizer.param_groups:
                group["lr"] = lr
        self.optimizer.step()
        ends = self._rule.ends_round(self.done)
        if synchronous:
            self._count(self.weights.values())
        elif ends:
            self._average()
        if ends and self.sync.name == "slowmo":
            self._slow_step()
        self.done += 1
        return losses

    def finish(self) -> None:
        """Averages at the end of the run, if the last round is incomplete."""
        last = self.done - 1
        if self.size > 1 and last >= self._rule.start and not self._rule.ends_round(last):
            self._average()
            if self.sync.name == "slowmo":
                self._slow_step()

    def mean(self) -> dict[str, Tensor]:
        """The workers' mean weights, for ``torch.func.functional_call``."""
        return {name: weight.mean(0) for name, weight in self.weights.items()}

    @property
    def grad_norm(self) -> Tensor:
        """The norm of each worker's last gradient before clipping, [workers]."""
        return self._measured() if self._norms is None else self._norms

    def drift(self) -> float:
        """The consensus distance: root mean square over workers of the distance from their mean; 0 after averaging."""
        apart = [(weight - weight.mean(0)).flatten(1) for weight in self.weights.values()]
        return sum(piece.square().sum() for piece in apart).div(self.size).sqrt().item()

    def state_dict(self) -> dict[str, Tensor]:
        """All workers' weights, ``weights/NAME`` [workers, ...], and SlowMo's ``anchor/NAME``, ``slow_momentum/NAME``.

        The caller saves the optimiser's state, ``done`` and ``traffic``.
        """
        parts = {"weights": self.weights}
        if self.sync.name == "slowmo":
            parts |= {"anchor": self._anchor, "slow_momentum": self._slow}
        return {f"{part}/{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Loads the state from :meth:`state_dict`. Raises: ``KeyError`` if a weight has no entry."""
        for key, tensor in self.state_dict().items():
            tensor.copy_(state[key])

    def _measured(self) -> Tensor:
        return torch.stack([weight.grad.flatten(1).square().sum(1) for weight in self.weights.values()]).sum(0).sqrt()

    def _count(self, tensors: Iterable[Tensor]) -> None:
        self.traffic.add(sum(tensor.nbytes for tensor in tensors) // self.size)

    def _average(self) -> None:
        tensors = list(self.weights.values())
        if self.sync.buffers == "average":
            tensors += running_means(self.optimizer)
        for tensor in tensors:
            tensor.copy_((tensor.sum(0) / self.size).expand_as(tensor))
        self._count(tensors)
        if self.sync.buffers == "reset":
            self.optimizer.state.clear()

    def _slow_step(self) -> None:
        names = {weight: name for name, weight in self.weights.items()}
        for group in self.optimizer.param_groups:
            places = [names[weight] for weight in group["params"]]
            anchor, slow = [self._anchor[name] for name in places], [self._slow[name] for name in places]
            means = [weight[0] for weight in group["params"]]  # all workers have equal weights here
            slow_step(anchor, slow, means, float(group["lr"]), self.sync.momentum, self.sync.lr)
            for weight, now in zip(group["params"], anchor, strict=True):
                weight.copy_(now.expand_as(weight))
