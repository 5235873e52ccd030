# SPDX-License-Identifier: Apache-2.0
"""The three layers of a circuit: read-in from tokens, propagators between modules, read-out into output modules.

Symbols: B samples, U modules, O output modules, V tokens, d_in width of a token, d width of a module's state.
Source: ``mweiss17/NeuralAttentiveCircuits``, ``attention.py`` and the ImageNet configs.
"""

import torch.nn.functional as F
from timm.layers import DropPath
from timm.models.vision_transformer import LayerScale
from torch import Tensor, nn

from recipes_lib.models.nac.links import attend
from recipes_lib.models.nac.modulation import FeedForward, ModulatedLinear


class ReadIn(nn.Module):
    """Every module attends to the tokens with keys and values of its own, made by its code; then a feed-forward layer.

    One head. A module's own keys are W_k (sigma_k * x), so that q . W_k (sigma_k * x) = (sigma_k * W_k^T q) . x: the
    scales go to the query, the same way for values, and no tensor of B x V x U x d_in numbers is ever made.

    Shapes: states [U, d] or [B, U, d], tokens [B, V, d_in], ``hidden`` bool [B, V] (tokens that do not exist) ->
    [B, U, d].
    Differs: the official class has no residual around this attention unless a config asks for it; here it has one.
    """

    def __init__(self, in_width: int, width: int, head_width: int, hidden: int, code_dim: int) -> None:
        super().__init__()
        self.scale = head_width**-0.5
        self.token_norm, self.state_norm = nn.LayerNorm(in_width), nn.LayerNorm(width)
        self.query = ModulatedLinear(width, head_width, code_dim, bias=False)
        self.key = ModulatedLinear(in_width, head_width, code_dim, bias=False)
        self.value = ModulatedLinear(in_width, head_width, code_dim, bias=False)
        self.leave = ModulatedLinear(head_width, width, code_dim)
        self.norm = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width, hidden, code_dim)

    def forward(self, states: Tensor, codes: Tensor, tokens: Tensor, hidden: Tensor | None = None) -> Tensor:
        """The modules' states after they have read the tokens."""
        tokens = self.token_norm(tokens)
        query = self.query(self.state_norm(states), codes)  # [U, head] or [B, U, head]
        folded = (query @ self.key.linear.weight) * self.key.scales(codes)  # [U, d_in] or [B, U, d_in]
        folded = folded.expand(len(tokens), -1, -1)
        seen = None if hidden is None else ~hidden[:, None]  # [B, 1, V]
        mixed = F.scaled_dot_product_attention(folded, tokens, tokens, attn_mask=seen, scale=self.scale)  # [B, U, d_in]
        states = states + self.leave(self.value(mixed, codes), codes)
        return states + self.feed_forward(self.norm(states), codes)


class Propagator(nn.Module):
    """Every module attends to all modules along their links; then a feed-forward layer.

    Queries and outputs are made by the receiver's code, keys and values by the sender's.

    Shapes: states [B, U, d], codes [U, code_dim] or [B, U, code_dim], ``log_links`` [U, U] or [B, U, U] -> [B, U, d].
    """

    def __init__(
        self,
        width: int,
        heads: int,
        head_width: int,
        hidden: int,
        code_dim: int,
        *,
        layer_scale: float | None = None,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.heads, inner = heads, heads * head_width
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query = ModulatedLinear(width, inner, code_dim, bias=False)
        self.key = ModulatedLinear(width, inner, code_dim, bias=False)
        self.value = ModulatedLinear(width, inner, code_dim, bias=False)
        self.leave = ModulatedLinear(inner, width, code_dim)
        self.feed_forward = FeedForward(width, hidden, code_dim)
        self.scale1, self.scale2 = (
            nn.Identity() if layer_scale is None else LayerScale(width, layer_scale) for _ in range(2)
        )
        self.drop_path = DropPath(drop_path)

    def forward(self, states: Tensor, codes: Tensor, log_links: Tensor) -> Tensor:
        """The modules' next states."""
        x = self.norm1(states)
        mixed = attend(self.query(x, codes), self.key(x, codes), self.value(x, codes), log_links, self.heads)
        states = states + self.drop_path(self.scale1(self.leave(mixed, codes)))
        return states + self.drop_path(self.scale2(self.feed_forward(self.norm2(states), codes)))


class ReadOut(nn.Module):
    """The output modules attend to all other modules along their links, one head; then a feed-forward layer.

    Their old states, which are the same for every sample, go into their queries only: there is no residual around the
    attention.

    Shapes: ``outputs`` [O, d] or [B, O, d] and their codes, states [B, U, d] and their codes, ``log_links`` [O, U] or
    [B, O, U] -> [B, O, d].
    """

    def __init__(self, width: int, head_width: int, hidden: int, code_dim: int) -> None:
        super().__init__()
        self.output_norm, self.state_norm, self.norm = (nn.LayerNorm(width) for _ in range(3))
        self.query = ModulatedLinear(width, head_width, code_dim, bias=False)
        self.key = ModulatedLinear(width, head_width, code_dim, bias=False)
        self.value = ModulatedLinear(width, head_width, code_dim, bias=False)
        self.leave = ModulatedLinear(head_width, width, code_dim)
        self.feed_forward = FeedForward(width, hidden, code_dim)

    def forward(
        self, outputs: Tensor, output_codes: Tensor, states: Tensor, codes: Tensor, log_links: Tensor
    ) -> Tensor:
        """The states of the output modules."""
        x = self.state_norm(states)
        query = self._query(outputs, output_codes, len(states))
        mixed = attend(query, self.key(x, codes), self.value(x, codes), log_links, heads=1)
        found = self.leave(mixed, output_codes)
        return found + self.feed_forward(self.norm(found), output_codes)

    def weights(
        self, outputs: Tensor, output_codes: Tensor, states: Tensor, codes: Tensor, log_links: Tensor
    ) -> Tensor:
        """How much each output module attends to each module: [B, O, U], each row a distribution."""
        query = self._query(outputs, output_codes, len(states))
        key = self.key(self.state_norm(states), codes)
        return (query @ key.mT * query.shape[-1] ** -0.5 + log_links).softmax(dim=-1)

    def _query(self, outputs: Tensor, codes: Tensor, batch: int) -> Tensor:
        return self.query(self.output_norm(outputs), codes).expand(batch, -1, -1)
