# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from timm.models.vision_transformer import Attention
from torch import Tensor, nn

from recipes_lib.evaluation import locality
from recipes_lib.models.convit import ConViT
from recipes_lib.models.gpsa import grid_positions, local_position_weights, position_attention, relative_codes
from recipes_lib.models.vit import Shape, VisionTransformer

GRID = (14, 14)


def position_maps(heads: int, strength: float = 1.0) -> Tensor:
    positions = grid_positions(*GRID).double()
    return position_attention(local_position_weights(heads, strength).double(), relative_codes(positions, positions))


def pictures(count: int = 5, height: int = 32, width: int = 32) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def large(model: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.double().eval()


def convit(gpsa_layers: int = 2, **options: object) -> ConViT:
    return large(ConViT(Shape(36, 3, 4), image_size=32, patch_size=8, gpsa_layers=gpsa_layers, **options))


def transformer(registers: int = 0) -> VisionTransformer:
    return large(VisionTransformer(Shape(36, 3, 4), image_size=32, patch_size=8, stem="patch", registers=registers))


def all_attention(model: nn.Module, images: Tensor) -> list[Tensor]:
    """The attention of all tokens to all tokens in timm's plain layers, as they compute it without the fused kernel."""
    found = []
    layers = [block.attn for block in model.blocks if isinstance(block.attn, Attention)]
    for layer in layers:
        layer.fused_attn = False
        layer.attn_drop.register_forward_hook(lambda layer, arguments, output: found.append(output))
    model.tokens(images)
    return found


# the measure


def test_g7_uniform_attention():
    assert locality.uniform_non_locality(GRID) == pytest.approx(7.280764193, abs=1e-9)


@pytest.mark.parametrize(
    ("heads", "strength", "mean"),
    [
        (4, 1.0, 0.985969173),
        (9, 1.0, 1.262261720),
        (16, 1.0, 1.561581659),
        (4, 2.0, 0.829485959),
        (9, 2.0, 1.122115671),
        (16, 2.0, 1.486208933),
    ],
)
def test_g7_positions_alone(heads, strength, mean):
    found = locality.non_locality(position_maps(heads, strength), GRID)
    assert found.shape == (heads,)
    assert found.mean().item() == pytest.approx(mean, abs=1e-9)


@pytest.mark.parametrize(("heads", "mean"), [(4, 2.678900293), (9, 2.880886330), (16, 3.099706739)])
def test_g7_a_convit_at_the_start_with_uniform_content(heads, mean):
    shape = Shape(2 * heads, 2, heads)
    model = ConViT(shape, image_size=14, patch_size=1, gpsa_layers=1, pool="mean").double()
    with torch.no_grad():
        model.blocks[0].attn.qk.weight.zero_()
    found = locality.non_localities(model, [pictures(2, 14, 14)])
    assert found.shape == (2, heads)
    assert found[0].mean().item() == pytest.approx(mean, abs=1e-9)


def test_attention_to_oneself_is_local_and_to_the_right_neighbour_one_patch_away():
    assert locality.non_locality(torch.eye(6), (2, 3)).item() == 0
    right = torch.eye(6)[[1, 2, 1, 4, 5, 4]]  # the last column looks to its left
    assert locality.non_locality(right, (2, 3)).item() == 1
    down = torch.eye(6)[[3, 4, 5, 0, 1, 2]]
    assert locality.non_locality(down, (2, 3)).item() == 1
    assert locality.non_locality(down, (3, 2)).item() == pytest.approx((2 * 2**0.5 + 5**0.5) * 2 / 6)


# attention maps


def test_maps_of_gpsa_layers_are_the_layers_own():
    model, images = convit(3, pool="mean"), pictures()
    maps = locality.attention_maps(model, images)
    x, grid = model.patch_embed.proj(images).flatten(2).mT + model.pos_embed, (4, 4)
    for block, got in zip(model.blocks, maps, strict=True):
        torch.testing.assert_close(got, block.attn.attention_map(block.norm1(x), grid))
        x = block(x, grid)


@pytest.mark.parametrize("registers", [0, 2])
def test_maps_of_a_vision_transformer_leave_out_what_has_no_patch_and_renormalise_the_rows(registers):
    model, images = transformer(registers), pictures()
    got = locality.attention_maps(model, images)
    for mine, whole in zip(got, all_attention(model, images), strict=True):
        among = whole[:, :, 1 + registers :, 1 + registers :]
        assert mine.shape == (5, 4, 16, 16)
        torch.testing.assert_close(mine, among / among.sum(dim=-1, keepdim=True))


def test_maps_of_a_convits_last_block_are_its_plain_attention():
    model, images = convit(), pictures()
    got = locality.attention_maps(model, images)[2]
    among = all_attention(model, images)[0][:, :, 1:, 1:]
    torch.testing.assert_close(got, among / among.sum(dim=-1, keepdim=True))


@pytest.mark.parametrize("make", [convit, transformer, lambda: convit(0), lambda: convit(3, pool="mean")])
def test_means_over_batches_are_those_over_all_images(make):
    model, images = make(), pictures()
    maps = locality.attention_maps(model, images)
    mean = locality.mean_attention(model, images.split(2))
    torch.testing.assert_close(mean, torch.stack([each.mean(dim=0) for each in maps]))
    torch.testing.assert_close(mean.sum(dim=-1), torch.ones(3, 4, 16, dtype=torch.float64))
    torch.testing.assert_close(locality.non_localities(model, images.split(2)), locality.non_locality(mean, (4, 4)))


def test_a_grid_that_is_not_square_is_measured_along_both_sides():
    model, images = convit(3, pool="mean"), pictures(2, 16, 48)
    mean = locality.mean_attention(model, [images])
    assert mean.shape == (3, 4, 12, 12)
    torch.testing.assert_close(locality.non_localities(model, [images]), locality.non_locality(mean, (2, 6)))


def test_measuring_leaves_the_network_as_it_was():
    model = convit(drop_path=0.9).train()
    want = locality.non_localities(convit(), [pictures()])
    torch.testing.assert_close(locality.non_localities(model, [pictures()]), want)  # nothing is dropped
    assert all(part.training for part in model.modules())
    assert not any(block.attn._forward_pre_hooks for block in model.blocks)
    assert not want.requires_grad
    assert torch.is_grad_enabled()


def test_gates_are_those_of_the_blocks_with_gpsa():
    model = convit()
    want = torch.stack([model.blocks[0].attn.gate, model.blocks[1].attn.gate])
    assert torch.equal(locality.gates(model), want)
    assert not locality.gates(model).requires_grad


# bad input


def test_attention_with_a_class_token_is_refused():
    with pytest.raises(ValueError, match=r"attention of \[3, 5, 5\] is not among the 4 patches of a grid of 2x2: drop"):
        locality.non_locality(torch.full((3, 5, 5), 0.2), (2, 2))


def test_no_image_and_no_gate_are_refused():
    with pytest.raises(ValueError, match="no image whose attention could be measured"):
        locality.non_localities(convit(), [])
    with pytest.raises(ValueError, match="no block with GPSA"):
        locality.gates(convit(0))
