# SPDX-License-Identifier: Apache-2.0
from typing import get_args

import pytest
import torch
from torch import nn

from recipes_lib.errors import ConfigError
from recipes_lib.lowbit import Fp8Linear, Kind, SwitchBackLinear, convert


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch_embed = nn.Linear(8, 8)
        self.blocks = nn.ModuleList(nn.ModuleDict({"fc1": nn.Linear(8, 16), "fc2": nn.Linear(16, 8)}) for _ in range(2))
        self.norm = nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.patch_embed(x)
        for block in self.blocks:
            x = x + block["fc2"](block["fc1"](x).relu())
        return self.head(self.norm(x))


@pytest.mark.parametrize("kind", get_args(Kind))
def test_every_kind_takes_the_place_of_the_inner_layers_and_trains(kind):
    net = Net()
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    before, parameters, keys = net(x), list(net.parameters()), list(net.state_dict())
    assert convert(net, kind) == 4
    assert [id(p) for p in net.parameters()] == [id(p) for p in parameters]
    assert list(net.state_dict()) == keys
    assert type(net.head) is type(net.patch_embed) is nn.Linear
    assert type(net.blocks[0]["fc1"]) is not nn.Linear
    torch.testing.assert_close(net(x), before, rtol=0.2, atol=0.2)
    net(x).square().sum().backward()
    assert all(p.grad is not None for name, p in net.named_parameters() if not name.startswith("attention"))


def test_fp8_kinds_differ_in_their_scaling():
    for kind, scaling in (("fp8", "tensor"), ("fp8_switchback", "row")):
        net = Net()
        convert(net, kind)
        assert isinstance(net.blocks[0]["fc1"], Fp8Linear)
        assert net.blocks[0]["fc1"].scaling == scaling


def test_skip_is_the_callers():
    net = Net()
    assert convert(net, "switchback", skip=()) == 6  # the attention's own projection reads its weight past forward
    net = Net()
    assert convert(net, "switchback", skip=("blocks.0.*", "head")) == 3
    assert type(net.blocks[0]["fc2"]) is nn.Linear
    assert type(net.patch_embed) is SwitchBackLinear


def test_a_shared_layer_stays_shared_and_training_mode_stays():
    shared = nn.Linear(4, 4, bias=False)
    net = nn.Sequential(shared, nn.ReLU(), shared).eval()
    assert convert(net, "switchback") == 1
    assert net[0] is net[2]
    assert net[0].weight is shared.weight
    assert net[0].bias is None
    assert not net[0].training


def test_a_layer_with_hooks_stays():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net[0].register_forward_hook(lambda *_: None)
    assert convert(net, "int8") == 1
    assert type(net[0]) is nn.Linear


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("norm_first", [False, True])
def test_torchs_encoder_calls_the_new_layers_in_evaluation_as_in_training(masked, norm_first):
    """In evaluation it has a fast path that reads the weights past ``forward``: the result was float32's, bit for bit."""
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True, norm_first=norm_first)
    net = nn.TransformerEncoder(layer, 2, enable_nested_tensor=not norm_first).eval()
    x = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[False] * 5, [False] * 4 + [True], [False] * 2 + [True] * 3]) if masked else None
    seen = ~mask if masked else torch.ones(3, 5, dtype=torch.bool)
    with torch.no_grad():
        exact = net(x, src_key_padding_mask=mask)[seen]
        assert convert(net, "switchback") == 4
        coarse = net(x, src_key_padding_mask=mask)[seen]
        assert 1e-4 < (coarse - exact).abs().max() < 0.1
        torch.testing.assert_close(coarse, net.train()(x, src_key_padding_mask=mask)[seen])


def test_an_encoder_layer_that_keeps_its_linear_layers_keeps_its_fast_path():
    net = nn.ModuleDict({"a": nn.TransformerEncoderLayer(16, 2, 32), "b": nn.TransformerEncoderLayer(16, 2, 32)})
    assert convert(net, "switchback", skip=("a.*",)) == 2
    assert net["a"].activation_relu_or_gelu == 1
    assert net["b"].activation_relu_or_gelu == 0


def test_nothing_to_convert_is_an_error_of_one_line():
    with pytest.raises(ConfigError, match=r"replaces no layer of Sequential \(it has no nn.Linear inside\)"):
        convert(nn.Sequential(nn.ReLU()), "switchback")
    with pytest.raises(ConfigError, match=r"all kept: patch_embed, .*blocks\.1\.fc2.*; change skip") as fault:
        convert(Net(), "switchback", skip=("*",))
    assert "\n" not in str(fault.value)
    with pytest.raises(ConfigError, match=r"'swichback' is no low-bit layer\. Did you mean 'switchback'"):
        convert(Net(), "swichback")
