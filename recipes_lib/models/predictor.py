# SPDX-License-Identifier: Apache-2.0
"""Fixed positions, and the small transformer that predicts hidden patches from visible ones: MAE's decoder, I-JEPA's
predictor.

Symbols: B images, g patches along a side, n visible and m hidden patches, D width of the encoder's tokens.
"""

from functools import partial

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from recipes_lib.models.vit import VisionTransformer


def sincos_positions(grid: int, width: int) -> Tensor:
    """Fixed two-dimensional positions: sines and cosines of the column in one half of the dimensions, of the row in the
    other.

    Frequencies fall geometrically from 1 to nearly 1 / 10,000.

    Shapes: float32 [grid * grid, width], row-major.
    Raises: ``ValueError`` if ``width`` is not a multiple of 4.
    Source: ``facebookresearch/mae``, ``util/pos_embed.py``; ``facebookresearch/ijepa`` has the same.
    """
    if width % 4:
        raise ValueError(f"width = {width}; positions need a multiple of 4: sine and cosine of row and column.")
    frequency = 10_000 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angle = torch.arange(grid, dtype=torch.float64)[:, None] * frequency  # [grid, width / 4]
    line = torch.cat([angle.sin(), angle.cos()], dim=1)  # [grid, width / 2]
    column, row = line.repeat(grid, 1), line.repeat_interleave(grid, dim=0)  # [grid^2, width / 2] each
    return torch.cat([column, row], dim=1).float()


@torch.no_grad()
def fix_positions(backbone: VisionTransformer) -> None:
    """Gives a Vision Transformer fixed positions, which are not trained; those of tokens without a patch are 0."""
    table = sincos_positions(backbone.image_size // backbone.patch_size, backbone.embed_dim)
    backbone.pos_embed.zero_()
    backbone.pos_embed[:, backbone.num_prefix_tokens :] = table.to(backbone.pos_embed)
    backbone.pos_embed.requires_grad_(False)


class PatchPredictor(nn.Module):
    """A narrow transformer: it sees embeddings of visible patches and predicts a vector for each hidden patch.

    A hidden patch enters as a learned mask token plus its position. Self-attention does not look at the order of
    tokens, so visible and hidden ones are just concatenated.

    Shapes: visible [B, extra + n, ``in_dim``] at places int64 [B, n], and hidden places int64 [B, m] ->
    [B, m, ``out_dim``]. The ``extra`` first tokens (such as [CLS]) have no place.
    Source: MAE, arXiv 2111.06377, and I-JEPA, arXiv 2301.08243.
    Differs: weights are drawn as in MAE's code (Xavier-uniform); I-JEPA's code draws them with std 0.02.
    """

    def __init__(self, in_dim: int, out_dim: int, *, grid: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        norm = partial(nn.LayerNorm, eps=1e-6)
        self.embed = nn.Linear(in_dim, width)
        self.mask_token = nn.Parameter(torch.empty(width))
        self.blocks = nn.ModuleList(Block(width, heads, qkv_bias=True, norm_layer=norm) for _ in range(depth))
        self.norm, self.head = norm(width), nn.Linear(width, out_dim)
        self.register_buffer("positions", sincos_positions(grid, width), persistent=False)
        nn.init.normal_(self.mask_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, visible: Tensor, visible_places: Tensor, hidden_places: Tensor) -> Tensor:
        """The predictions at the hidden places, in their order."""
        seen = self.embed(visible)
        extra = seen.shape[1] - visible_places.shape[1]
        placed = seen[:, extra:] + self.positions[visible_places]
        masks = self.mask_token + self.positions[hidden_places]  # [B, m, width]
        x = torch.cat([seen[:, :extra], placed, masks], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, -hidden_places.shape[1] :]))
