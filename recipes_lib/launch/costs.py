# SPDX-License-Identifier: Apache-2.0
"""Computes bytes from a method's parameters: memory per rank, traffic per rank, and the size of a checkpoint."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from recipes_lib.config import OptimConfig, SyncConfig, TrainConfig
from recipes_lib.distributed import fsdp
from recipes_lib.distributed.sync import ring_bytes
from recipes_lib.launch.trace import Uses
from recipes_lib.optim import build as optim
from recipes_lib.optim import eight_bit


@dataclass(frozen=True)
class State:
    """The size of an optimiser's state per parameter."""

    copies: int
    """Number of tensors of the parameter's shape, such as running means."""
    constant: int
    """Bytes of all other state, such as a count of steps."""
    eight_bit: bool = False
    """Whether large parameters have their state in 8 bits instead."""

    def bytes(self, weights: Iterable[Tensor]) -> int:
        """The number of bytes of the state of all ``weights``."""
        return sum(
            eight_bit.state_bytes(weight.numel())
            if self.eight_bit and weight.numel() >= eight_bit.LEAST
            else self.copies * weight.nbytes + self.constant
            for weight in weights
        )


def optimizer_state(config: OptimConfig) -> State:
    """The state of the optimiser of ``config``, measured after one step on a parameter of six numbers."""
    weight = nn.Parameter(torch.ones(2, 3, device="cpu"))
    weight.grad = torch.ones_like(weight)
    optimizer = optim.build(config, [{"params": [weight], "decays": True}])
    optimizer.step()
    tensors = [value for value in optimizer.state[weight].values() if isinstance(value, Tensor)]
    copies = [value for value in tensors if value.shape == weight.shape]
    constant = sum(value.nbytes for value in tensors) - sum(value.nbytes for value in copies)
    return State(len(copies), constant, eight_bit=config.name == "adamw8bit")


def nbytes(tensors: Iterable[Tensor]) -> int:
    """The number of bytes of all ``tensors`` together."""
    return sum(tensor.nbytes for tensor in tensors)


def trained(method: nn.Module) -> list[nn.Parameter]:
    """The parameters of ``method`` that get a gradient."""
    return [weight for weight in method.parameters() if weight.requires_grad]


def optimised(method: nn.Module) -> list[nn.Parameter]:
    """The parameters of ``method`` that the optimiser updates."""
    return [weight for group in method.param_groups() for weight in group["params"]]


def memory(method: nn.Module, config: Any, world: int, state: State, simulated: int = 0) -> dict[str, int]:
    """Bytes that rank 0 holds during the whole run, by kind.

    ``weights`` includes teachers and buffers; ``gradients``; ``optimizer``; ``exchange`` is what averaging needs (DDP's
    buckets, SlowMo's two copies of the weights).
    """
    weights, moved = trained(method), optimised(method)
    gradients, exchange = nbytes(weights), 0
    held = nbytes(method.parameters()) + nbytes(method.buffers())
    kept = state.bytes(moved)
    if simulated:  # the stacked weights of all workers, in addition to the method; see ``distributed.simulation``
        held += simulated * nbytes(weights)
        gradients *= simulated
        kept = State(simulated * state.copies, state.constant).bytes(moved)
        exchange = 2 * nbytes(weights)  # SlowMo's copies, which exist for every strategy
    elif world > 1:
        match config.sync.name:
            case "fsdp":
                held = sum(_share(weight, world) for weight in method.parameters()) + nbytes(method.buffers())
                if config.train.accumulate == 1:  # otherwise unsharded gradients add up until the last micro-batch
                    gradients = sum(_share(weight, world) for weight in weights)
                kept = sum(state.copies * _share(weight, world) + state.constant for weight in moved)
            case "ddp":
                exchange = gradients
            case "post_local_sgd":
                exchange = gradients if config.sync.start else 0
            case "slowmo":
                exchange = 2 * nbytes(moved) + (gradients if config.sync.start else 0)
    elif config.sync.name == "slowmo":
        exchange = 2 * nbytes(moved)
    return {"weights": held, "gradients": gradients, "optimizer": kept, "exchange": exchange}


def _share(weight: Tensor, world: int) -> int:
    """Bytes of rank 0's shard of a weight under FSDP, which shards rows; a scalar is not sharded."""
    if not weight.dim():
        return weight.nbytes
    rows = weight.shape[0]
    return weight.nbytes // rows * math.ceil(rows / world)


@dataclass(frozen=True)
class Wire:
    """The traffic of each rank in a run, as :class:`recipes_lib.distributed.sync.Traffic` counts it."""

    bytes: float
    """Bytes that each rank sends."""
    rounds: int
    """Number of averagings."""


def wire(method: nn.Module, config: Any, world: int, steps: int, state: State, blocks: dict[str, Uses]) -> Wire:
    """The traffic of ``steps`` steps. ``blocks``: how often each FSDP block is called per micro-batch."""
    if world == 1:
        return Wire(0.0, 0)
    sync, gradients = config.sync, nbytes(trained(method))
    if sync.name == "ddp":
        return Wire(ring_bytes(steps * gradients, world), steps)
    if sync.name == "fsdp":
        return Wire(ring_bytes(steps * _shared(method, config.train, world, blocks), world), steps)
    whole, alone = min(sync.start, steps), max(0, steps - sync.start)
    rounds = math.ceil(alone / sync.period)  # the last round may be shorter
    payload = nbytes(method.parameters()) + nbytes(_running_statistics(method))
    if sync.buffers == "average":
        payload += state.copies * nbytes(optimised(method))
    return Wire(ring_bytes(whole * gradients + rounds * payload, world), whole + rounds)


def _running_statistics(method: nn.Module) -> list[Tensor]:
    norms = [layer for layer in method.modules() if isinstance(layer, _NormBase)]
    return [buffer for layer in norms for buffer in (layer.running_mean, layer.running_var) if buffer is not None]


def _shared(method: nn.Module, train: TrainConfig, world: int, blocks: dict[str, Uses]) -> float:
    """Bytes of a step under FSDP, counted as all-reduces: an all-gather or a reduce-scatter counts half of its bytes.

    The number is exact if all blocks are trained. With a teacher's blocks among them, torch may gather one more block
    per micro-batch, because in the backward pass it gathers in advance the block that it expects next.
    """
    names = {module: name for name, module in method.named_modules()}
    left = {weight for weight in method.parameters() if weight.dim()}
    averaged = float(nbytes(weight for weight in trained(method) if not weight.dim()))
    for block in fsdp.blocks(method):  # inner blocks first, since a weight belongs to the innermost block
        own = [weight for weight in block.parameters() if weight in left]
        left -= set(own)
        uses = blocks[names[block]]
        # gathered in each forward pass, and again in a backward pass; gradients are scattered in the last micro-batch
        averaged += train.accumulate * (2 * uses.graded + uses.plain) * _padded(own, world) / 2
        averaged += uses.graded * _padded([weight for weight in own if weight.requires_grad], world) / 2
    averaged += train.accumulate * _padded(left, world) / 2
    return averaged + _padded([weight for weight in left if weight.requires_grad], world) / 2


def _padded(weights: Iterable[Tensor], world: int) -> int:
    return sum(world * _share(weight, world) for weight in weights)


def checkpoint(
    method: nn.Module, sync: SyncConfig, train: TrainConfig, world: int, state: State, simulated: int = 0
) -> int:
    """Bytes of one checkpoint's tensors: weights, optimiser state, and the strategy's own state."""
    moved = optimised(method)
    model, kept = nbytes(method.state_dict().values()), state.bytes(moved)
    slow = 2 * nbytes(moved) if sync.name == "slowmo" else 0
    if simulated:
        kept = State(simulated * state.copies, state.constant).bytes(moved)
        return model + kept + simulated * nbytes(trained(method)) + slow
    return (model + kept) * (1 if world == 1 or _alike(sync, train) else world) + slow


def _alike(sync: SyncConfig, train: TrainConfig) -> bool:
    """Whether all ranks have the same state at every checkpoint."""
    if sync.name in ("ddp", "fsdp"):
        return True
    return sync.buffers != "maintain" and train.checkpoint_every % sync.period == sync.start % sync.period == 0
