# SPDX-License-Identifier: Apache-2.0
"""CLIP's text tower: a causal transformer whose output at the end-of-text token is the text's embedding.

Its state-dict keys are open_clip's, except ``attn.in_proj``.

Symbols: n texts, L tokens per text, D width, d dimensions of the joint embedding space of images and texts.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recipes_lib.models.layers import ZeroScale


class TextTransformer(nn.Module):
    """A causal pre-norm transformer; the output at the first end-of-text token, projected, is the embedding.

    Positions are learned, the activation is GELU, and the projection has no bias. Tokens after the end do not influence
    the embedding, and those after the longest text of the batch are not computed. The weights are drawn from torch's
    global generator, like those of torch's own layers.

    ``vocabulary``: number of token ids; ``context``: the largest number of tokens of a text; ``width``: D, a multiple
    of ``heads``; ``dim``: d; ``end``: the id of the end-of-text token; ``layer_scale``: each branch is multiplied by a
    learned vector that starts at zero. ``num_features`` is d.
    Raises: ``ValueError`` for a width that is not a multiple of ``heads``, or an end outside the vocabulary.
    Source: Radford et al., arXiv 2103.00020, section 2.4.
    Differs: OpenAI's code finds the end as the largest id, which is right only for its own vocabulary. OpenAI's weights
    were trained with another activation, QuickGELU, and give wrong features here; weights trained with open_clip's
    default are right.
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
        """The texts' embeddings, not normalised.  int64 [n, L], L at most ``context`` -> [n, d]

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
        ends = is_end.int().argmax(dim=1)  # [n]: the first end of each row
        longest = int(ends.max()) + 1
        x = self.token_embedding(tokens[:, :longest]) + self.positional_embedding[:longest]  # [n, longest, D]
        for block in self.transformer["resblocks"]:
            x = block(x)
        last = x[torch.arange(len(x), device=x.device), ends]  # [n, D]
        return self.ln_final(last) @ self.text_projection

    def _initialise(self) -> None:
        """Draws CLIP's initial weights, whose std depends on the width and, at the end of a branch, on the depth.

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
    """A pre-norm block: causal self-attention, then an MLP with 4 D hidden units.  [n, L, D] -> [n, L, D]"""

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
    """Causal self-attention: each token attends to itself and the tokens before it.  [n, L, D] -> [n, L, D]

    ``in_proj`` is an ``nn.Linear``, so that a low-bit layer can replace it; ``nn.MultiheadAttention`` has the
    parameters ``in_proj_weight`` and ``in_proj_bias`` instead.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj = nn.utils.skip_init(nn.Linear, width, 3 * width)  # TextTransformer draws the weights
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        count, length, width = x.shape
        qkv = self.in_proj(x).view(count, length, 3, self.heads, -1)
        query, key, value = qkv.transpose(1, 3).unbind(2)  # [n, heads, L, D / heads] each
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.out_proj(mixed.transpose(1, 2).reshape(count, length, width))
