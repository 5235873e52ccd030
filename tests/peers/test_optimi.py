# SPDX-License-Identifier: Apache-2.0
"""Parity with ``optimi.StableAdamW(triton=False)`` of torch-optimi: 100 steps, all hyper-parameters given.

Its decay has the clipped learning rate, as ours by default. Half of the tensors meet gradients that jump, so that they
are clipped; float64 within 1e-12, float32 within 1e-6.
"""

import pytest
import torch
from torch import Tensor, nn

from recipes_lib.optim import StableAdamW

optimi = pytest.importorskip("optimi", reason="torch-optimi is not installed")
pytestmark = pytest.mark.filterwarnings("ignore:Parameter `foreach`:DeprecationWarning")


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize("foreach", [True, False])
def test_a_hundred_steps_are_torch_optimis(dtype, tolerance, foreach):
    same = {"lr": 1e-3, "betas": (0.9, 0.99), "eps": 1e-6, "weight_decay": 0.2}
    g = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=g, dtype=dtype) for shape in ((5, 4), (4,), (3, 2, 2), ())]
    ours, theirs = ([nn.Parameter(x.clone()) for x in start] for _ in range(2))
    a = StableAdamW(ours, **same)
    b = optimi.StableAdamW(theirs, **same, triton=False, foreach=foreach)
    clipped = 0
    for step in range(100):
        gradients: list[Tensor] = [torch.randn(x.shape, generator=g, dtype=dtype) for x in start]
        for place, gradient in enumerate(gradients):
            gradient *= 30 if step % 17 == 16 and place % 2 else 1
            ours[place].grad, theirs[place].grad = gradient.clone(), gradient.clone()
        a.step()
        b.step()
        clipped += sum(rms.item() > 2 for rms in a.rms().values())
    assert clipped >= 5  # of 10 that jump, the scalar sometimes within its own spread
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
