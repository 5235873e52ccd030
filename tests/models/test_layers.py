# SPDX-License-Identifier: Apache-2.0
"""Options of a transformer's blocks: what they change, and where they are refused."""

from typing import get_args, get_type_hints

import pytest
import torch

from recipes_lib import lowbit
from recipes_lib.errors import ConfigError, Faults
from recipes_lib.models import backbones, vit
from recipes_lib.models.layers import LayersConfig
from recipes_lib.models.text import TextTransformer


def faults(config: LayersConfig) -> str:
    found = Faults()
    config.check(found)
    with pytest.raises(ConfigError) as error:
        found.raise_any()
    return str(error.value)


def test_the_kinds_of_linear_layer_are_those_that_convert_knows():
    assert get_args(get_type_hints(LayersConfig)["linear"]) == ("full", *get_args(lowbit.Kind))


@pytest.mark.parametrize(
    ("option", "value"), [("linear", "switchback"), ("layer_scale", True)], ids=["linear", "layer_scale"]
)
def test_a_network_without_blocks_refuses_their_options_by_name(option, value):
    only = {"linear": "full", "layer_scale": "False"}[option]
    words = f"model.{option} = {value} is not allowed: use a value of {only} without a transformer. Choose a vit."
    assert words in faults(backbones.BackboneConfig(arch="resnet18", **{option: value}))
    backbones.BackboneConfig(arch="vit_nano", stem="patch", **{option: value}).check(Faults())


@pytest.mark.parametrize("pre_norm", [False, True])
def test_blocks_start_as_the_identity_where_layer_scale_is_zero(pre_norm):
    config = vit.ViTConfig(arch="vit_pico", patch_size=4, pre_norm=pre_norm, layer_scale=True)
    model = vit.build(config, image_size=16).eval()
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    first = model.norm_pre(model.cls_token + model.pos_embed[:, :1])[:, 0]
    torch.testing.assert_close(model.before_norm(images), first.expand(2, -1))
    for block in model.blocks:
        torch.nn.init.normal_(block.ls1.gamma)
        torch.nn.init.normal_(block.ls2.gamma)
    x = torch.randn(2, 17, 64, generator=torch.Generator().manual_seed(1))
    # the last block's short cut scales its branches as the whole block does
    torch.testing.assert_close(vit.class_token(model.blocks[-1], x), model.blocks[-1](x)[:, 0])


def test_a_text_towers_blocks_start_as_the_identity_too():
    sizes = {"vocabulary": 20, "context": 6, "width": 16, "layers": 2, "heads": 2, "dim": 8, "end": 19}
    tower = TextTransformer(**sizes, layer_scale=True)
    tokens = torch.tensor([[1, 2, 19, 0, 0, 0]])
    last = tower.token_embedding.weight[19] + tower.positional_embedding[2]
    torch.testing.assert_close(tower(tokens), (tower.ln_final(last) @ tower.text_projection)[None])
    names = {name for name, _ in tower.named_parameters() if "ls_" in name}
    assert names == {f"transformer.resblocks.{block}.ls_{branch}.gamma" for block in (0, 1) for branch in (1, 2)}


def test_a_vit_huge_has_the_parameters_of_its_name():
    with torch.device("meta"):
        model = vit.build(vit.ViTConfig(arch="vit_huge", patch_size=14), image_size=224)
    assert sum(p.numel() for p in model.parameters()) == 630_764_800  # timm's vit_huge_patch14_224 without its head
