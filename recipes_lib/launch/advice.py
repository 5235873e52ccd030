# SPDX-License-Identifier: Apache-2.0
"""What a plan takes for granted, and what it warns of, in words."""

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


def assumptions(config: Any, world: int, gpu: GPU, utilisation: float) -> dict[str, str | float]:
    """What the figures rest on, by what it is about; ``utilisation`` and ``peak_flops`` are numbers."""
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
    if getattr(config.sync, "workers", 0):
        found["workers"] = f"{config.sync.workers} simulated in one process: nothing is sent"
    return found


def warnings(config: Any, gpu: GPU, memory: Mapping[str, int]) -> tuple[str, ...]:
    """Lines to read before the run is started."""
    found = []
    if memory["total"] > gpu.memory:
        found.append(_too_large(config, gpu, memory))
    if config.train.device == "cpu":
        found.append("train.device is cpu: as it stands this run uses no GPU. For one: --train.device auto.")
    return tuple(found)


def _too_large(config: Any, gpu: GPU, memory: Mapping[str, int]) -> str:
    need, has = (f"{size / 1e9:,.1f} GB" for size in (memory["total"], gpu.memory))
    varying = memory["activations"] + memory["inputs"]
    fixed = memory["total"] - varying
    ways = []
    if fixed < gpu.memory:  # else a smaller micro-batch is no way out
        ways.append(f"{varying / (gpu.memory - fixed):.1f} times as many GPUs, or --train.accumulate with as many")
    if config.sync.name == "ddp":
        whole = "" if config.optim.name in ("adamw", "sgd") else " --optim.name adamw"
        ways.append(f"--sync.name fsdp{whole} (weights, gradients and optimiser {fixed / 1e9:,.1f} GB, in shares)")
    ways.append("a GPU with more memory")
    return (
        f"A GPU needs {need}, and {gpu.title} has {has}. Ways out: {'; '.join(ways)}. A loss that compares the images of a batch "
        "sees fewer of them under --train.accumulate."
    )
