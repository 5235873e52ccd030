# SPDX-License-Identifier: Apache-2.0
"""Tokens of four kinds of data: images, point clouds, sequences of symbols, sequences of bytes.

Symbols: B samples, V tokens, d_in width of a token.
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from timm.models.convnext import ConvNeXtBlock
from torch import Tensor, nn

from recipes_lib.errors import ConfigError

BYTES = 256
"""Number of different bytes, and the id that fills a row of bytes after its end."""


class Tokens(NamedTuple):
    """Tokens, and which of them do not exist because their sample has fewer."""

    values: Tensor
    """[B, V, d_in]"""
    hidden: Tensor | None
    """bool [B, V], True where there is no token; None: every sample has V tokens."""


class ImageTokens(nn.Module):
    """An image as a grid of tokens, with learned positions concatenated to them.

    ``stem`` patch: a linear map of each patch. conv: a small ConvNeXt (a convolution of stride ``patch_size`` / 4 with
    one block, then two halvings), whose widths double up to ``width``. The grid of positions is resized, bicubically,
    if an image has another size than ``image_size``.

    Shapes: [B, channels, side, side] -> [B, (side / patch_size)^2, width + position_width].
    Raises: ``ConfigError`` if ``patch_size`` does not divide the side, or the conv stem cannot have it.
    Source: Liu et al., arXiv 2201.03545 (ConvNeXt); the official configs' size "femto" (blocks 1, 0, 0).
    """

    def __init__(
        self,
        image_size: int,
        patch_size: int,
        width: int,
        *,
        stem: Literal["patch", "conv"],
        position_width: int = 64,
        channels: int = 3,
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        _need_tiles(image_size, patch_size)
        self.stem = (
            nn.Conv2d(channels, width, patch_size, stride=patch_size)
            if stem == "patch"
            else _conv_stem(patch_size, width, channels)
        )
        grid = image_size // patch_size
        self.positions = nn.Parameter(torch.randn(1, position_width, grid, grid))
        self.width = width + position_width

    def forward(self, images: Tensor) -> Tokens:
        """The tokens of the images, row by row."""
        if images.dim() != 4 or images.shape[-1] != images.shape[-2]:
            raise ValueError(
                f"images have shape {list(images.shape)}; square ones [B, channels, side, side] are wanted."
            )
        _need_tiles(images.shape[-1], self.patch_size)
        grid = self.stem(images)  # [B, width, g, g]
        positions = self.positions
        if positions.shape[-1] != grid.shape[-1]:
            positions = F.interpolate(positions, size=grid.shape[-2:], mode="bicubic", align_corners=False)
        tokens = torch.cat([grid, positions.expand(len(grid), -1, -1, -1)], dim=1)
        return Tokens(tokens.flatten(2).mT, None)


def _conv_stem(patch_size: int, width: int, channels: int) -> nn.Sequential:
    if patch_size % 4 or width % 4:
        raise ConfigError(
            f"model.stem conv halves the grid twice and doubles the width twice: patch_size {patch_size} and width "
            f"{width} must be multiples of 4. Use --model.stem patch."
        )
    first, stride = width // 4, patch_size // 4
    return nn.Sequential(
        nn.Conv2d(channels, first, stride, stride=stride),
        LayerNorm2d(first),
        ConvNeXtBlock(first, ls_init_value=1e-6),
        LayerNorm2d(first),
        nn.Conv2d(first, 2 * first, 2, stride=2),
        LayerNorm2d(2 * first),
        nn.Conv2d(2 * first, width, 2, stride=2),
    )


def _need_tiles(side: int, patch_size: int) -> None:
    if side % patch_size:
        raise ConfigError(
            f"model.patch_size = {patch_size} does not divide a view of {side}x{side} pixels: use a size that does, or "
            "change the view's side."
        )


class PointTokens(nn.Module):
    """A cloud of points as tokens: sines and cosines of the coordinates at doubling frequencies, then a small MLP.

    A token knows its place and not its number, so the order of the points does not matter.

    Shapes: [B, N, 3] -> [B, N, width].
    Raises: ``ValueError`` for another shape, or for coordinates that are not finite.
    """

    def __init__(self, width: int, *, bands: int = 4) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.pi * 2.0 ** torch.arange(bands), persistent=False)
        self.embed = nn.Sequential(nn.Linear(3 + 6 * bands, width), nn.GELU(), nn.Linear(width, width))
        self.width = width

    def forward(self, points: Tensor) -> Tokens:
        """The tokens of the points."""
        if points.dim() != 3 or points.shape[-1] != 3:
            raise ValueError(f"points have shape {list(points.shape)}; [B, N, 3] is wanted (x, y, z of N points).")
        if not points.isfinite().all():
            raise ValueError(f"{int((~points.isfinite()).sum())} coordinates of the points are not finite: clean them.")
        angle = (points[..., None] * self.frequencies).flatten(2)  # [B, N, 3 * bands]
        return Tokens(self.embed(torch.cat([points, angle.sin(), angle.cos()], dim=-1)), None)


class SequenceTokens(nn.Module):
    """A sequence of ids (symbols or bytes) as tokens: an embedding plus a learned position.

    Ids are 0 to ``vocabulary`` - 1; ``vocabulary`` itself fills a row after the sequence's end, and is no token.

    Shapes: int64 [B, L], L at most ``length`` -> [B, L, width].
    Raises: ``ValueError`` for ids out of range, a sequence that is too long, or one without a token.
    """

    def __init__(self, vocabulary: int, length: int, width: int) -> None:
        super().__init__()
        self.vocabulary, self.length, self.width = vocabulary, length, width
        self.embed = nn.Embedding(vocabulary + 1, width)
        self.positions = nn.Parameter(torch.empty(length, width))
        nn.init.normal_(self.embed.weight, std=0.5)
        nn.init.normal_(self.positions, std=0.5)

    def forward(self, ids: Tensor) -> Tokens:
        """The tokens of the sequences."""
        if ids.dim() != 2 or ids.shape[1] > self.length:
            raise ValueError(
                f"ids have shape {list(ids.shape)}; this network has positions for [B, {self.length}] or shorter: "
                "cut the sequences, or build it longer."
            )
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high > self.vocabulary:
            raise ValueError(
                f"ids go from {low} to {high}; allowed are 0 to {self.vocabulary - 1}, and {self.vocabulary} after the end."
            )
        hidden = ids == self.vocabulary
        if hidden.all(dim=1).any():
            raise ValueError(f"sequence {int(hidden.all(dim=1).nonzero()[0])} has no token; leave empty ones out.")
        return Tokens(self.embed(ids) + self.positions[: ids.shape[1]], hidden)


class PairTokens(nn.Module):
    """Two images as one set of tokens, those of the second after those of the first, with a vector for each side.

    Shapes: [B, 2, channels, side, side] -> [B, 2 V, d_in], V and d_in those of ``images``.
    Raises: ``ValueError`` for another number of images.
    """

    def __init__(self, images: ImageTokens) -> None:
        super().__init__()
        self.images, self.width = images, images.width
        self.sides = nn.Parameter(torch.randn(2, 1, images.width))

    def forward(self, pairs: Tensor) -> Tokens:
        """The tokens of the pairs."""
        if pairs.dim() != 5 or pairs.shape[1] != 2:
            raise ValueError(f"pairs have shape {list(pairs.shape)}; [B, 2, channels, side, side] is wanted.")
        values = self.images(pairs.flatten(0, 1)).values.unflatten(0, (-1, 2))  # [B, 2, V, d_in]
        return Tokens((values + self.sides).flatten(1, 2), None)


class TextEncoder(nn.Module):
    """A transformer over the tokens of a text, whose outputs generate a circuit.

    Shapes: int64 [B, L] as for :class:`SequenceTokens` -> tokens [B, L, width], those after a text's end hidden.
    """

    def __init__(self, vocabulary: int, length: int, width: int, *, depth: int, heads: int) -> None:
        super().__init__()
        self.tokens = SequenceTokens(vocabulary, length, width)
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.width = width

    def forward(self, ids: Tensor) -> Tokens:
        """The encoded texts."""
        values, hidden = self.tokens(ids)
        return Tokens(self.blocks(values, src_key_padding_mask=hidden), hidden)
