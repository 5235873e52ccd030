# SPDX-License-Identifier: Apache-2.0
"""Brings gradients and optimiser state into their parameter's memory layout, which torch's fused kernels assume.

On a CPU torch's fused optimisers read the memory of the parameter, the gradient and the state from front to back and
ignore strides. A transposed gradient would update the wrong elements, and one made by ``expand`` would be read beyond
its end, both without an error. Gradients of a backward pass have their parameter's layout. Gradients that come from
``torch.func`` or are assigned, and a state read from a file, may have another.
"""

import torch
from torch import Tensor


@torch.no_grad()
def match_gradients(optimizer: torch.optim.Optimizer) -> None:
    """Copies each gradient whose strides differ from its parameter's into that layout; call it before each step."""
    for group in optimizer.param_groups:
        for weight in group["params"]:
            if weight.grad is not None and not _alike(weight.grad, weight):
                weight.grad = torch.empty_like(weight).copy_(weight.grad)


@torch.no_grad()
def match_state(optimizer: torch.optim.Optimizer) -> None:
    """Copies each running mean with other strides than its parameter into its layout; call it after loading a state."""
    for weight, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, Tensor) and value.shape == weight.shape and not _alike(value, weight):
                state[key] = torch.empty_like(weight, dtype=value.dtype).copy_(value)


def _alike(x: Tensor, weight: Tensor) -> bool:
    if x.layout != torch.strided:
        return True  # a sparse gradient has no strides; the optimiser handles or refuses it
    return x.is_contiguous() if weight.is_contiguous() else x.stride() == weight.stride()
