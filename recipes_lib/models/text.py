# SPDX-License-Identifier: Apache-2.0
"""CLIP's text tower: a causal transformer read at the end of the text; open_clip's state-dict keys, but for ``attn.in_proj``.

Symbols: n texts, L tokens of each, D width, d dimensions of the space that images and texts share.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recipes_lib.models.layers import ZeroScale


class TextTransformer(nn.Module):
    """A pre-norm transformer in which a token sees only those before it, read at the first end-of-text token.

    Positions are learned, the activation is GELU, the projection has no bias. What follows the end is never looked
    at, so the work is that of the longest text of a batch, not of the whole context. The weights are drawn from torch's
    global generator, as torch's own layers draw theirs.

    ``vocabulary``: number of token ids; ``context``: the most tokens of a text; ``width``: D, a multiple of ``heads``;
    ``dim``: d; ``end``: the id of the end-of-text token; ``layer_scale``: each branch starts at zero times itself.
    ``num_features`` is d.
    Raises: ``ValueError`` for a width that the heads do not divide, or an end outside the vocabulary.
    Source: Radford et al., arXiv 2103.00020, section 2.4.
    Differs: OpenAI's code looks for the end as the largest id, which holds for its own vocabulary only. OpenAI's own
    weights were trained with another activation, QuickGELU, and give wrong features here; weights trained with
    open_clip's default are right.
    """

    def __init__(
        self,
        *,
        vocabulary: int,
        context: int,
        width: int,
        layers: int,
        heads: int,
        dim: int,
        end: int,
        layer_scale: bool = False,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width = {width} does not divide among {heads} heads.")
        if not 0 <= end < vocabulary:
            raise ValueError(f"end = {end} is no id of a vocabulary of {vocabulary}.")
        self.vocabulary, self.context, self.num_features, self.end = vocabulary, context, dim, end
        self.token_embedding = nn.Embedding(vocabulary, width)
        self.positional_embedding = nn.Parameter(torch.empty(context, width))
        blocks = nn.ModuleList(_Block(width, heads, layer_scale) for _ in range(layers))
        self.transformer = nn.ModuleDict({"resblocks": blocks})
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.empty(width, dim))
        self._initialise()

    def forward(self, tokens: Tensor) -> Tensor:
        """The texts' embeddings, not normalised: int64 [n, L], L at most ``context`` -> [n, d].

        Raises: ``ValueError`` for another shape, more tokens than the context, or a text without an end.
        """
        if tokens.dim() != 2 or tokens.shape[1] > self.context:
            raise ValueError(
                f"tokens have shape {list(tokens.shape)}; this tower takes [n, {self.context}] or shorter."
            )
        is_end = tokens == self.end
        lacking = ~is_end.any(dim=1)
        if lacking.any():
            row = int(lacking.nonzero()[0])
            raise ValueError(
                f"text {row} of {len(tokens)} has no end-of-text token (id {self.end}); is it from another tokenizer?"
            )
        ends = is_end.int().argmax(dim=1)  # the first of each row
        longest = int(ends.max()) + 1
        x = self.token_embedding(tokens[:, :longest]) + self.positional_embedding[:longest]  # [n, longest, D]
        for block in self.transformer["resblocks"]:
            x = block(x)
        last = x[torch.arange(len(x), device=x.device), ends]  # [n, D]
        return self.ln_final(last) @ self.text_projection

    def _initialise(self) -> None:
        """Draws CLIP's initial weights: deviations by width, and by depth where a branch meets the residual stream.

        Source: the released code of arXiv 2103.00020.
        """
        width, layers = self.text_projection.shape[0], len(self.transformer["resblocks"])
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        nn.init.normal_(self.text_projection, std=width**-0.5)
        for block in self.transformer["resblocks"]:
            nn.init.normal_(block.attn.in_proj.weight, std=width**-0.5)
            nn.init.normal_(block.attn.out_proj.weight, std=(2 * layers * width) ** -0.5)
            nn.init.normal_(block.mlp["c_fc"].weight, std=(2 * width) ** -0.5)
            nn.init.normal_(block.mlp["c_proj"].weight, std=(2 * layers * width) ** -0.5)
            for layer in (block.attn.in_proj, block.attn.out_proj, block.mlp["c_fc"], block.mlp["c_proj"]):
                nn.init.zeros_(layer.bias)


class _Block(nn.Module):
    """Causal attention, then an MLP four times as wide, each behind its LayerNorm: [n, L, D] -> [n, L, D]."""

    def __init__(self, width: int, heads: int, layer_scale: bool) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = _CausalAttention(width, heads)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)})
        self.ls_1, self.ls_2 = (ZeroScale(width) if layer_scale else nn.Identity() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls_1(self.attn(self.ln_1(x)))
        return x + self.ls_2(self.mlp["c_proj"](F.gelu(self.mlp["c_fc"](self.ln_2(x)))))


class _CausalAttention(nn.Module):
    """Self-attention of each token to itself and those before it.

    ``in_proj`` is a layer of its own, where ``nn.MultiheadAttention`` holds ``in_proj_weight`` and ``in_proj_bias``: a
    low-bit layer can take its place.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj = nn.utils.skip_init(nn.Linear, width, 3 * width)  # TextTransformer draws its weights, once
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        count, length, width = x.shape
        qkv = self.in_proj(x).view(count, length, 3, self.heads, -1)
        query, key, value = qkv.transpose(1, 3).unbind(2)  # [n, heads, L, D / heads] each
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.out_proj(mixed.transpose(1, 2).reshape(count, length, width))
