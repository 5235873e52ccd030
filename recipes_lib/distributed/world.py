# SPDX-License-Identifier: Apache-2.0
"""Joins the other processes of a run, from torchrun's or Slurm's environment variables, and leaves them.

If joining fails, it raises. If each process continued alone, as many separate models as processes would be trained.
"""

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

import torch
import torch.distributed as dist

from recipes_lib.distributed import slurm, watch
from recipes_lib.errors import LaunchError

_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_PATIENCE = timedelta(minutes=30)  # how long other ranks wait while rank 0 scores or writes


@dataclass(frozen=True)
class World:
    """The rank and the device of this process, and the world size."""

    rank: int
    """Number of this process, from 0."""
    size: int
    """World size: number of processes on all machines."""
    device: torch.device
    """The device that this process computes on."""


def start(
    device: Literal["auto", "cpu", "cuda"] = "auto", *, patience: timedelta | None = None, timeout: float = 0.0
) -> World:
    """Joins the other processes of the run: with gloo on CPUs, with NCCL on GPUs (and gloo for tensors in main memory).

    Without torchrun's variables in the environment, and outside a Slurm step of several tasks, this is the only
    process, and nothing is set up. A second call does not join again.

    ``patience``: how long a process waits for another before it gives up, half an hour by default. It is at least twice
    ``timeout`` seconds, so that a :class:`~recipes_lib.distributed.watch.Watch` can first say more about the cause.
    torchrun ends all processes as soon as one dies; if torchrun itself has ended, each process is asked to stop.

    Raises: ``LaunchError`` if only some of the variables are set, a variable is not a number or is out of range, a GPU
    is missing, or the processes do not find each other.
    """
    watch.heed_launcher()
    _ask_slurm()
    found = {name: os.environ[name] for name in _VARIABLES if name in os.environ}
    missing = [name for name in _VARIABLES if name not in found]
    if missing and found:
        raise LaunchError(
            f"The environment has {', '.join(found)} but not {', '.join(missing)}, so the other processes cannot be "
            "found. Start with torchrun, or unset them to train on one process."
        )
    rank, size, local_rank = _places() if found else (0, 1, 0)
    here = _device(device, local_rank)
    if size > 1 and not dist.is_initialized():
        patience = max(patience or _PATIENCE, timedelta(seconds=2 * timeout))
        _join(here, rank, size, f"{found['MASTER_ADDR']}:{found['MASTER_PORT']}", patience)
    return World(rank, size, here)


def stop() -> None:
    """Leaves the other processes, if there are any."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _ask_slurm() -> None:
    """Sets torchrun's variables in a task that ``srun`` started instead of torchrun."""
    if not any(name in os.environ for name in _VARIABLES[:3]):
        os.environ.update(slurm.variables())


def _places() -> tuple[int, int, int]:
    """The rank, the world size and the local rank (the number on this machine), from the environment."""
    rank, size, local_rank = (_number(name) for name in _VARIABLES[:3])
    port = _number("MASTER_PORT")
    for fits, name, value, allowed in (
        (size >= 1, "WORLD_SIZE", size, "at least 1"),
        (0 <= rank < max(size, 1), "RANK", rank, f"at least 0 and below WORLD_SIZE = {size}"),
        (0 <= local_rank < max(size, 1), "LOCAL_RANK", local_rank, f"at least 0 and below WORLD_SIZE = {size}"),
        (0 <= port < 2**16, "MASTER_PORT", port, "a port, from 0 to 65535"),
    ):
        if not fits:
            raise LaunchError(
                f"{name} = {value} in the environment is wrong: it must be {allowed}. Start with torchrun."
            )
    return rank, size, local_rank


def _number(name: str) -> int:
    try:
        return int(os.environ[name])
    except ValueError:
        raise LaunchError(
            f"{name} = {os.environ[name]!r} in the environment is not a number. Start with torchrun."
        ) from None


def _device(wanted: str, local_rank: int) -> torch.device:
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if torch.cuda.device_count() == 1 and ("SLURM_GPUS_PER_TASK" in os.environ or "SLURM_TRES_PER_TASK" in os.environ):
        local_rank = 0  # each task of the Slurm step sees only its own GPU
    if local_rank >= torch.cuda.device_count():
        raise LaunchError(
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
        raise LaunchError(f"Process {rank} of {size} could not join the others at {address}: {reason}") from error
