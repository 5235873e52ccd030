# SPDX-License-Identifier: Apache-2.0
"""Our Vision Transformer with ``pre_norm`` is open_clip's image tower, weight by weight."""

import pytest
import torch

from recipes_lib.models import vit

open_clip = pytest.importorskip("open_clip", reason="open_clip_torch is not installed")


def test_the_image_tower_with_open_clips_weights_gives_its_features():
    torch.manual_seed(0)
    peer = open_clip.transformer.VisionTransformer(
        image_size=32, patch_size=8, width=64, layers=2, heads=2, mlp_ratio=4.0, output_dim=64
    ).eval()
    ours = vit.build(vit.ViTConfig(arch="vit_pico", patch_size=8, pre_norm=True), image_size=32).eval()
    ours.load_state_dict(renamed(peer.state_dict()))
    images = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(ours(images) @ peer.proj, peer(images), rtol=1e-4, atol=1e-5)


def renamed(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """open_clip's weights under timm's names."""
    pairs = {
        "conv1": "patch_embed.proj",
        "ln_pre": "norm_pre",
        "ln_post": "norm",
        "transformer.resblocks": "blocks",
        "ln_1": "norm1",
        "ln_2": "norm2",
        "attn.in_proj_": "attn.qkv.",
        "attn.out_proj": "attn.proj",
        "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2",
    }
    out = {
        "cls_token": weights["class_embedding"][None, None],
        "pos_embed": weights["positional_embedding"][None],
    }
    for name, value in weights.items():
        if name not in ("class_embedding", "positional_embedding", "proj"):
            for theirs, own in pairs.items():
                name = name.replace(theirs, own)
            out[name] = value
    return out
