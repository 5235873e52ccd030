# SPDX-License-Identifier: Apache-2.0
"""Gradients and optimiser state in their parameter's memory order, which torch's fused kernels take for granted.

On a CPU torch's fused optimisers read the memory of the parameter, the gradient and the state from front to back and
ignore strides: a transposed gradient would move the wrong elements, and one made by ``expand`` would be read beyond its
end, both without an error. Gradients of a backward pass are laid out as their parameters; those that ``torch.func``
makes or that are assigned, and a state read from a file, need not be.
"""

import torch
from torch import Tensor


@torch.no_grad()
def match_gradients(optimizer: torch.optim.Optimizer) -> None:
    """Copies each gradient whose strides are not its parameter's into memory laid out alike. Before every step."""
    for group in optimizer.param_groups:
        for weight in group["params"]:
            if weight.grad is not None and not _alike(weight.grad, weight):
                weight.grad = torch.empty_like(weight).copy_(weight.grad)


@torch.no_grad()
def match_state(optimizer: torch.optim.Optimizer) -> None:
    """The same for the running means. After a state was loaded."""
    for weight, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, Tensor) and value.shape == weight.shape and not _alike(value, weight):
                state[key] = torch.empty_like(weight, dtype=value.dtype).copy_(value)


def _alike(x: Tensor, weight: Tensor) -> bool:
    if x.layout != torch.strided:
        return True  # sparse: the optimiser's own affair
    return x.is_contiguous() if weight.is_contiguous() else x.stride() == weight.stride()
