# SPDX-License-Identifier: Apache-2.0
"""Parity with ``Int8MixedPrecisionTrainingConfig(output, grad_input, grad_weight, module_swap=True)`` of torchao 0.18.

With ``grad_weight=False`` it is SwitchBackQ (a scale for each row of W in Y, for each column of W in dX), with
``grad_weight=True``, its default, the all-int8 layer. float32; 1e-6 of the largest number, for it divides by scales in
another order, so a number that lies within a last bit of half a step would go to the other integer: none does here.
Without ``module_swap`` torchao 0.18 computes in full precision under torch 2.14 and says nothing: hence the comparison
with ``nn.Linear``.
"""

import copy

import pytest
import torch
from torch import Tensor, nn

from recipes_lib.lowbit import Int8Linear, SwitchBackQLinear

pytest.importorskip("torchao", reason="torchao is not installed")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # where it finds a GPU, its product is for that alone


def theirs_of(plain: nn.Linear, *, grad_weight: bool) -> nn.Linear:
    from torchao import quantize_
    from torchao.prototype.quantized_training import Int8MixedPrecisionTrainingConfig

    config = Int8MixedPrecisionTrainingConfig(output=True, grad_input=True, grad_weight=grad_weight, module_swap=True)
    model = nn.Sequential(copy.deepcopy(plain))
    quantize_(model, config)
    return model[0]


def results(layer: nn.Linear, x: Tensor, grad: Tensor) -> list[Tensor]:
    """Y, dX, dW, db."""
    x = x.clone().requires_grad_()
    y = layer(x)
    return [y.detach(), *torch.autograd.grad(y, (x, layer.weight, layer.bias), grad)]


@pytest.mark.parametrize(("kind", "grad_weight"), [(SwitchBackQLinear, False), (Int8Linear, True)])
@pytest.mark.parametrize(("tokens", "inside", "outside"), [(32, 64, 96), (512, 192, 48)])
def test_our_layers_are_torchaos(kind, grad_weight, tokens, inside, outside):
    g = torch.Generator().manual_seed(0)
    x, grad = (torch.randn(tokens, width, generator=g).to(DEVICE) for width in (inside, outside))
    plain = nn.Linear(inside, outside).to(DEVICE)
    with torch.no_grad():
        plain.weight.copy_(0.1 * torch.randn(outside, inside, generator=g))
    ours = kind(inside, outside, device=DEVICE)
    ours.load_state_dict(plain.state_dict())
    found, wanted, exact = (
        results(layer, x, grad) for layer in (ours, theirs_of(plain, grad_weight=grad_weight), plain)
    )
    for name, a, b, c in zip(("y", "dx", "dw", "db"), found, wanted, exact, strict=True):
        size = c.abs().max()
        assert (a - b).abs().max() <= 1e-6 * size, name
        rounded = name in ("y", "dx") or (name == "dw" and grad_weight)
        assert ((b - c).abs().max() > 1e-3 * size) == rounded, name  # or full precision is compared with itself
