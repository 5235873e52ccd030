# SPDX-License-Identifier: Apache-2.0
"""Optimisers, schedules and parameter groups."""

from recipes_lib.optim.lars import LARS
from recipes_lib.optim.stable_adamw import StableAdamW

__all__ = ["LARS", "StableAdamW"]
