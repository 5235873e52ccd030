# SPDX-License-Identifier: Apache-2.0
"""Distributed training: collectives with gradients, cross-rank batch norm, strategies, start and supervision."""

from recipes_lib.distributed.fsdp import FSDP
from recipes_lib.distributed.slowmo import SlowMo
from recipes_lib.distributed.sync import DDP, LocalSGD

__all__ = ["DDP", "FSDP", "LocalSGD", "SlowMo"]
