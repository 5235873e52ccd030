# SPDX-License-Identifier: Apache-2.0
"""Parity of a recast layer's attention maps with timm's ``convit.GPSA`` of nine heads, float64, tolerance 1e-12.

v_pos, gates, queries and keys are the same. timm's layer has no border of zeros among its keys, so our position attention
is made to sum to 1 over the image's own pixels first.
"""

import timm.models.convit
import torch
from torch import nn

from recipes_lib.models.gated_convolution import GatedConvolution


def test_attention_maps_are_timms_gpsas():
    torch.manual_seed(0)
    theirs = timm.models.convit.GPSA(18, num_heads=9).double()
    ours = GatedConvolution(nn.Conv2d(18, 4, 3, padding=1).double(), gate="near", head_dim=2)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.5)
    with torch.no_grad():
        ours.v_pos.copy_(theirs.pos_proj.weight)  # its bias cancels in the softmax
        ours.gate.copy_(theirs.gating_param)
        for layer, weight in zip((ours.query, ours.key), theirs.qk.weight.chunk(2), strict=True):
            layer.weight.copy_(weight)
    maps = torch.randn(3, 18, 5, 5, dtype=torch.float64)
    tokens = maps.flatten(2).mT
    theirs.rel_indices = theirs.get_rel_indices(25)
    position = ours.position_maps(5, 5)
    gates = ours.gates()[:, None, None]
    mixed = gates * position / position.sum(-1, keepdim=True) + (1 - gates) * ours.content_maps(maps)
    torch.testing.assert_close(mixed, theirs.get_attention(tokens), rtol=0, atol=1e-12)
