# SPDX-License-Identifier: Apache-2.0
import os
import subprocess
import sys

import pytest

TRITON = """
import torch
from recipes_lib.lowbit import quantize, triton_kernels
from recipes_lib.lowbit.quantize import Quantized
g = torch.Generator().manual_seed(0)
for n, k, m in ((1, 3, 2), (130, 70, 140), (3, 2100, 9)):
    x, w, bias = (torch.randn(*size, generator=g) for size in ((n, k), (m, k), (m,)))
    x[0] = 0
    left, mine = quantize.rows(x), triton_kernels.rows(x)
    assert torch.equal(left.values, mine.values) and torch.equal(left.scale, mine.scale), (n, k, m)
    for right in (quantize.tensor(w).T, quantize.rows(w).T):
        want = quantize.dequantize(left, torch.float64) @ quantize.dequantize(right, torch.float64)
        got = triton_kernels.product(mine, right, None, torch.float32)
        torch.testing.assert_close(got, want.float(), rtol=1e-5, atol=1e-5)
        got = triton_kernels.product(mine, right, bias, torch.float32)
        torch.testing.assert_close(got, (want + bias).float(), rtol=1e-5, atol=1e-5)
large = torch.tensor([[3e36, 1.5e36, 0], [1, 0.5, 0]])
assert triton_kernels.rows(large).values.tolist() == [[127, 64, 0], [127, 64, 0]]
x = torch.ones(3, 5)
x[1, 2], x[2, 4] = float("nan"), float("inf")
assert triton_kernels.rows(x).scale.isnan().flatten().tolist() == [False, True, True]
"""


def test_triton_kernels_are_right_in_tritons_interpreter():
    pytest.importorskip("triton", reason="triton is not installed")
    done = subprocess.run(
        [sys.executable, "-c", TRITON], env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
