# SPDX-License-Identifier: Apache-2.0
"""Where a process stands that ``srun`` started without torchrun: what Slurm says, in torchrun's words."""

import os
import re
from collections.abc import Mapping

from recipes_lib.errors import LaunchError

_FIRST_PORT, _PORTS = 15_000, 15_000
"""Below the ports that systems give out to clients, which begin at 32,768."""


def variables(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK``, ``MASTER_ADDR``, ``MASTER_PORT`` of a task in a Slurm step of several.

    Empty outside of a step (in the shell of ``sbatch`` or ``salloc``), and in a step of one task. ``MASTER_ADDR`` and
    ``MASTER_PORT`` are taken as they are where the environment has them.

    Raises: ``LaunchError`` where Slurm's variables do not say which task this is.
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
        # the same in all tasks of a step, and another in steps that share a machine
        "MASTER_PORT": environment.get("MASTER_PORT") or str(_FIRST_PORT + (job * 31 + int(step)) % _PORTS),
    }


def _first_host(environment: Mapping[str, str]) -> str:
    """The machine of task 0: the first one of the step's, which Slurm gives as ``node[08-10,12],other1``."""
    nodes = environment.get("SLURM_STEP_NODELIST", "")
    if found := re.match(r"([^\[,]+)(?:\[([^\],-]+)[^\]]*\]([^,\[]*))?", nodes):
        return "".join(part or "" for part in found.groups())
    if address := environment.get("SLURM_LAUNCH_NODE_IPADDR"):
        return address
    raise LaunchError(
        "This is a task of a Slurm step, and neither SLURM_STEP_NODELIST nor SLURM_LAUNCH_NODE_IPADDR says on which machine "
        "task 0 is. Set MASTER_ADDR, or start with torchrun."
    )
