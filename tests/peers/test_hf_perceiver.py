# SPDX-License-Identifier: Apache-2.0
"""Parity with ``transformers.PerceiverModel`` (encoder and basic decoder), random weights, float32, atol 1e-5."""

import pytest
import torch
from torch import nn

from recipes_lib.models.nac.tokens import Tokens
from recipes_lib.models.perceiver import Layer, PerceiverIO, Sizes

transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install '.[text]'")


class Given(nn.Module):
    """Tokens that are given as they are."""

    width = 10

    def forward(self, values: torch.Tensor) -> Tokens:
        return Tokens(values, None)


def read(layer: Layer, theirs: nn.Module) -> None:
    """Copies a layer's weights from transformers' ``PerceiverLayer``."""
    attention, mlp = theirs.attention, theirs.mlp
    pairs = [(layer.norm1, attention.self.layernorm1), (layer.query, attention.self.query)]
    pairs += [(layer.key, attention.self.key), (layer.value, attention.self.value)]
    pairs += [(layer.leave, attention.output.dense), (layer.norm2, theirs.layernorm)]
    pairs += [(layer.mlp1, mlp.dense1), (layer.mlp2, mlp.dense2)]
    if layer.token_norm is not None:
        pairs.append((layer.token_norm, attention.self.layernorm2))
    for ours, other in pairs:
        ours.load_state_dict(other.state_dict())


def test_the_same_weights_give_the_same_output_as_transformers_perceiver():
    from transformers.models.perceiver.modeling_perceiver import PerceiverBasicDecoder

    torch.manual_seed(0)
    config = transformers.PerceiverConfig(
        num_latents=6, d_latents=12, d_model=10, num_blocks=1, num_self_attends_per_block=2, num_self_attention_heads=2,
        num_cross_attention_heads=1, qk_channels=12, v_channels=12, cross_attention_widening_factor=2,
        self_attention_widening_factor=2, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    decoder = PerceiverBasicDecoder(
        config, output_num_channels=12, num_channels=12, output_index_dims=1, num_heads=1, widening_factor=2,
        qk_channels=12, v_channels=12, use_query_residual=False, final_project=False,
        position_encoding_type="trainable", trainable_position_encoding_kwargs={"num_channels": 12, "index_dims": 1},
    )  # fmt: skip
    theirs = transformers.PerceiverModel(config, decoder=decoder).eval()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.3)
    ours = PerceiverIO(Sizes(6, 1, 12, 2, 2, 6, 24), Given()).eval()
    ours.read_in = Layer(12, 10, 1, 12, 24)
    ours.read_out = Layer(12, 12, 1, 12, 24, residual=False)
    read(ours.read_in, theirs.encoder.cross_attention)
    for mine, other in zip(ours.blocks, theirs.encoder.self_attends, strict=True):
        read(mine, other)
    read(ours.read_out, theirs.decoder.decoding_cross_attention)
    ours.latents.data.copy_(theirs.embeddings.latents)
    ours.queries.data.copy_(theirs.decoder.output_position_encodings.position_embeddings)
    tokens = torch.randn(3, 7, 10)
    with torch.no_grad():
        torch.testing.assert_close(ours.before_norm(tokens), theirs(tokens).logits[:, 0], rtol=0, atol=1e-5)
