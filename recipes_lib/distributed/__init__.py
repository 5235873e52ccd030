# SPDX-License-Identifier: Apache-2.0
"""What several processes agree on: collectives that carry gradients, cross-rank batch norm, strategies, start and stop."""

from recipes_lib.distributed.fsdp import FSDP
from recipes_lib.distributed.slowmo import SlowMo
from recipes_lib.distributed.sync import DDP, LocalSGD

__all__ = ["DDP", "FSDP", "LocalSGD", "SlowMo"]
