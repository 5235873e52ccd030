# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from recipes_lib import lowbit
from recipes_lib.distributed import fsdp
from recipes_lib.errors import ConfigError
from recipes_lib.models.nac import backbone
from recipes_lib.models.nac.backbone import NACConfig
from recipes_lib.models.nac.modulation import ModulatedLinear

PICO = {"arch": "nac_pico", "patch_size": 8}


def pictures() -> torch.Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("stem", ["patch", "conv"])
def test_a_circuit_over_images_has_what_every_backbone_has(stem):
    torch.manual_seed(0)
    made = backbone.build(NACConfig(**PICO, stem=stem, bandwidth=0.5), image_size=32).eval()
    assert made(pictures()).shape == (2, made.num_features) == (2, 32)
    torch.testing.assert_close(made(pictures()), made.norm(made.before_norm(pictures())))
    assert made.link.bandwidth == 0.5
    assert made.tokens.positions.shape == (1, 64, 4, 4)


def test_layer_scale_starts_at_0_or_at_a_value():
    for start in (0.0, 0.1):
        made = backbone.build(NACConfig(**PICO, layer_scale=True, initial_scale=start), image_size=32)
        assert made.blocks[0].scale1.gamma.tolist() == pytest.approx([start] * 32)
    assert isinstance(backbone.build(NACConfig(**PICO), image_size=32).blocks[0].scale1, nn.Identity)


def test_linear_layers_become_low_bit_layers_and_the_network_still_learns():
    torch.manual_seed(0)
    made = backbone.build(NACConfig(**PICO), image_size=32)
    lowbit.convert(made.blocks, "switchback")
    layers = [layer for layer in made.blocks.modules() if isinstance(layer, ModulatedLinear)]
    assert {type(layer.linear).__name__ for layer in layers} == {"SwitchBackLinear"}
    made(pictures()).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in made.parameters())


def test_all_blocks_but_the_last_are_units_of_fsdp():
    made = backbone.build(NACConfig(**PICO), image_size=32)
    assert fsdp.blocks(made) == [made.blocks[0]]


def test_fake_tensors_and_the_count_of_operations_pass_through_it():
    with FakeTensorMode():
        made, x = backbone.build(NACConfig(**PICO), image_size=32), torch.randn(2, 3, 32, 32)
        made(x).sum().backward()
    made = backbone.build(NACConfig(**PICO), image_size=32).eval()
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        made(pictures())
    assert counter.get_total_flops() > 1e5


def test_bfloat16_gives_nearly_the_same_features():
    torch.manual_seed(0)
    made = backbone.build(NACConfig(**PICO), image_size=32).eval()
    want = made(pictures())
    with torch.autocast("cpu", torch.bfloat16):
        got = made(pictures())
    assert (got - want).abs().mean() < 0.05 * want.abs().mean()
    made.train()
    with torch.autocast("cpu", torch.bfloat16):
        made(pictures()).square().mean().backward()
    assert all(p.grad.isfinite().all() for p in made.parameters())


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"patch_size": 6}, r"model.patch_size = 6 is not allowed: use a value that is a multiple of 4"),
        ({"patch_size": 12}, r"model.patch_size = 12 does not divide the image side = 32"),
        ({"bandwidth": -1.0}, r"model.bandwidth = -1.0 is not allowed: use a value above 0. A link's probability"),
        ({"drop_path": 1.0}, r"model.drop_path = 1.0 is not allowed: use a value in \[0, 1\)"),
        ({"initial_scale": 0.1}, r"model.initial_scale = 0.1 is not allowed: use a value of 0 without"),
        ({"evaluation": "sample"}, "model.evaluation = sample draws links in evaluation, .*use mean or threshold"),
    ],
)
def test_a_config_that_cannot_be_is_refused_in_a_line(changes, line):
    with pytest.raises(ConfigError, match=line):
        backbone.build(NACConfig(**PICO | changes), image_size=32)
