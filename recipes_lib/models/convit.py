# SPDX-License-Identifier: Apache-2.0
"""ConViT: a Vision Transformer whose first blocks have gated positional self-attention (GPSA), with timm's keys.

Symbols: B images, N patches, D width, H heads, g = side / patch_size (so N = g * g for square images).
Source: d'Ascoli et al., "ConViT: Improving Vision Transformers with Soft Convolutional Inductive Biases",
arXiv 2103.10697.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from timm.layers import DropPath, Mlp, PatchEmbed
from timm.models.vision_transformer import Attention
from torch import Tensor, nn

from recipes_lib.errors import ConfigError, Faults
from recipes_lib.models.gpsa import GPSA
from recipes_lib.models.layers import LayersConfig, ZeroScale
from recipes_lib.models.vit import Shape, class_token, resize_positions, untiled

ARCHS = {
    "convit_pico": Shape(72, 3, 9),
    "convit_nano": Shape(144, 4, 9),
    "convit_tiny": Shape(192, 12, 4),
    "convit_small": Shape(432, 12, 9),
    "convit_base": Shape(768, 12, 16),
    "convit_tiny_plus": Shape(256, 12, 4),
    "convit_small_plus": Shape(576, 12, 9),
    "convit_base_plus": Shape(1024, 12, 16),
}
Arch = Literal[
    "convit_pico",
    "convit_nano",
    "convit_tiny",
    "convit_small",
    "convit_base",
    "convit_tiny_plus",
    "convit_small_plus",
    "convit_base_plus",
]

_NORM = partial(nn.LayerNorm, eps=1e-6)


@dataclass(frozen=True, kw_only=True)
class ConViTConfig(LayersConfig):
    """The architecture of a ConViT."""

    arch: Arch = "convit_small"
    """Width, depth, heads: pico 72, 3, 9; nano 144, 4, 9; tiny 192, 12, 4; small 432, 12, 9; base 768, 12, 16; and
    the same with 64 in place of 48 dimensions per head: tiny_plus 256, small_plus 576, base_plus 1024."""
    patch_size: int = 16
    """Side of a patch in pixels; it must divide the sides of every view."""
    pool: Literal["cls", "mean"] = "cls"
    """The representation. cls: the class token, [CLS], which enters before the first block without GPSA; mean: the mean
    of the patch tokens."""
    drop_path: float = 0.1
    """Stochastic depth: the probability that a branch of the last block is left out for an image, in [0, 1); it rises
    linearly from 0 in the first block."""

    gpsa_layers: int | None = None
    """Number of blocks, from the first on, with GPSA; the others have plain self-attention. None: all but the last
    two of 12 blocks, as in the paper, and all but the last of fewer; 0 is a plain Vision Transformer."""
    local_init: bool = True
    """Whether GPSA starts as a convolution: each head attends around an offset of its own, and values are the patches.
    Otherwise it starts at random."""
    locality_strength: float = 1.0
    """How sharply a head attends to its offset at the start, alpha, above 0; its Gaussian has variance 1 / (2 alpha)
    patches."""
    gate_init: float = 1.0
    """Logit of the share of attention that goes to positions at the start, lambda: 1 is a share of 0.73."""
    fixed: Literal["none", "gate", "attention"] = "none"
    """What GPSA does not learn. gate: lambda; attention: lambda, positions, queries and keys, so that only values and
    outputs are learned."""

    def check(self, faults: Faults) -> None:
        """Adds every fault of this group to ``faults``."""
        super().check(faults)
        depth, layers = ARCHS[self.arch].depth, self.gpsa_layers
        faults.need(self.patch_size >= 1, "model.patch_size", self.patch_size, "of at least 1")
        faults.need(0 <= self.drop_path < 1, "model.drop_path", self.drop_path, "in [0, 1)", "The paper uses 0.1.")
        faults.need(
            layers is None or 0 <= layers <= depth,
            "model.gpsa_layers",
            layers,
            f"from 0 to {depth}, the number of blocks of {self.arch}",
        )
        if layers == depth and self.pool == "cls":
            faults.add(_no_class_token(depth))
        faults.need(
            self.locality_strength > 0,
            "model.locality_strength",
            self.locality_strength,
            "above 0",
            "0 would attend to all positions alike and a negative one avoid the neighbours; the paper uses 1.",
        )
        faults.need(not math.isnan(self.gate_init), "model.gate_init", self.gate_init, "that is a number")

    def check_side(self, faults: Faults, field: str, side: int) -> None:
        """Adds a fault to ``faults`` if the patch size does not divide ``side``, the value of config ``field``."""
        if self.patch_size >= 1 and side >= 1 and side % self.patch_size:
            faults.add(untiled(side, self.patch_size, f"{field} = {side}"))


def build(config: ConViTConfig, *, image_size: int) -> "ConViT":
    """Builds the network of ``config``, with one position per patch of a view with a side of ``image_size`` pixels.

    Raises: ``ConfigError`` if ``config`` has a fault or its patches do not tile the image.
    """
    faults = Faults()
    config.check(faults)
    config.check_side(faults, "the image side", image_size)
    faults.raise_any()
    shape = ARCHS[config.arch]
    default = shape.depth - (2 if shape.depth >= 12 else 1)
    return ConViT(
        shape,
        image_size=image_size,
        patch_size=config.patch_size,
        gpsa_layers=default if config.gpsa_layers is None else config.gpsa_layers,
        pool=config.pool,
        drop_path=config.drop_path,
        layer_scale=config.layer_scale,
        locality_strength=config.locality_strength if config.local_init else None,
        gate_init=config.gate_init,
        fixed=config.fixed,
    )


class ConViT(nn.Module):
    """A pre-norm Vision Transformer whose first ``gpsa_layers`` blocks have GPSA and see the patches alone.

    The class token, [CLS], has no position. It enters before the first block without GPSA, since GPSA is about a grid.
    The representation is [CLS] after the final LayerNorm, or with ``pool="mean"`` the mean of the patch tokens, which
    is the only one where all blocks have GPSA. The linear maps of queries, keys and values have no bias. The weights
    are drawn from torch's global generator.

    Shapes: images [B, 3, height, width] -> [B, D]; positions of another grid than the one it was built for are
    interpolated, and the locality stays as wide as before in patches.
    Source: arXiv 2103.10697; ``local_init`` and the order of blocks as in the released code.
    Differs: the mean is taken before the final norm, as in our Vision Transformer (timm's ConViT: after it).
    Raises: ``ConfigError`` for a number of GPSA layers beyond the depth or a class token that would never enter;
    ``ValueError`` as :class:`~recipes_lib.models.gpsa.GPSA`.
    """

    def __init__(
        self,
        shape: Shape,
        *,
        image_size: int,
        patch_size: int,
        gpsa_layers: int,
        pool: Literal["cls", "mean"] = "cls",
        drop_path: float = 0.0,
        layer_scale: bool = False,
        locality_strength: float | None = 1.0,
        gate_init: float = 1.0,
        fixed: Literal["none", "gate", "attention"] = "none",
    ) -> None:
        super().__init__()
        width, depth, heads = shape
        if not 0 <= gpsa_layers <= depth:
            raise ConfigError(f"model.gpsa_layers = {gpsa_layers}; a network of {depth} blocks takes 0 to {depth}.")
        if gpsa_layers == depth and pool == "cls":
            raise ConfigError(_no_class_token(depth))
        self.shape, self.image_size, self.patch_size = shape, image_size, patch_size
        self.gpsa_layers, self.pooling, self.num_features = gpsa_layers, pool, width
        self.patch_embed = PatchEmbed(image_size, patch_size, 3, width)
        self.pos_embed = nn.Parameter(torch.empty(1, self.patch_embed.num_patches, width))
        self.cls_token = nn.Parameter(torch.empty(1, 1, width)) if gpsa_layers < depth else None
        std = 0.02 * max(1.0, math.sqrt(192 / width))
        gpsa = partial(
            GPSA, width, heads, locality_strength=locality_strength, gate_init=gate_init, fixed=fixed, std=std
        )
        plain = partial(Attention, width, heads, qkv_bias=False)
        blocks = []
        for index in range(depth):
            attention = gpsa() if index < gpsa_layers else plain()
            blocks.append(ConViTBlock(attention, width, drop_path * index / max(depth - 1, 1)))
            if layer_scale:
                blocks[-1].ls1, blocks[-1].ls2 = ZeroScale(width), ZeroScale(width)
        self.blocks, self.norm = nn.ModuleList(blocks), _NORM(width)
        self._initialise(std)

    @property
    def num_prefix_tokens(self) -> int:
        """Number of tokens before the patches in the output of the last block: 1, or 0 where all blocks have GPSA."""
        return 0 if self.cls_token is None else 1

    def forward(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """The representation, after the final LayerNorm.  [B, 3, height, width] -> [B, D]"""
        return self.norm(self.before_norm(images, keep))

    def before_norm(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """The representation after the last block, before the final LayerNorm.  [B, 3, height, width] -> [B, D]

        Raises: ``ConfigError`` if patches do not tile the images, or if ``keep`` asks to drop patches.
        """
        if keep is not None:
            raise ConfigError(
                f"keep drops patches ({list(keep.shape)} kept), and a ConViT needs all of its grid, because GPSA attends "
                "to positions: train it without masks, or choose a vit."
            )
        if self.pooling == "mean":
            return self._last_block(images)[:, self.num_prefix_tokens :].mean(dim=1)
        x = self._gpsa_blocks(images)
        for block in self.blocks[self.gpsa_layers : -1]:
            x = block(x)
        return class_token(self.blocks[-1], x)

    def tokens(self, images: Tensor) -> Tensor:
        """All tokens after the final LayerNorm, [CLS] first where there is one.

        Shapes: [B, 3, height, width] -> [B, 1 + N, D], or [B, N, D] where all blocks have GPSA.
        """
        return self.norm(self._last_block(images))

    def grid(self, images: Tensor) -> tuple[int, int]:
        """The grid of patches of the images, (height, width). Raises: ``ConfigError`` if patches do not tile them."""
        height, width = images.shape[-2:]
        for side in (height, width):
            if side % self.patch_size:
                view = (
                    f"a view of {height}x{width} pixels (the network was built for {self.image_size}x{self.image_size})"
                )
                raise ConfigError(untiled(side, self.patch_size, view))
        return height // self.patch_size, width // self.patch_size

    def _gpsa_blocks(self, images: Tensor) -> Tensor:
        """The input of the first block without GPSA.  [B, 3, height, width] -> [B, 1 + N, D] ([B, N, D] without [CLS])"""
        grid = self.grid(images)
        x = self.patch_embed.proj(images).flatten(2).mT + resize_positions(self.pos_embed, grid)  # [B, N, D]
        for block in self.blocks[: self.gpsa_layers]:
            x = block(x, grid)
        return x if self.cls_token is None else torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)

    def _last_block(self, images: Tensor) -> Tensor:
        """The output of the last block at all tokens."""
        x = self._gpsa_blocks(images)
        for block in self.blocks[self.gpsa_layers :]:
            x = block(x)
        return x

    def _initialise(self, std: float) -> None:
        """Draws the paper's initial weights; GPSA layers have drawn theirs already.

        Differs: networks narrower than the paper's have a larger std than 0.02, as our Vision Transformer has, which
        keeps the size of a layer's output.
        """
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        if self.cls_token is not None:
            nn.init.trunc_normal_(self.cls_token, std=0.02)
        of_gpsa = {layer for block in self.blocks[: self.gpsa_layers] for layer in block.attn.modules()}
        for module in self.modules():
            if isinstance(module, nn.Linear) and module not in of_gpsa:
                nn.init.trunc_normal_(module.weight, std=std)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


class ConViTBlock(nn.Module):
    """A pre-norm transformer block around GPSA or plain self-attention, with the parts and names of timm's ``Block``.

    Shapes: tokens [B, N, D] -> [B, N, D]; GPSA also needs the patches' grid, (height, width).
    """

    def __init__(self, attention: GPSA | Attention, width: int, drop_path: float) -> None:
        super().__init__()
        self.norm1, self.attn = _NORM(width), attention
        self.ls1, self.drop_path1 = nn.Identity(), DropPath(drop_path) if drop_path else nn.Identity()
        self.norm2, self.mlp = _NORM(width), Mlp(width, 4 * width)
        self.ls2, self.drop_path2 = nn.Identity(), DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """The block's output; ``grid`` is given where the attention is GPSA.  [B, N, D] -> [B, N, D]"""
        tokens = self.norm1(x)
        x = x + self.drop_path1(self.ls1(self.attn(tokens) if grid is None else self.attn(tokens, grid)))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


def _no_class_token(depth: int) -> str:
    return (
        f"model.pool = cls with model.gpsa_layers = {depth} has no class token, which enters after the last block with "
        f"GPSA: use model.pool mean, or at most {depth - 1} layers with GPSA."
    )
