# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch
from torch import Tensor, nn

from recipes_lib import lowbit
from recipes_lib.distributed import fsdp
from recipes_lib.errors import ConfigError, Faults
from recipes_lib.models import convit, vit
from recipes_lib.models.convit import ConViT, ConViTConfig
from recipes_lib.models.gpsa import GPSA, local_position_weights
from recipes_lib.models.vit import Shape, VisionTransformer


def network(gpsa_layers: int = 2, depth: int = 3, seed: int = 0, **options: object) -> ConViT:
    """Blocks of width 36 and 4 heads on a grid of 4x4 patches of 8 pixels, with large weights."""
    torch.manual_seed(seed)
    model = ConViT(Shape(36, depth, 4), image_size=32, patch_size=8, gpsa_layers=gpsa_layers, **options).double()
    for parameter in model.parameters():  # biases of 0 and norms of 1 would hide a mistake
        nn.init.normal_(parameter, std=0.2)
    return model.eval()


def pictures(count: int = 3, height: int = 32, width: int = 32) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def by_hand(model: ConViT, images: Tensor) -> Tensor:
    """The tokens after the last block, from the network's own parts."""
    height, width = images.shape[-2] // 8, images.shape[-1] // 8
    x = model.patch_embed.proj(images).flatten(2).mT + vit.resize_positions(model.pos_embed, (height, width))
    for index, block in enumerate(model.blocks):
        if index == model.gpsa_layers:
            x = torch.cat([model.cls_token.expand(len(x), 1, -1), x], dim=1)
        tokens = block.norm1(x)
        x = x + (block.attn(tokens, (height, width)) if index < model.gpsa_layers else block.attn(tokens))
        x = x + block.mlp.fc2(nn.functional.gelu(block.mlp.fc1(block.norm2(x))))
    return x


# the network


@pytest.mark.parametrize(
    ("arch", "count"), [("convit_tiny", 5_710_512), ("convit_small", 27_777_322), ("convit_base", 86_540_040)]
)
def test_the_papers_networks_have_its_number_of_weights(arch, count):
    with torch.device("meta"):
        model = convit.build(ConViTConfig(arch=arch), image_size=224)
    classifier = (model.num_features + 1) * 1000
    assert sum(tensor.numel() for tensor in model.state_dict().values()) + classifier == count
    assert [isinstance(block.attn, GPSA) for block in model.blocks] == [True] * 10 + [False] * 2


@pytest.mark.parametrize("arch", convit.ARCHS)
def test_every_architecture_builds_without_memory(arch):
    with torch.device("meta"):
        model = convit.build(ConViTConfig(arch=arch), image_size=224)
    shape = convit.ARCHS[arch]
    assert (model.num_features, len(model.blocks), model.blocks[0].attn.num_heads) == tuple(shape)
    assert math.isqrt(shape.heads) ** 2 == shape.heads
    assert model.gpsa_layers == shape.depth - (2 if shape.depth == 12 else 1)


@pytest.mark.parametrize("gpsa_layers", [0, 1, 2])
def test_class_token_enters_without_a_position_before_the_first_block_without_gpsa(gpsa_layers):
    model, images = network(gpsa_layers), pictures()
    want = by_hand(model, images)
    assert want.shape == (3, 17, 36)
    torch.testing.assert_close(model.tokens(images), model.norm(want))
    torch.testing.assert_close(model.before_norm(images), want[:, 0])
    torch.testing.assert_close(model(images), model.norm(model.before_norm(images)))


def test_last_block_computed_at_the_class_token_alone_has_the_same_gradients():
    model, images = network(), pictures()
    gradients = []
    for output in (model.before_norm(images), by_hand(model, images)[:, 0]):
        model.zero_grad()
        output.square().sum().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert set(dict(model.named_parameters())) - set(gradients[0]) == {"norm.weight", "norm.bias"}
    torch.testing.assert_close(gradients[0], gradients[1])


def test_with_gpsa_in_all_blocks_there_is_no_class_token_and_the_representation_is_a_mean():
    model, images = network(3, pool="mean"), pictures()
    want = by_hand(model, images)
    assert model.num_prefix_tokens == 0
    assert "cls_token" not in model.state_dict()
    torch.testing.assert_close(model.tokens(images), model.norm(want))
    torch.testing.assert_close(model.before_norm(images), want.mean(dim=1))


def test_the_mean_of_the_patches_leaves_out_the_class_token():
    model, images = network(2, pool="mean"), pictures()
    assert model.num_prefix_tokens == 1
    torch.testing.assert_close(model.before_norm(images), by_hand(model, images)[:, 1:].mean(dim=1))


def test_without_gpsa_it_is_our_vision_transformer_without_biases_of_queries_keys_and_values():
    model, images = network(0), pictures()
    plain = VisionTransformer(Shape(36, 3, 4), image_size=32, patch_size=8, stem="patch").double().eval()
    state = model.state_dict()
    no_position = torch.zeros(1, 1, 36, dtype=torch.float64)
    state["pos_embed"] = torch.cat([no_position, state["pos_embed"]], dim=1)
    state |= {f"blocks.{index}.attn.qkv.bias": torch.zeros(108, dtype=torch.float64) for index in range(3)}
    plain.load_state_dict(state)
    torch.testing.assert_close(model(images), plain(images))


def test_heads_that_are_no_square_are_fine_without_gpsa():
    model = ConViT(Shape(36, 2, 3), image_size=32, patch_size=8, gpsa_layers=0)
    assert model(pictures().float()).shape == (3, 36)
    with pytest.raises(ValueError, match="3 heads"):
        ConViT(Shape(36, 2, 3), image_size=32, patch_size=8, gpsa_layers=1)


# other grids


@pytest.mark.parametrize(("height", "width"), [(16, 16), (48, 48), (24, 40)])
def test_another_grid_has_interpolated_positions_and_its_own_relative_codes(height, width):
    model, images = network(), pictures(height=height, width=width)
    torch.testing.assert_close(model.tokens(images), model.norm(by_hand(model, images)))
    model(images).square().sum().backward()
    assert (model.pos_embed.grad.abs().sum(dim=-1) > 0).all()


def test_grids_of_equally_many_patches_are_not_confused():
    model = network(3, pool="mean")
    with torch.no_grad():
        model.pos_embed.zero_()
    images = pictures()
    wide = images.unflatten(2, (2, 16)).transpose(2, 3).flatten(3).contiguous()
    assert wide.shape == (3, 3, 16, 64)
    square, other = model(images), model(wide.reshape(3, 3, 16, 64))
    assert (square - other).abs().max() > 1e-3
    torch.testing.assert_close(model(images), square, rtol=0, atol=0)


# the start


def test_gpsa_starts_local_after_the_networks_own_initialisation():
    torch.manual_seed(0)
    model = convit.build(ConViTConfig(arch="convit_tiny", locality_strength=2.0, gate_init=0.5), image_size=224)
    for block in model.blocks[:10]:
        assert torch.equal(block.attn.v.weight, torch.eye(192))
        assert torch.equal(block.attn.pos_proj.weight, local_position_weights(4, 2.0))
        assert (block.attn.gating_param == 0.5).all()
    linear = (model.blocks[3].attn.qk, model.blocks[3].attn.proj, model.blocks[11].attn.qkv, model.blocks[2].mlp.fc1)
    for weight in (model.cls_token, model.pos_embed, *(layer.weight for layer in linear)):
        assert weight.std().item() == pytest.approx(0.02, rel=0.15)
    for name, parameter in model.named_parameters():
        if name.endswith("bias") and "patch_embed" not in name:
            assert (parameter == 0).all(), name
    assert model.norm.eps == model.blocks[0].norm1.eps == model.blocks[11].norm2.eps == 1e-6


def test_a_random_start_is_no_convolution():
    torch.manual_seed(0)
    model = convit.build(ConViTConfig(arch="convit_tiny", local_init=False), image_size=224)
    for block in model.blocks[:10]:
        assert block.attn.v.weight.std().item() == pytest.approx(0.02, rel=0.15)
        assert 0 < block.attn.pos_proj.weight.abs().max() < 0.1


def test_a_narrow_network_starts_with_larger_weights():
    model = convit.build(ConViTConfig(arch="convit_pico", patch_size=8), image_size=32)
    wanted = 0.02 * math.sqrt(192 / 72)
    for layer in (model.blocks[0].mlp.fc1, model.blocks[0].attn.qk, model.blocks[2].attn.qkv):
        assert layer.weight.std().item() == pytest.approx(wanted, rel=0.1)


@pytest.mark.parametrize(
    ("fixed", "kept"), [("none", ()), ("gate", ("gating",)), ("attention", ("gating", "qk.", "pos"))]
)
def test_what_is_fixed_stays_fixed_in_the_blocks_with_gpsa_alone(fixed, kept):
    model = convit.build(ConViTConfig(arch="convit_pico", patch_size=8, fixed=fixed), image_size=32)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert {name.split(".")[1] for name in frozen} == ({"0", "1"} if kept else set())
    want = {name for name, _ in model.named_parameters() if any(part in name.partition("attn.")[2] for part in kept)}
    assert frozen == want


# stochastic depth and layer scale


def test_stochastic_depth_rises_linearly_and_leaves_evaluation_as_it_is():
    model, images = network(3, depth=5, drop_path=0.2), pictures()
    plain = network(3, depth=5)
    rates = [(block.drop_path1, block.drop_path2) for block in model.blocks]
    assert all(isinstance(layer, nn.Identity) for layer in rates[0])
    assert [pair[0].drop_prob for pair in rates[1:]] == pytest.approx([0.05, 0.1, 0.15, 0.2])
    assert [pair[1].drop_prob for pair in rates[1:]] == pytest.approx([0.05, 0.1, 0.15, 0.2])
    assert torch.equal(model(images), plain(images))
    model.train()
    assert not torch.equal(model(images), plain(images))


def test_the_class_token_alone_is_dropped_with_the_probability_of_the_whole_block():
    model, images = network(1, depth=2, drop_path=0.5).train(), pictures()
    torch.manual_seed(5)
    alone = model(images)
    torch.manual_seed(5)
    torch.testing.assert_close(alone, model.tokens(images)[:, 0])


def test_with_layer_scale_every_block_starts_as_the_identity():
    model = ConViT(Shape(36, 3, 4), image_size=32, patch_size=8, gpsa_layers=2, layer_scale=True, pool="mean").double()
    images = pictures()
    embedded = model.patch_embed.proj(images).flatten(2).mT + model.pos_embed
    torch.testing.assert_close(model.tokens(images)[:, 1:], model.norm(embedded))
    torch.testing.assert_close(model.tokens(images)[:, 0], model.norm(model.cls_token[0]).expand(3, -1))


# what the rest of the house does with a transformer


def test_low_bit_layers_replace_the_linear_layers_of_the_blocks_and_no_position_weights():
    model = ConViT(Shape(64, 3, 4), image_size=32, patch_size=8, gpsa_layers=2)
    assert lowbit.convert(model, "switchback") == 2 * 5 + 4
    model(pictures().float()).square().sum().backward()
    assert model.blocks[0].attn.pos_proj.weight.grad.abs().sum() > 0


def test_fsdp_shards_block_by_block():
    model = network(2, depth=4)
    assert fsdp.blocks(model) == list(model.blocks)[:-1][::-1]


def test_autocast_keeps_the_position_attention_in_full_precision():
    model = ConViT(Shape(36, 3, 9), image_size=112, patch_size=8, gpsa_layers=2, locality_strength=30.0).eval()
    images = torch.randn(2, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    want = model(images)
    with torch.autocast("cpu", torch.bfloat16):
        got = model(images).float()
    assert ((got - want).norm() / want.norm()).item() < 0.02


# bad input


def test_dropped_patches_are_refused_in_one_line():
    with pytest.raises(
        ConfigError, match=r"^keep drops patches \(\[3, 4\] kept\), and a ConViT needs all.*choose a vit"
    ):
        network()(pictures(), torch.zeros(3, 4, dtype=torch.int64))


@pytest.mark.parametrize("layers", [-1, 4])
def test_gpsa_layers_beyond_the_depth_are_refused(layers):
    with pytest.raises(ConfigError, match=rf"model\.gpsa_layers = {layers}.* 0 to 3"):
        convit.build(ConViTConfig(arch="convit_pico", gpsa_layers=layers), image_size=32)
    with pytest.raises(ConfigError, match=rf"model\.gpsa_layers = {layers}.*takes 0 to 3"):
        network(layers)


def test_a_class_token_that_would_never_enter_is_refused():
    wanted = r"model\.pool = cls with model\.gpsa_layers = 3 has no class token.*use model\.pool mean, or at most 2"
    with pytest.raises(ConfigError, match=wanted):
        network(3)
    with pytest.raises(ConfigError, match=wanted):
        convit.build(ConViTConfig(arch="convit_pico", gpsa_layers=3, patch_size=8), image_size=32)
    convit.build(ConViTConfig(arch="convit_pico", gpsa_layers=3, patch_size=8, pool="mean"), image_size=32)


def test_faults_of_the_config_are_told_together():
    faults = Faults()
    ConViTConfig(patch_size=0, drop_path=1.0, locality_strength=0.0, gate_init=math.nan).check(faults)
    assert [line.partition(" is")[0] for line in faults.lines] == [
        "model.patch_size = 0",
        "model.drop_path = 1.0",
        "model.locality_strength = 0.0",
        "model.gate_init = nan",
    ]


def test_patches_that_do_not_tile_are_refused_with_the_sizes():
    with pytest.raises(ConfigError, match=r"model\.patch_size = 5 does not divide the image side = 32"):
        convit.build(ConViTConfig(arch="convit_pico", patch_size=5), image_size=32)
    with pytest.raises(
        ConfigError, match=r"does not divide a view of 32x20 pixels \(the network was built for 32x32\)"
    ):
        network()(pictures(width=20))
    faults = Faults()
    ConViTConfig().check_side(faults, "views.local_size", 90)
    assert faults.lines[0].startswith("model.patch_size = 16 does not divide views.local_size = 90")
