# SPDX-License-Identifier: Apache-2.0
"""Translates Slurm's environment variables to torchrun's, for a process that ``srun`` started without torchrun."""

import os
import re
from collections.abc import Mapping

from recipes_lib.errors import LaunchError

_FIRST_PORT, _PORTS = 15_000, 15_000
"""First port and number of ports for the rendezvous. They are below the ports of clients, which begin at 32,768."""


def variables(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK``, ``MASTER_ADDR`` and ``MASTER_PORT`` of a task in a Slurm step.

    The dict is empty outside a step (in the shell of ``sbatch`` or ``salloc``) and in a step of one task.
    ``MASTER_ADDR`` and ``MASTER_PORT`` are taken from the environment if they are set there.

    Raises: ``LaunchError`` if Slurm's variables do not identify the task.
    """
    step = environment.get("SLURM_STEP_ID", environment.get("SLURM_STEPID"))
    tasks = environment.get("SLURM_STEP_NUM_TASKS", environment.get("SLURM_NTASKS"))
    if step is None or tasks in (None, "1"):
        return {}
    names = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_JOB_ID")
    numbers = {name: environment.get(name, "") for name in names} | {
        "SLURM_STEP_ID": step,
        "SLURM_STEP_NUM_TASKS": tasks,
    }
    for name, value in numbers.items():
        if not value.isdecimal():
            raise LaunchError(
                f"This is a task of a Slurm step, and {name} = {value!r} is no number, so the other tasks cannot be found. "
                "Start with torchrun, or with one task: srun --ntasks 1."
            )
    job = int(numbers["SLURM_JOB_ID"])
    return {
        "RANK": numbers["SLURM_PROCID"],
        "WORLD_SIZE": tasks,
        "LOCAL_RANK": numbers["SLURM_LOCALID"],
        "MASTER_ADDR": environment.get("MASTER_ADDR") or _first_host(environment),
        # equal in all tasks of a step, but different for steps that share a machine
        "MASTER_PORT": environment.get("MASTER_PORT") or str(_FIRST_PORT + (job * 31 + int(step)) % _PORTS),
    }


def _first_host(environment: Mapping[str, str]) -> str:
    """The machine of task 0: the first in the step's list, which Slurm writes as ``node[08-10,12],other1``."""
    nodes = environment.get("SLURM_STEP_NODELIST", "")
    if found := re.match(r"([^\[,]+)(?:\[([^\],-]+)[^\]]*\]([^,\[]*))?", nodes):
        return "".join(part or "" for part in found.groups())
    if address := environment.get("SLURM_LAUNCH_NODE_IPADDR"):
        return address
    raise LaunchError(
        "This is a task of a Slurm step, and neither SLURM_STEP_NODELIST nor SLURM_LAUNCH_NODE_IPADDR says on which machine "
        "task 0 is. Set MASTER_ADDR, or start with torchrun."
    )
