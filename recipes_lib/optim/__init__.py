# SPDX-License-Identifier: Apache-2.0
"""Optimisers, schedules and parameter groups."""

from recipes_lib.optim.lars import LARS

__all__ = ["LARS"]
