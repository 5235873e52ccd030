# SPDX-License-Identifier: Apache-2.0
"""Joining the other processes of a run, as torchrun's environment says, and leaving them.

Set-up that fails raises. Going on alone would train as many separate models as there are processes.
"""

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

import torch
import torch.distributed as dist

from recipes_lib.errors import RunError

_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_PATIENCE = timedelta(minutes=30)  # other ranks wait that long while rank 0 scores or writes


@dataclass(frozen=True)
class World:
    """Where this process stands."""

    rank: int
    """This process's number among all, from 0."""
    size: int
    """Number of processes, over all machines."""
    device: torch.device
    """What this process computes on."""


def start(device: Literal["auto", "cpu", "cuda"] = "auto", *, patience: timedelta | None = None) -> World:
    """Joins the run's other processes: gloo on CPUs, NCCL on GPUs (gloo beside it, for what stays in main memory).

    Without torchrun's variables in the environment this is the only process, and nothing is set up. A second call
    finds the processes joined. ``patience``: how long a process waits for another before it gives up, half an hour
    where it is not given; torchrun ends all of them at once where one dies, so a long one only delays the news of one
    that hangs.

    Raises: ``RunError`` where only some of the variables are set, one is no number, a GPU is missing, or the
    processes do not find each other.
    """
    found = {name: os.environ[name] for name in _VARIABLES if name in os.environ}
    missing = [name for name in _VARIABLES if name not in found]
    if missing and found:
        raise RunError(
            f"The environment has {', '.join(found)} but not {', '.join(missing)}, so the other processes cannot be "
            "found. Start with torchrun, or unset them to train on one process."
        )
    rank, size, local_rank = (_number(name) for name in _VARIABLES[:3]) if found else (0, 1, 0)
    here = _device(device, local_rank)
    if size > 1 and not dist.is_initialized():
        _join(here, rank, size, f"{found['MASTER_ADDR']}:{found['MASTER_PORT']}", patience or _PATIENCE)
    return World(rank, size, here)


def stop() -> None:
    """Leaves the other processes, where there are any."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _number(name: str) -> int:
    try:
        return int(os.environ[name])
    except ValueError:
        raise RunError(
            f"{name} = {os.environ[name]!r} in the environment is not a number. Start with torchrun."
        ) from None


def _device(wanted: str, local_rank: int) -> torch.device:
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise RunError(
            f"Process {local_rank} of this machine has no GPU: torch sees {torch.cuda.device_count()}. "
            "Start one process a GPU (torchrun --nproc-per-node), or use --train.device cpu."
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def _join(device: torch.device, rank: int, size: int, address: str, patience: timedelta) -> None:
    on_gpu = device.type == "cuda"
    try:
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
            rank=rank,
            world_size=size,
            timeout=patience,
            device_id=device if on_gpu else None,
        )
    except (RuntimeError, ValueError) as error:  # torch's DistError is a RuntimeError
        reason = str(error).strip().splitlines()[0]
        raise RunError(f"Process {rank} of {size} could not join the others at {address}: {reason}") from error
