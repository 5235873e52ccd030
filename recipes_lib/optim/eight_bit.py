# SPDX-License-Identifier: Apache-2.0
"""bitsandbytes' AdamW, whose running means take 8 bits per number.

The running means of a tensor of 4,096 elements or more are stored in blocks of 256: 8-bit codes and the block's largest
value. Those of smaller tensors stay in 32 bits, where there is little to save. The state of a large tensor is about a
quarter of AdamW's. On a GPU the kernels are fused; on a CPU the means are widened to 32 bits for the step, which saves
memory and takes longer.

Source: Dettmers, Lewis, Shleifer, Zettlemoyer, "8-bit Optimizers via Block-wise Quantization", ICLR 2022.
"""

import logging
from types import ModuleType
from typing import Any

import torch

from recipes_lib.errors import ConfigError

LEAST = 4096
"""The least number of elements for which a tensor's running means are in 8 bits; bitsandbytes' own default."""
BLOCK = 256
"""Number of elements that share one largest value."""


def adamw(groups: list[dict[str, Any]], **hyper: Any) -> torch.optim.Optimizer:
    """Builds bitsandbytes' ``AdamW8bit`` over ``groups``.

    Raises: ``ConfigError`` if :func:`check` does for a parameter's device.
    """
    for group in groups:
        for weight in group["params"]:
            check(weight.device)
    return _package().optim.AdamW8bit(groups, **hyper, min_8bit_size=LEAST)


def check(device: torch.device) -> None:
    """Raises ``ConfigError`` if bitsandbytes is not installed or has no 8-bit optimiser for ``device``."""
    version = _package().__version__
    key = {"cpu": "CPU", "cuda": "CUDA", "xpu": "XPU", "mps": "MPS"}.get(device.type, "")
    name = "bitsandbytes::optimizer_update_8bit_blockwise"
    if not key or not torch._C._dispatch_has_kernel_for_dispatch_key(name, key):
        raise ConfigError(
            f"optim.name adamw8bit does not run on {device.type} with bitsandbytes {version}, which has no such optimiser "
            "for it. Use --optim.name adamw."
        )


def state_bytes(elements: int) -> int:
    """The number of bytes of the optimiser state of a tensor of ``elements`` (at least :data:`LEAST`) elements."""
    # two running means, each: an 8-bit code per element, a float32 per block, a float32 table of the 256 codes' values
    return 2 * (elements + 4 * -(-elements // BLOCK) + 4 * 256)


def _package() -> ModuleType:
    # importing it logs a warning about a downloadable kernel for 4-bit products, which is not used here
    talkative = logging.getLogger("bitsandbytes.backends.cpu.ops")
    level = talkative.level
    talkative.setLevel(logging.ERROR)
    try:
        import bitsandbytes
    except ImportError:
        raise ConfigError(
            "optim.name adamw8bit needs bitsandbytes, which is not installed: pip install 'ssl-cookbook[lowbit]', or use "
            "--optim.name adamw."
        ) from None
    finally:
        talkative.setLevel(level)
    return bitsandbytes
