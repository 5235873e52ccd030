# SPDX-License-Identifier: Apache-2.0
"""Parity with torch's ``PeriodicModelAverager``, which ends its first round after the step number ``warmup_steps``."""

import pytest
import torch
from torch import nn
from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager

from recipes_lib.distributed import LocalSGD, collectives
from recipes_lib.distributed.local import run_ranks

pytestmark = pytest.mark.distributed

PERIOD, STEPS = 4, 10


def both() -> list[float]:
    """Largest difference of the weights after each step."""
    ours, theirs = (nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 2)) for _ in range(2))
    g = torch.Generator().manual_seed(0)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        p.data = torch.randn(p.shape, generator=g)
        q.data = p.data.clone()
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9) for net in (ours, theirs)]
    sync = LocalSGD(PERIOD)
    sync.wrap(ours, optimizers[0])
    averager = PeriodicModelAverager(period=PERIOD, warmup_steps=PERIOD - 1)
    apart = []
    for step in range(STEPS):
        g = torch.Generator().manual_seed(100 * collectives.rank() + step)
        x, y = torch.randn(6, 5, generator=g), torch.randn(6, 2, generator=g)
        for net, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            (net(x) - y).square().mean().backward()
            optimizer.step()
        sync.after_step(step)
        averager.average_parameters(theirs.parameters())
        pairs = zip(ours.parameters(), theirs.parameters(), strict=True)
        apart.append(max((p - q).abs().max().item() for p, q in pairs))
    return apart


def test_weights_after_each_step_equal_those_of_torchs_averager():
    for apart in run_ranks(both, 2):
        assert apart == [0.0] * STEPS
