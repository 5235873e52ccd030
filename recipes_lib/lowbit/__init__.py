# SPDX-License-Identifier: Apache-2.0
"""Linear layers in few bits, for training: SwitchBack, all-int8 and simulated fp8. Drop-in for ``nn.Linear``."""

from recipes_lib.lowbit.convert import KEPT, Kind, convert
from recipes_lib.lowbit.fp8 import Fp8Linear
from recipes_lib.lowbit.linear import Int8Linear, SwitchBackLinear, SwitchBackMLinear, SwitchBackQLinear

__all__ = [
    "KEPT",
    "Fp8Linear",
    "Int8Linear",
    "Kind",
    "SwitchBackLinear",
    "SwitchBackMLinear",
    "SwitchBackQLinear",
    "convert",
]
