# SPDX-License-Identifier: Apache-2.0
"""Saves and restores checkpoints of ranks with different weights or optimiser states, as within a round of local SGD.

Beside rank 0's ``model.safetensors`` and ``optimizer.safetensors`` there is a file ``rank-K.safetensors`` for each
other rank, and ``sync.safetensors`` with the strategy's own state. The manifest has the checksums of all files, so a
checkpoint counts as damaged if any of them is missing or altered. All ranks must see the run folder. If all ranks are
equal, only rank 0's files are saved, and any number of processes can resume from them.
"""

import json
from dataclasses import replace
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from recipes_lib.distributed import collectives, fsdp
from recipes_lib.distributed.sync import Strategy
from recipes_lib.errors import RunError
from recipes_lib.models import interchange
from recipes_lib.training import checkpoint
from recipes_lib.training.checkpoint import Checkpoint
from recipes_lib.training.folder import RunFolder


def save(
    folder: RunFolder,
    step: int,
    keep: int,
    method: nn.Module,
    optimizer: torch.optim.Optimizer,
    strategy: Strategy,
    *,
    alike: bool,
) -> None:
    """Writes the checkpoint after ``step`` complete steps. All ranks call it; ``alike``: all ranks have the same state.

    Raises: ``RunError`` on every rank if one rank cannot write; see :func:`checkpoint.save`.
    """
    tensors, facts = checkpoint.flatten_optimizer(optimizer, _named(method))
    model, tensors = fsdp.gather(method.state_dict()), fsdp.gather(tensors)
    size = 1 if alike else collectives.world_size()
    traffic = strategy.traffic
    facts["sync"] = {"ranks": size, "averaged": traffic.averaged, "rounds": traffic.rounds}
    shared = strategy.state_dict()
    records: dict[str, dict] = {}

    def write_own() -> dict[str, dict]:
        hidden, rank = checkpoint.partial(folder.checkpoints, step), collectives.rank()
        with checkpoint.disk_errors(folder.checkpoints, step):
            if rank == 0:
                return (
                    {"sync.safetensors": checkpoint.write_file(hidden / "sync.safetensors", shared)} if shared else {}
                )
            own = {f"model/{name}": value for name, value in model.items()}
            own |= {f"optimizer/{name}": value for name, value in tensors.items()}
            name = _file(rank)
            return {name: checkpoint.write_file(hidden / name, own, {"values": json.dumps(facts["values"])})}

    def complete() -> None:
        checkpoint.complete(folder.checkpoints, step, model, tensors, facts, keep, records)
        folder.set_state("running", step)

    def begin() -> None:
        folder.require_whole()
        checkpoint.begin(folder.checkpoints, step)

    collectives.from_main(begin)
    for record in collectives.from_each(write_own) if size > 1 else [collectives.from_main(write_own)]:
        records |= record
    collectives.from_main(complete)  # a full disk stops all ranks, not only rank 0


def restore(folder: RunFolder, method: nn.Module, optimizer: torch.optim.Optimizer, strategy: Strategy) -> int:
    """Loads every rank's state from the newest undamaged checkpoint; returns the step to continue from, 0 without one.

    Raises: ``RunError`` if all checkpoints are damaged or missing, or belong to another model, or to another number of
    ranks with different states.
    """
    step = collectives.from_main(lambda: newest(folder))
    if step is None:
        return 0
    saved = checkpoint.read(folder.checkpoints, step)
    # a checkpoint of a version without strategies has no "sync"; its ranks were all equal
    facts = saved.facts.get("sync", {"ranks": 1, "averaged": 0, "rounds": 0})
    if facts["ranks"] > 1:
        saved = _own_share(saved, facts["ranks"], collectives.world_size(), collectives.rank())
    saved = replace(saved, model=fsdp.cut(saved.model, method), optimizer=fsdp.cut(saved.optimizer, method))
    interchange.fill(method, saved.model, f"the weights in {saved.path}")
    checkpoint.restore_optimizer(optimizer, _named(method), saved)
    if strategy.state_dict():
        strategy.load_state_dict(checkpoint.read_weights(saved.path / "sync.safetensors"))
    strategy.traffic.averaged, strategy.traffic.rounds = facts["averaged"], facts["rounds"]
    return step


def newest(folder: RunFolder) -> int | None:
    """The step of the newest undamaged checkpoint, ``None`` at a run's first start; removes killed processes' remains.

    Raises: ``RunError`` if all checkpoints are damaged, or there were some that are gone.
    """
    checkpoint.sweep(folder.checkpoints)
    step = checkpoint.find(folder.checkpoints, folder.warn)
    if step is None:
        folder.refuse_lost()
    return step


def _own_share(saved: Checkpoint, ranks: int, size: int, rank: int) -> Checkpoint:
    if ranks != size:
        raise RunError(
            f"{saved.path} was written by {ranks} processes whose weights or momentum differ, and there are now {size}. "
            f"Go on with {ranks}. (A checkpoint at the end of a round, with sync.buffers reset or average, serves any number.)"
        )
    if rank == 0:
        return saved
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}}
    path = saved.path / _file(rank)
    for key, value in checkpoint.read_weights(path).items():
        part, name = key.split("/", 1)
        parts[part][name] = value
    with safe_open(path, "pt") as file:
        facts: dict[str, Any] = {**saved.facts, "values": json.loads(file.metadata()["values"])}
    return Checkpoint(saved.step, saved.path, parts["model"], parts["optimizer"], facts)


def _file(rank: int) -> str:
    return f"rank-{rank}.safetensors"


def _named(method: nn.Module) -> dict[str, nn.Parameter]:
    return dict(method.named_parameters())
