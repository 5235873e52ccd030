# SPDX-License-Identifier: Apache-2.0
"""bitsandbytes' AdamW, whose running means take 8 bits a number.

A tensor of 4,096 elements or more has its means in blocks of 256: 8-bit codes and the block's largest value. Smaller
ones are left in 32 bits, where there is little to save. The state of a large tensor is about a quarter of AdamW's. On a
GPU its kernels are fused; on a CPU the means are made 32 bits wide for the step, which saves memory and takes longer.

Source: Dettmers, Lewis, Shleifer, Zettlemoyer, "8-bit Optimizers via Block-wise Quantization", ICLR 2022.
"""

import logging
from types import ModuleType
from typing import Any

import torch

from recipes_lib.errors import ConfigError

LEAST = 4096
"""Elements from which on a tensor's means are in 8 bits; bitsandbytes' own default."""
BLOCK = 256
"""Elements that share one largest value."""


def adamw(groups: list[dict[str, Any]], **hyper: Any) -> torch.optim.Optimizer:
    """bitsandbytes' ``AdamW8bit`` over ``groups``.

    Raises: ``ConfigError`` as :func:`check`.
    """
    for group in groups:
        for weight in group["params"]:
            check(weight.device)
    return _package().optim.AdamW8bit(groups, **hyper, min_8bit_size=LEAST)


def check(device: torch.device) -> None:
    """Raises ``ConfigError`` where bitsandbytes is not installed, or has no 8-bit optimiser for ``device``."""
    version = _package().__version__
    key = {"cpu": "CPU", "cuda": "CUDA", "xpu": "XPU", "mps": "MPS"}.get(device.type, "")
    name = "bitsandbytes::optimizer_update_8bit_blockwise"
    if not key or not torch._C._dispatch_has_kernel_for_dispatch_key(name, key):
        raise ConfigError(
            f"optim.name adamw8bit does not run on {device.type} with bitsandbytes {version}, which has no such optimiser "
            "for it. Use --optim.name adamw."
        )


def state_bytes(elements: int) -> int:
    """Bytes of the state of a tensor of at least :data:`LEAST` elements: codes, largest values, the codes' two tables."""
    return 2 * (elements + 4 * -(-elements // BLOCK) + 4 * 256)


def _package() -> ModuleType:
    # at its import it warns of a kernel for 4-bit products that it would like to download
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
