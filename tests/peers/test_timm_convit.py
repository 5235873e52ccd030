# SPDX-License-Identifier: Apache-2.0
"""Our ConViT is timm's, weight by weight: the whole network, its gradients, and the attention of its layers."""

import pytest
import timm
import torch
from timm.models.convit import ConVit as TimmConViT
from torch import Tensor, nn

from recipes_lib.models import convit
from recipes_lib.models.convit import ConViT, ConViTConfig
from recipes_lib.models.vit import Shape

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}


def both(heads: int = 4, gpsa_layers: int = 2, dtype: torch.dtype = torch.float64) -> tuple[ConViT, TimmConViT]:
    """The same network twice, 8 numbers a head and a grid of 4x4, with weights far from their start."""
    torch.manual_seed(0)
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 8, "num_heads": heads, "depth": 4}
    theirs = TimmConViT(**sizes, num_classes=0, local_up_to_layer=gpsa_layers).to(dtype).eval()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.3)
    ours = ConViT(Shape(8 * heads, 4, heads), image_size=32, patch_size=8, gpsa_layers=gpsa_layers).to(dtype).eval()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def pictures(dtype: torch.dtype, side: int = 32) -> Tensor:
    return torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(1), dtype=dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("heads", "gpsa_layers"), [(4, 2), (9, 3), (4, 0)])
def test_features_and_gradients_are_timms(heads, gpsa_layers, dtype):
    ours, theirs = both(heads, gpsa_layers, dtype)
    images = pictures(dtype)
    got, want = ours(images), theirs(images)
    torch.testing.assert_close(got, want, rtol=0, atol=TOLERANCE[dtype])
    direction = torch.randn(want.shape, generator=torch.Generator().manual_seed(2), dtype=dtype)
    for output in (got, want):
        (output * direction).sum().backward()
    wanted = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    scale = max(gradient.abs().max().item() for gradient in wanted.values())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted.pop(name), rtol=0, atol=TOLERANCE[dtype] * scale, msg=name)
    assert set(wanted) == {f"blocks.{index}.attn.pos_proj.bias" for index in range(gpsa_layers)}
    for gradient in wanted.values():  # why ours is not trained
        assert gradient.abs().max() < TOLERANCE[dtype] * scale


def test_tokens_and_attention_maps_are_timms():
    ours, theirs = both(9)
    images = pictures(torch.float64)
    torch.testing.assert_close(ours.tokens(images), theirs.forward_features(images), rtol=0, atol=1e-12)
    tokens = torch.randn(2, 16, 72, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    want = theirs.blocks[1].attn
    want(tokens)  # timm makes its relative positions in the forward pass
    torch.testing.assert_close(
        ours.blocks[1].attn.attention_map(tokens, (4, 4)), want.get_attention(tokens), rtol=0, atol=1e-14
    )


@pytest.mark.parametrize("arch", ["convit_tiny", "convit_small", "convit_base"])
def test_the_papers_networks_have_timms_keys_and_shapes(arch):
    with torch.device("meta"):
        ours = convit.build(ConViTConfig(arch=arch), image_size=224).state_dict()
        theirs = timm.create_model(arch, num_classes=0).state_dict()
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in theirs.items()}


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_the_papers_smallest_network_has_timms_features_at_224_pixels(dtype):
    torch.manual_seed(0)
    theirs = timm.create_model("convit_tiny", num_classes=0).to(dtype).eval()  # with its own, local start
    ours = convit.build(ConViTConfig(arch="convit_tiny"), image_size=224).to(dtype).eval()
    assert torch.equal(ours.blocks[0].attn.pos_proj.weight, theirs.blocks[0].attn.pos_proj.weight)
    ours.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        images = pictures(dtype, 224)
        torch.testing.assert_close(ours(images), theirs(images), rtol=0, atol=TOLERANCE[dtype])
