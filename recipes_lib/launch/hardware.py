# SPDX-License-Identifier: Apache-2.0
"""GPUs as their vendor's data sheets have them. This module imports no torch.

Rates are of dense products, where the sheets' larger figures are "with sparsity". ``float32`` is the rate outside the tensor
cores: torch multiplies float32 matrices there unless it is told otherwise (convolutions it may do in TF32, faster).

Source: NVIDIA's data sheets of the SXM boards: H100 and H200 (67 and, with sparsity, 1,979 TFLOPS), A100 (19.5 and 312),
V100 (15.7; no bfloat16); of the T4 (8.1; no bfloat16).
"""

from dataclasses import dataclass

from recipes_lib.errors import ConfigError, nearest


@dataclass(frozen=True, kw_only=True)
class GPU:
    """What a plan needs to know of a GPU."""

    title: str
    memory: float
    """Bytes; the sheets count a GB as 10**9."""
    float32: float
    """Operations a second."""
    bfloat16: float | None
    """Operations a second in its tensor cores; none: it has no bfloat16."""

    def rate(self, precision: str) -> float:
        """Peak operations a second at a ``train.precision``.

        Raises: ``ConfigError`` where the GPU has no such arithmetic.
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
    """The GPU of this name. Raises: ``ConfigError`` naming the nearest one, and all of them."""
    if name not in GPUS:
        raise ConfigError(f"There is no GPU {name!r} in the table. {nearest(name, GPUS)}")
    return GPUS[name]
