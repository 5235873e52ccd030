# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recipes_lib.models.nac.modulation import FeedForward, ModulatedLinear


def sines(shift: float, *size: int) -> Tensor:
    """sin(shift + n), row-major."""
    return torch.sin(shift + torch.arange(math.prod(size), dtype=torch.float64)).view(size)


def layer() -> ModulatedLinear:
    """The layer of golden value n4: x(3), c(2), W(2x3), b(2), M(3x2)."""
    made = ModulatedLinear(3, 2, 2).double()
    with torch.no_grad():
        made.linear.weight.copy_(sines(2, 2, 3))
        made.linear.bias.copy_(sines(3, 2))
        made.code.weight.copy_(sines(4, 3, 2))
    return made


def test_n4_the_code_scales_the_input():
    x, c, made = sines(0, 3), sines(1, 2), layer()
    normed = (made.scales(c) - 1) / 0.1
    assert normed.tolist() == pytest.approx((-1.3472937602, 0.3013727923, 1.0459209679), abs=1e-7)
    assert made(x, c).tolist() == pytest.approx((-0.4966873548, -0.3391292606), abs=1e-8)
    assert made.linear(x * normed).tolist() == pytest.approx((-0.5428519263, -0.2028320401), abs=1e-7)
    assert made.linear(x).tolist() == pytest.approx((-0.4282901614, -0.3945263061), abs=1e-9)


def test_with_gain_0_every_module_is_the_same_linear_layer():
    made = layer()
    nn.init.zeros_(made.gain)
    x, codes = sines(0, 4, 5, 3), sines(1, 5, 2)
    torch.testing.assert_close(made(x, codes), F.linear(x, made.linear.weight, made.linear.bias))


def test_each_sample_may_have_codes_of_its_own():
    made, x, codes = layer(), sines(0, 4, 5, 3), sines(1, 4, 5, 2)
    each = torch.stack([made(one[None], code)[0] for one, code in zip(x, codes, strict=True)])
    torch.testing.assert_close(made(x, codes), each)


def test_gradients_of_the_layer_reach_codes_weights_and_the_gain_and_are_right():
    made = layer()
    inputs = [sines(0, 2, 5, 3).requires_grad_(), sines(1, 5, 2).requires_grad_()]
    assert torch.autograd.gradcheck(made, inputs)
    made(*inputs).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in made.parameters())


def test_fixed_scales_give_the_same_output_and_are_no_part_of_the_state():
    made, x, codes = layer(), sines(0, 4, 5, 3), sines(1, 5, 2)
    want, keys = made(x, codes), set(made.state_dict())
    made.fix(codes)
    torch.testing.assert_close(made(x, codes), want, rtol=0, atol=0)
    assert set(made.state_dict()) == keys


def test_weights_are_drawn_as_torchs_linear_layer_and_biases_are_0():
    torch.manual_seed(0)
    made = ModulatedLinear(400, 300, 8)
    bound = 1 / math.sqrt(400)  # kaiming-uniform with a = sqrt(5)
    assert float(made.linear.weight.detach().abs().max()) == pytest.approx(bound, rel=1e-3)
    assert float(made.linear.weight.detach().std()) == pytest.approx(bound / math.sqrt(3), rel=0.01)
    assert made.linear.bias.tolist() == [0.0] * 300
    assert made.gain.item() == pytest.approx(0.1)


def test_the_feed_forward_layer_is_a_geglu_of_modulated_layers():
    torch.manual_seed(0)
    made = FeedForward(6, 10, 4).double()
    x, codes = sines(0, 2, 3, 6), sines(1, 3, 4)
    inner = (x * made.enter.scales(codes)) @ made.enter.linear.weight.T + made.enter.linear.bias
    value = inner[..., :10] * F.gelu(inner[..., 10:])
    want = (value * made.leave.scales(codes)) @ made.leave.linear.weight.T + made.leave.linear.bias
    torch.testing.assert_close(made(x, codes), want)
