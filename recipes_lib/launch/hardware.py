# SPDX-License-Identifier: Apache-2.0
"""Memory and peak rates of GPUs from the vendor's data sheets. This module imports no torch.

Rates are for dense products; the sheets' larger numbers "with sparsity" are halved. ``float32`` is the rate outside the
tensor cores, which torch uses for float32 matrix products by default (convolutions may use the faster TF32).

Source: NVIDIA's data sheets, in TFLOPS for float32 and bfloat16. SXM boards: H100 and H200 (67; 1,979 with sparsity, so
989), A100 (19.5; 312), V100 (15.7; no bfloat16). T4 (8.1; no bfloat16).
"""

from dataclasses import dataclass

from recipes_lib.errors import ConfigError, nearest


@dataclass(frozen=True, kw_only=True)
class GPU:
    """The properties of a GPU that a plan needs."""

    title: str
    memory: float
    """Memory in bytes; the sheets count a GB as 10**9 bytes."""
    float32: float
    """Peak operations per second in float32."""
    bfloat16: float | None
    """Peak operations per second in bfloat16 on tensor cores; ``None``: the GPU has no bfloat16."""

    def rate(self, precision: str) -> float:
        """Peak operations per second at a ``train.precision``.

        Raises: ``ConfigError`` if the GPU does not support this precision.
        """
        if precision == "fp32":
            return self.float32
        if self.bfloat16 is None:
            able = ", ".join(name for name, gpu in GPUS.items() if gpu.bfloat16)
            raise ConfigError(
                f"train.precision = {precision} is not for {self.title}: it has no bfloat16. Use --train.precision "
                f"fp32, or one of these GPUs: {able}."
            )
        return self.bfloat16


GPUS = {
    "h200": GPU(title="H200 SXM", memory=141e9, float32=67e12, bfloat16=989e12),
    "h100": GPU(title="H100 SXM", memory=80e9, float32=67e12, bfloat16=989e12),
    "a100": GPU(title="A100 SXM 80 GB", memory=80e9, float32=19.5e12, bfloat16=312e12),
    "a100-40gb": GPU(title="A100 SXM 40 GB", memory=40e9, float32=19.5e12, bfloat16=312e12),
    "v100": GPU(title="V100 SXM 32 GB", memory=32e9, float32=15.7e12, bfloat16=None),
    "t4": GPU(title="T4", memory=16e9, float32=8.1e12, bfloat16=None),
}


def find(name: str) -> GPU:
    """The GPU of this name. Raises: ``ConfigError`` naming the most similar name, and all names."""
    if name not in GPUS:
        raise ConfigError(f"There is no GPU {name!r} in the table. {nearest(name, GPUS)}")
    return GPUS[name]
