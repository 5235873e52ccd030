# SPDX-License-Identifier: Apache-2.0
import math
from dataclasses import replace

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recipes_lib.errors import ConfigError, Faults
from recipes_lib.models import vit
from recipes_lib.models.vit import VisionTransformer, ViTConfig
from recipes_lib.views.masking import keep_count, random_keep


def network(stem: str = "patch", **options: object) -> VisionTransformer:
    """3 blocks of width 32 on a grid of 4x4 patches of 8 pixels."""
    torch.manual_seed(0)
    model = VisionTransformer(vit.Shape(32, 3, 4), image_size=32, patch_size=8, stem=stem, **options).double()
    for parameter in model.parameters():  # biases of 0 and norms of 1 would hide a mistake
        nn.init.normal_(parameter, std=0.1)
    return model.eval()


def pictures(count: int = 3, side: int = 32, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def all_tokens(model: VisionTransformer, images: Tensor) -> Tensor:
    """timm's own forward, token by token, before the final norm."""
    return model.blocks(model._pos_embed(model.patch_embed(images)))


# the whole image


def test_forward_equals_timms_forward():
    model, images = network(), pictures()
    torch.testing.assert_close(model(images), model.forward_head(model.forward_features(images)))


@pytest.mark.parametrize("stem", ["patch", "conv"])
def test_representation_is_the_class_token_after_the_final_norm(stem):
    model, images = network(stem), pictures()
    torch.testing.assert_close(model(images), model.norm(model.before_norm(images)))
    assert (model(images) - model.before_norm(images)).abs().max() > 0.1


def test_last_block_computed_at_the_class_token_alone_has_the_same_output_and_gradients():
    model, images = network(), pictures()
    gradients = []
    for output in (model.before_norm(images), all_tokens(model, images)[:, 0]):
        model.zero_grad()
        output.square().sum().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    torch.testing.assert_close(gradients[0], gradients[1])
    torch.testing.assert_close(model.before_norm(images), all_tokens(model, images)[:, 0])


def test_state_dict_has_timms_keys_and_shapes():
    reference = timm.create_model(
        "vit_base_patch16_224", img_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=4, num_classes=0
    )
    mine = {key: value.shape for key, value in network().state_dict().items()}
    assert mine == {key: value.shape for key, value in reference.state_dict().items()}


# dropped patches


def test_keeping_all_patches_in_any_order_is_the_plain_forward():
    model, images = network(), pictures()
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(model(images, order), model(images))


def test_a_dropped_patch_has_no_influence_whatever_its_pixels():
    model, images = network(), pictures()
    keep = torch.tensor([[0, 3, 5], [1, 2, 15], [5, 7, 9]])
    want = model(images, keep)
    for patch in range(16):
        other = images.clone()
        row, column = divmod(patch, 4)
        other[:, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] += 1
        changed = (model(other, keep) != want).any(dim=1)
        assert changed.tolist() == [patch in kept for kept in keep.tolist()]  # bit for bit where it was dropped


def test_a_mask_per_image_equals_each_image_alone_with_its_mask():
    model, images = network(), pictures()
    keep = random_keep(16, 0.5, keys=torch.tensor([3, 1, 4]))
    alone = torch.cat([model(images[i : i + 1], keep[i]) for i in range(3)])
    torch.testing.assert_close(model(images, keep), alone)


@pytest.mark.parametrize("stem", ["patch", "conv"])
def test_a_mask_shared_by_the_batch_is_that_mask_for_each_image(stem):
    model, images, keep = network(stem), pictures(), torch.tensor([7, 2, 11])
    torch.testing.assert_close(model(images, keep), model(images, keep.expand(3, -1)))


def test_positions_stay_with_their_patches():
    model, images = network(), pictures(1)
    want = model(images, torch.tensor([5]))
    moved = torch.zeros_like(images)
    moved[:, :, 8:16, 16:24] = images[:, :, 8:16, 8:16]  # patch 5's pixels at patch 6
    assert (model(moved, torch.tensor([6])) - want).abs().max() > 1e-6
    with torch.no_grad():
        model.pos_embed[:, 1 + 6] = model.pos_embed[:, 1 + 5]
    torch.testing.assert_close(model(moved, torch.tensor([6])), want)


@pytest.mark.parametrize("ratio", [0.0, 0.15, 0.5, 0.7])
def test_dropped_patches_cost_nothing_in_the_blocks(ratio):
    shape = vit.Shape(384, 12, 6)
    with torch.device("meta"):
        model = VisionTransformer(shape, image_size=224, patch_size=16, stem="patch")
        images, kept = torch.empty(2, 3, 224, 224), keep_count(196, ratio)
        n, width = 1 + kept, shape.width
        block = 12 * n * width**2 + 2 * n**2 * width  # multiply-adds of an image
        last = 3 * n * width**2 + 9 * width**2 + 2 * n * width  # one query, one token in the MLP
        embed = 196 * 3 * 16**2 * width
        assert vit.forward_flops(model, images, torch.zeros(kept, dtype=torch.int64)) == 2 * 2 * (
            11 * block + last + embed
        )


# all tokens, masked ones too


@pytest.mark.parametrize("registers", [0, 2])
def test_all_tokens_are_timms_the_class_token_and_registers_first(registers):
    model, images = network(registers=registers), pictures()
    tokens = model.tokens(images)
    assert tokens.shape == (3, 1 + registers + 16, 32)
    torch.testing.assert_close(tokens, model.forward_features(images))
    torch.testing.assert_close(tokens[:, 0], model(images))


def test_tokens_of_kept_patches_are_in_the_order_of_keep_and_see_no_others():
    model, images = network(registers=1), pictures()
    keep = torch.tensor([[7, 2, 11], [0, 1, 2], [5, 4, 3]])
    tokens = model.tokens(images, keep)
    assert tokens.shape == (3, 2 + 3, 32)
    turned = model.tokens(images, keep.flip(1))
    torch.testing.assert_close(turned[:, :2], tokens[:, :2])
    torch.testing.assert_close(turned[:, 2:], tokens[:, 2:].flip(1))
    torch.testing.assert_close(tokens[:, 0], model(images, keep))


def test_a_mask_token_replaces_the_embedding_of_a_patch_and_keeps_its_position():
    model, images = network(), pictures()
    masked = torch.zeros(3, 16, dtype=torch.bool)
    masked[:, [2, 9]] = True
    token = torch.randn(32, generator=torch.Generator().manual_seed(3), dtype=torch.float64, requires_grad=True)
    embedded = model.patch_embed(images)  # timm's own steps, with the token put in by hand
    embedded[:, [2, 9]] = token
    want = model.norm(model.blocks(model._pos_embed(embedded)))
    got = model.tokens(images, masked=masked, mask_token=token)
    torch.testing.assert_close(got, want)
    assert (got[:, 1 + 2] - got[:, 1 + 9]).abs().max() > 1e-3  # the same token at two places
    other = images.clone()
    other[:, :, :8, 16:24] += 1  # patch 2
    assert torch.equal(model.tokens(other, masked=masked, mask_token=token), got)
    got.square().sum().backward()
    assert token.grad.abs().sum() > 0


def test_masking_nothing_is_the_plain_network_and_half_of_the_arguments_is_refused():
    model, images = network(), pictures()
    none = torch.zeros(3, 16, dtype=torch.bool)
    torch.testing.assert_close(model.tokens(images, masked=none, mask_token=torch.ones(32)), model.tokens(images))
    for half in ({"masked": none}, {"mask_token": torch.ones(32)}):
        with pytest.raises(ValueError, match="masked and mask_token go together"):
            model.tokens(images, **half)


# the mean of the patches, and registers


@pytest.mark.parametrize("registers", [0, 2])
def test_the_mean_of_the_patches_is_timms_average_pooling(registers):
    model, images = network(pool="mean", registers=registers), pictures()
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4, "num_classes": 0}
    theirs = timm.create_model("vit_base_patch16_224", **sizes, global_pool="avg", reg_tokens=registers).double().eval()
    names = {"norm.weight": "fc_norm.weight", "norm.bias": "fc_norm.bias"}
    theirs.load_state_dict({names.get(key, key): value for key, value in model.state_dict().items()})
    torch.testing.assert_close(model(images), theirs(images))
    torch.testing.assert_close(model(images), model.norm(model.before_norm(images)))


def test_the_mean_is_over_kept_patches_alone():
    model, images = network(pool="mean", registers=2), pictures()
    keep = torch.tensor([3, 8])
    want = model.norm(all_kept(model, images, keep)[:, 3:].mean(dim=1))
    torch.testing.assert_close(model(images, keep), want)


def all_kept(model: VisionTransformer, images: Tensor, keep: Tensor) -> Tensor:
    """timm's tokens before the final norm, of a sequence without the other patches."""
    tokens = model._pos_embed(model.patch_embed(images))
    first = model.num_prefix_tokens
    return model.blocks(torch.cat([tokens[:, :first], tokens[:, first + keep]], dim=1))


def test_registers_are_trained_and_start_as_small_as_the_class_token():
    torch.manual_seed(0)
    model = vit.build(ViTConfig(arch="vit_small", registers=4), image_size=224)
    assert model.reg_token.shape == (1, 4, 384)
    assert model.reg_token.std().item() == pytest.approx(0.02, rel=0.1)
    model(torch.zeros(1, 3, 224, 224)).sum().backward()
    assert model.reg_token.grad is not None


# other image sizes


def test_positions_of_smaller_views_are_resized_bicubic_without_antialiasing():
    table = torch.randn(1, 14 * 14, 5, generator=torch.Generator().manual_seed(2))
    got = vit.resize_positions(table, 6)
    image = table.reshape(1, 14, 14, 5).permute(0, 3, 1, 2)
    for options in ({"size": (6, 6)}, {"scale_factor": 6 / 14}):  # the official code gives a factor
        want = F.interpolate(image, mode="bicubic", **options).permute(0, 2, 3, 1).reshape(1, 36, 5)
        torch.testing.assert_close(got, want)
    smooth = timm.layers.resample_abs_pos_embed(table, [6, 6], num_prefix_tokens=0)
    assert (got - smooth).abs().max() > 0.5  # timm's default antialiases
    sharp = timm.layers.resample_abs_pos_embed(table, [6, 6], num_prefix_tokens=0, antialias=False)
    torch.testing.assert_close(got, sharp)


@pytest.mark.parametrize("stem", ["patch", "conv"])
def test_a_smaller_view_goes_through_and_trains_the_position_table(stem):
    model = network(stem)
    model(pictures(side=16)).square().sum().backward()
    assert (model.pos_embed.grad.abs().sum(dim=-1) > 0).all()


def test_a_position_table_that_is_no_square_grid_is_refused_with_its_size():
    with pytest.raises(ValueError, match=r"12 patch positions is no square grid \(3x3 would have 9\)"):
        vit.resize_positions(torch.zeros(1, 12, 4), 2)


# the convolutional stem


def test_convolutional_stem_halves_once_a_factor_of_two_and_ends_in_the_width():
    stem = vit.ConvStem(32, 8, 32)
    convolutions = [(m.in_channels, m.out_channels, m.stride[0]) for m in stem.proj if isinstance(m, nn.Conv2d)]
    assert convolutions == [(3, 8, 2), (8, 16, 2), (16, 32, 2), (32, 32, 1)]
    assert stem.proj(torch.zeros(2, 3, 32, 32)).shape == (2, 32, 4, 4)
    assert stem.num_patches == 16


# initialisation


@pytest.mark.parametrize(("arch", "std"), [("vit_small", 0.02), ("vit_pico", 0.02 * math.sqrt(6))])
def test_a_narrow_layer_starts_with_larger_weights_so_that_its_output_keeps_its_size(arch, std):
    model = vit.build(ViTConfig(arch=arch, patch_size=16), image_size=224)
    assert model.blocks[1].mlp.fc1.weight.std().item() == pytest.approx(std, rel=0.05)


def test_initial_weights_are_the_papers():
    torch.manual_seed(0)
    model = vit.build(ViTConfig(arch="vit_small", patch_size=16), image_size=224)
    for tensor in (model.cls_token, model.pos_embed, model.blocks[3].attn.qkv.weight, model.blocks[3].mlp.fc2.weight):
        assert tensor.std().item() == pytest.approx(0.02, rel=0.15)
        assert tensor.abs().max() < 2.0
    assert model.patch_embed.proj.weight.std().item() == pytest.approx(math.sqrt(2 / (3 * 16 * 16)), rel=0.05)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert (parameter == 0).all(), name
        if "norm" in name and name.endswith("weight"):
            assert (parameter == 1).all(), name
    assert model.norm.eps == model.blocks[0].norm1.eps == 1e-6


@pytest.mark.parametrize("arch", vit.ARCHS)
def test_every_architecture_builds_without_memory(arch):
    with torch.device("meta"):
        model = vit.build(ViTConfig(arch=arch), image_size=224)
    shape = vit.ARCHS[arch]
    assert (model.num_features, len(model.blocks), model.blocks[0].attn.num_heads) == tuple(shape)


# bad input


def test_patches_that_do_not_tile_the_image_are_a_config_error_naming_the_fields():
    with pytest.raises(ConfigError, match=r"model\.patch_size = 5 does not divide the image side = 32: .*1, 2, 4, 8"):
        vit.build(ViTConfig(patch_size=5), image_size=32)
    faults = Faults()
    ViTConfig(patch_size=16).check_side(faults, "views.local_size", 90)
    assert faults.lines[0].startswith("model.patch_size = 16 does not divide views.local_size = 90")
    with pytest.raises(ConfigError, match=r"model\.patch_size = 8 does not divide a view of 20x20"):
        network()(pictures(side=20))


def test_a_patch_size_that_the_convolutional_stem_cannot_halve_is_a_config_error():
    with pytest.raises(ConfigError, match=r"model\.patch_size = 6.*power of two"):
        vit.build(ViTConfig(stem="conv", patch_size=6), image_size=36)
    with pytest.raises(ConfigError, match=r"model\.patch_size = 0"):
        vit.build(ViTConfig(patch_size=0), image_size=36)


def test_images_that_are_not_square_and_masks_of_another_batch_are_refused_with_their_sizes():
    with pytest.raises(ValueError, match="32x16"):
        network()(pictures()[..., :16])
    with pytest.raises(ValueError, match=r"keep has shape \[2, 4\]; 3 images"):
        network()(pictures(), torch.zeros(2, 4, dtype=torch.int64))


def test_stochastic_depth_skips_branches_in_training_alone_more_often_in_later_blocks():
    config = ViTConfig(arch="vit_tiny", patch_size=16, drop_path=0.5)
    model = vit.build(config, image_size=32)
    rates = [block.drop_path1.drop_prob for block in model.blocks[1:]]
    assert rates == pytest.approx([0.5 * number / 11 for number in range(1, 12)])
    plain = vit.build(replace(config, drop_path=0.0), image_size=32)
    plain.load_state_dict(model.state_dict())
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model.eval()(images), plain.eval()(images))
    model.train()
    for block in model.blocks:  # every branch that may be skipped is skipped
        for path in (block.drop_path1, block.drop_path2):
            if not isinstance(path, torch.nn.Identity):
                path.drop_prob, path.scale_by_keep = 1.0, False
    first = model.blocks[0](model._enter(images, None))
    torch.testing.assert_close(model.before_norm(images), first[:, 0])


def test_a_probability_of_stochastic_depth_above_1_is_refused():
    faults = Faults()
    ViTConfig(drop_path=1.0).check(faults)
    with pytest.raises(ConfigError, match=r"model\.drop_path = 1\.0"):
        faults.raise_any()
