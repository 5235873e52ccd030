# SPDX-License-Identifier: Apache-2.0
"""The assumptions and the warnings of a plan, in words."""

from collections.abc import Mapping
from typing import Any

from recipes_lib.launch.hardware import GPU

_EIGHT_BIT_PRODUCTS = {
    "switchback": "2",
    "switchback_m": "2",
    "switchback_q": "2",
    "fp8_switchback": "2",
    "int8": "3",
    "fp8": "3",
}


def assumptions(config: Any, world: int, gpu: GPU, utilisation: float, simulated: int) -> dict[str, str | float]:
    """The assumptions of a plan, by topic; ``utilisation`` and ``peak_flops`` are numbers, all others sentences."""
    precision, linear = config.train.precision, config.model.linear
    found: dict[str, str | float] = {
        "utilisation": utilisation,
        "peak_flops": gpu.rate(precision),
        "hours": f"assumed {utilisation:.0%} of the peak of {gpu.title} at {precision}; measure yours: a few hundred steps say "
        "more. Data loading, evaluation and waiting for the network are left out",
        "flops": "matrix products, convolutions and attention (its scores computed again backward), nothing else",
        "memory": "the sum of what is listed, an estimate: kernels' workspace, what a forward pass drops again, fragmentation and "
        "the CUDA context come on top, but gradients come as activations go. Activations are those of torch's CPU kernels; "
        "a GPU's were not measured",
        "wire": "a ring's bytes for what sync averages; what losses and cross-rank batch norms gather, and broadcasts, are "
        "left out",
        "checkpoints": "tensors; the final model.safetensors comes on top",
    }
    if precision == "fp32":
        found["precision"] = (
            "float32 products outside the tensor cores; in bf16 (--train.precision bf16) it is another run"
        )
    if linear != "full":
        found["low_bit"] = (
            f"{linear}: {_EIGHT_BIT_PRODUCTS[linear]} of the 3 products of a converted layer are in 8 bits; all are counted at "
            "the full rate and their memory as full layers'"
        )
    if config.sync.name == "fsdp" and world > 1:
        found["fsdp"] = (
            "weights that are gathered while a block computes come on top of the memory; with a teacher, torch may gather a "
            "block more for each micro-batch"
        )
    if simulated:
        found["workers"] = f"{simulated} simulated in one process: nothing is sent"
    return found


def warnings(config: Any, world: int, gpu: GPU, memory: Mapping[str, int], simulated: int) -> tuple[str, ...]:
    """The warnings of a plan: too little memory on a GPU, with ways out, and a run that uses no GPU."""
    found = []
    if memory["total"] > gpu.memory:
        ways = "; ".join(
            [*(() if simulated else _smaller_batches(config, world, gpu, memory)), *_shares(config, world, gpu, memory)]
        )
        need, has = (f"{size / 1e9:,.1f} GB" for size in (memory["total"], gpu.memory))
        found.append(f"A GPU needs {need}, and {gpu.title} has {has}. Ways out: {ways or 'a GPU with more memory'}.")
    if config.train.device == "cpu":
        found.append("train.device is cpu: as it stands this run uses no GPU. For one: --train.device auto.")
    return tuple(found)


def _smaller_batches(config: Any, world: int, gpu: GPU, memory: Mapping[str, int]) -> list[str]:
    """Flags for smaller micro-batches (more GPUs or more accumulation), with the smallest factor that fits; or none."""
    varying = memory["activations"] + memory["inputs"]  # grows with the micro-batch
    room = gpu.memory - (memory["total"] - varying)
    now, batch = config.train.accumulate, config.train.batch_size
    times = [k for k in range(2, batch // (world * now) + 1) if batch % (world * now * k) == 0 and varying <= k * room]
    if not times:
        return []
    losses = "its loss and batch norms see a micro-batch"
    return [f"--gpus or --nodes for {world * times[0]} GPUs", f"--train.accumulate {now * times[0]} ({losses})"]


def _shares(config: Any, world: int, gpu: GPU, memory: Mapping[str, int]) -> list[str]:
    """The flag for FSDP, which divides the memory that does not grow with the micro-batch; or none.

    It is advised if FSDP alone makes the run fit, or if that memory alone is more than a GPU has.
    """
    varying = memory["activations"] + memory["inputs"]
    fixed = memory["total"] - varying
    if config.sync.name != "ddp" or world == 1 or (varying + fixed / world > gpu.memory and fixed < gpu.memory):
        return []
    optimizer = "" if config.optim.name in ("adamw", "sgd") else " --optim.name adamw"
    return [f"--sync.name fsdp{optimizer} (shares of {fixed / 1e9:,.1f} GB)"]
