# SPDX-License-Identifier: Apache-2.0
"""Memory order against torch's plain, unfused AdamW, which heeds strides."""

import pytest
import torch
from torch import Tensor, nn

from recipes_lib.config import OptimConfig
from recipes_lib.optim import StableAdamW
from recipes_lib.optim.build import build

SAME = {"lr": 0.01, "betas": (0.9, 0.99), "eps": 1e-6}
FORMS = {
    "transposed": lambda g: g.mT.contiguous().mT,
    "expanded": lambda g: g[:1, :1].expand_as(g),
    "every other": lambda g: g.repeat_interleave(2, dim=-1)[..., ::2],
    "channels last": lambda g: g.contiguous(memory_format=torch.channels_last),
}


def ours(name: str, weight: nn.Parameter) -> torch.optim.Optimizer:
    config = OptimConfig(name=name, lr=0.01, lr_start=0.0, lr_final=0.0, betas=(0.9, 0.99), eps=1e-6)
    return build(config, [{"params": [weight], "decays": False}])


def steps(optimizer: torch.optim.Optimizer, weight: nn.Parameter, form: str, scales: tuple[float, ...]) -> Tensor:
    g = torch.Generator().manual_seed(1)
    for scale in scales:
        weight.grad = FORMS[form](scale * torch.randn(2, 3, 4, 5, generator=g))
        optimizer.step()
    return weight.detach()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", ["adamw", "stable_adamw"])
@pytest.mark.parametrize("form", FORMS)
def test_gradients_in_any_memory_order_move_the_elements_they_belong_to(name, form, memory_format):
    start = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    weight = nn.Parameter(start.clone(memory_format=memory_format))
    got = steps(ours(name, weight), weight, form, (1.0, 0.1, 0.01))  # falling: nothing is clipped
    assert got.is_contiguous(memory_format=memory_format)
    plain = nn.Parameter(start.clone())
    want = steps(torch.optim.AdamW([plain], **SAME, weight_decay=0.0, foreach=False), plain, form, (1.0, 0.1, 0.01))
    torch.testing.assert_close(got, want.contiguous(memory_format=memory_format), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["adamw", "stable_adamw"])
def test_a_state_from_a_file_is_laid_out_as_its_parameter(name):
    """Files hold tensors in one order; the parameter is in another."""
    start = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    whole, again = (nn.Parameter(start.clone(memory_format=torch.channels_last)) for _ in range(2))
    first = ours(name, whole)
    steps(first, whole, "channels last", (1.0, 0.5))
    saved = first.state_dict()
    saved["state"][0] = {
        key: value.contiguous().clone() if isinstance(value, Tensor) else value
        for key, value in saved["state"][0].items()
    }
    again.data.copy_(whole)
    second = ours(name, again)
    second.load_state_dict(saved)
    for optimizer, weight in ((first, whole), (second, again)):
        steps(optimizer, weight, "channels last", (0.3, 0.2))
    torch.testing.assert_close(again, whole, rtol=0, atol=0)


def test_a_gradient_that_is_laid_out_alike_is_not_copied():
    weight = nn.Parameter(torch.ones(3, 4))
    gradient = torch.ones(3, 4)
    weight.grad = gradient
    StableAdamW([weight], lr=0.1).step()
    assert weight.grad is gradient
