# SPDX-License-Identifier: Apache-2.0
"""Vision Transformers that skip the computation of dropped patches, with timm's blocks and state-dict keys.

Symbols: B images, N patches per view, n kept patches, D width, g = side / patch_size (so N = g * g).
"""

import math
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Literal, NamedTuple

import timm.models.vision_transformer
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from recipes_lib.distributed.batch_norm import CrossRankBatchNorm
from recipes_lib.errors import ConfigError, Faults
from recipes_lib.models.layers import LayersConfig, ZeroScale


class Shape(NamedTuple):
    """The sizes of a Vision Transformer."""

    width: int
    """Dimensions of a token, D."""
    depth: int
    """Number of blocks."""
    heads: int
    """Number of attention heads per block."""


ARCHS = {
    "vit_pico": Shape(64, 2, 2),
    "vit_nano": Shape(96, 3, 3),
    "vit_tiny": Shape(192, 12, 3),
    "vit_small": Shape(384, 12, 6),
    "vit_base": Shape(768, 12, 12),
    "vit_large": Shape(1024, 24, 16),
    "vit_huge": Shape(1280, 32, 16),
}
Arch = Literal["vit_pico", "vit_nano", "vit_tiny", "vit_small", "vit_base", "vit_large", "vit_huge"]


@dataclass(frozen=True, kw_only=True)
class ViTConfig(LayersConfig):
    """The architecture of a Vision Transformer."""

    arch: Arch = "vit_small"
    """Width, depth, heads: pico 64, 2, 2; nano 96, 3, 3; tiny 192, 12, 3; small 384, 12, 6; base 768, 12, 12;
    large 1024, 24, 16; huge 1280, 32, 16."""
    patch_size: int = 16
    """Side of a patch in pixels; it must divide the side of every view."""
    stem: Literal["patch", "conv"] = "patch"
    """patch: a linear map of each patch, as in the paper; conv: stride-2 convolutions, which learn faster at first."""

    pre_norm: bool = False
    """Whether there is a LayerNorm before the first block and no bias of the patches, as in CLIP's."""
    pool: Literal["cls", "mean"] = "cls"
    """The representation. cls: the class token, [CLS]; mean: the mean of the patch tokens, as for masked modelling."""
    registers: int = 0
    """Number of additional learned tokens without a patch, which take up what the network needs to store globally."""
    drop_path: float = 0.0
    """Stochastic depth: probability, in [0, 1), that a branch of the last block is skipped for an image in training. It
    rises linearly from 0 over the blocks."""

    def check(self, faults: Faults) -> None:
        """Adds every fault of this group to ``faults``."""
        super().check(faults)
        size = self.patch_size
        faults.need(size >= 1, "model.patch_size", size, "of at least 1")
        faults.need(
            self.registers >= 0, "model.registers", self.registers, "of at least 0", "DINOv2's networks have 4."
        )
        faults.need(0 <= self.drop_path < 1, "model.drop_path", self.drop_path, "in [0, 1)")
        if self.stem == "conv" and size >= 1:
            power = size >= 2 and size & (size - 1) == 0
            hint = "The convolutional stem halves the image once a factor; --model.stem patch takes any size."
            faults.need(power, "model.patch_size", size, "that is a power of two, from 2 on", hint)

    def check_side(self, faults: Faults, field: str, side: int) -> None:
        """Adds a fault to ``faults`` if the patch size does not divide ``side``, the value of config ``field``."""
        if self.patch_size >= 1 and side >= 1 and side % self.patch_size:
            faults.add(untiled(side, self.patch_size, f"{field} = {side}"))


def build(config: ViTConfig, *, image_size: int) -> "VisionTransformer":
    """Builds the network of ``config``, with one position per patch of a view with a side of ``image_size`` pixels.

    Raises: ``ConfigError`` if ``config`` has a fault or its patches do not tile the image.
    """
    faults = Faults()
    config.check(faults)
    config.check_side(faults, "the image side", image_size)
    faults.raise_any()
    return VisionTransformer(
        ARCHS[config.arch],
        image_size=image_size,
        patch_size=config.patch_size,
        stem=config.stem,
        pre_norm=config.pre_norm,
        layer_scale=config.layer_scale,
        pool=config.pool,
        registers=config.registers,
        drop_path=config.drop_path,
    )


class VisionTransformer(timm.models.vision_transformer.VisionTransformer):
    """A pre-norm Vision Transformer whose representation is the class token, [CLS], after the final LayerNorm.

    With ``pool="mean"`` the representation is the mean of the patch tokens instead. Patches may be dropped: this
    happens after positions are added, so the blocks do not compute dropped patches. The weights are drawn from torch's
    global generator, like those of torch's own layers.

    Shapes: images [B, 3, side, side] -> [B, D]; ``keep`` int64 [n] (one set for all images) or [B, n], the indices of
    the patches that are kept.
    Source: Dosovitskiy et al., arXiv 2010.11929; initialisation of Assran et al., arXiv 2204.07141.
    """

    def __init__(
        self,
        shape: Shape,
        *,
        image_size: int,
        patch_size: int,
        stem: Literal["patch", "conv"],
        pre_norm: bool = False,
        layer_scale: bool = False,
        pool: Literal["cls", "mean"] = "cls",
        registers: int = 0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__(
            img_size=image_size,
            patch_size=patch_size,
            num_classes=0,
            embed_dim=shape.width,
            depth=shape.depth,
            num_heads=shape.heads,
            qkv_bias=True,
            pre_norm=pre_norm,
            reg_tokens=registers,
            drop_path_rate=drop_path,
            norm_layer=partial(nn.LayerNorm, eps=1e-5 if pre_norm else 1e-6),  # CLIP's value and timm's
            weight_init="skip",
        )
        self.image_size, self.patch_size, self.stem, self.pooling = image_size, patch_size, stem, pool
        if stem == "conv":
            self.patch_embed = ConvStem(image_size, patch_size, shape.width)
        if layer_scale:  # timm's LayerScale starts at a small number and cannot start at 0
            for block in self.blocks:
                block.ls1, block.ls2 = ZeroScale(shape.width), ZeroScale(shape.width)
        _initialise(self)

    def forward(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """The representation, after the final LayerNorm.  [B, 3, side, side] -> [B, D]"""
        return self.norm(self.before_norm(images, keep))

    def before_norm(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """The representation after the last block, before the final LayerNorm, for MSN's low-shot evaluation.

        Shapes: [B, 3, side, side] -> [B, D].
        Raises: ``ConfigError`` if patches do not tile the images, ``ValueError`` if images are not square or ``keep``
        fits neither of its shapes.
        """
        x = self._enter(images, keep)
        for block in self.blocks[:-1]:
            x = block(x)
        if self.pooling == "cls":
            return class_token(self.blocks[-1], x)
        return self.blocks[-1](x)[:, self.num_prefix_tokens :].mean(dim=1)

    def tokens(
        self,
        images: Tensor,
        keep: Tensor | None = None,
        *,
        masked: Tensor | None = None,
        mask_token: Tensor | None = None,
    ) -> Tensor:
        """All tokens after the final LayerNorm: [CLS], the registers, then the patches in the order of ``keep``.

        ``masked``: patches whose embedding is replaced by ``mask_token``; their positions stay. Patches that are
        dropped by ``keep`` are not computed; masked ones are.

        Shapes: [B, 3, side, side], ``masked`` bool [B, N], ``mask_token`` [D] -> [B, 1 + registers + n, D].
        Raises: as :meth:`before_norm`; ``ValueError`` if only one of ``masked`` and ``mask_token`` is given.
        """
        x = self._enter(images, keep, masked, mask_token)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def _enter(
        self, images: Tensor, keep: Tensor | None, masked: Tensor | None = None, mask_token: Tensor | None = None
    ) -> Tensor:
        """The input of the first block.  [B, 3, side, side] -> [B, 1 + registers + n, D]"""
        tokens = self._embed(images, masked, mask_token)  # [B, N, D]
        if keep is not None:
            tokens = kept(tokens, keep)  # [B, n, D]
        first = self.cls_token if self.reg_token is None else torch.cat([self.cls_token, self.reg_token], dim=1)
        first = first + self.pos_embed[:, : self.num_prefix_tokens]  # [1, 1 + registers, D]: never dropped
        return self.norm_pre(torch.cat([first.expand(len(tokens), -1, -1), tokens], dim=1))

    def _embed(self, images: Tensor, masked: Tensor | None, mask_token: Tensor | None) -> Tensor:
        """The patch embeddings, or the mask token in their place, plus their positions.

        Shapes: [B, 3, side, side] -> [B, N, D].
        """
        if (masked is None) != (mask_token is None):
            raise ValueError("masked and mask_token go together: give both or neither.")
        height, width = images.shape[-2:]
        if height != width:
            raise ValueError(
                f"images are {height}x{width} pixels; this network's grid of positions is square: crop them."
            )
        if height % self.patch_size:
            raise ConfigError(untiled(height, self.patch_size, f"a view of {height}x{width} pixels"))
        if self.stem == "conv":  # a third faster on a CPU, and the tokens are contiguous
            images = images.contiguous(memory_format=torch.channels_last)
        tokens = self.patch_embed.proj(images).flatten(2).mT  # [B, D, g, g] -> [B, N, D]
        if masked is not None:
            tokens = torch.where(masked[..., None], mask_token, tokens)
        return tokens + resize_positions(self.pos_embed[:, self.num_prefix_tokens :], height // self.patch_size)


def forward_flops(model: VisionTransformer, images: Tensor, keep: Tensor | None = None) -> int:
    """The number of floating-point operations of one forward pass's matrix products and convolutions.

    A multiply-add counts as two. Tensors on the meta device are enough. The forward pass uses torch's plain attention,
    because torch's counter does not see the CPU's fused attention.
    """
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(images, keep)
    return counter.get_total_flops()


class ConvStem(nn.Module):
    """A convolutional stem: stride-2 convolutions down to the patch grid, then a 1x1 convolution.

    It has log2(patch_size) layers of 3x3 convolution, batch norm (over all ranks) and ReLU, whose widths double up to
    D. The receptive fields of neighbouring tokens overlap, so the neighbours of a dropped patch still see its borders.

    Shapes: ``proj`` maps [B, 3, side, side] to [B, D, g, g].
    Source: Xiao et al., "Early convolutions help transformers see better", arXiv 2106.14881.
    """

    def __init__(self, image_size: int, patch_size: int, width: int) -> None:
        super().__init__()
        halvings = int(math.log2(patch_size))
        widths = [3, *(width >> (halvings - 1 - i) for i in range(halvings))]
        layers = []
        for before, after in pairwise(widths):
            conv = nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False)  # the batch norm has a bias
            layers += [conv, CrossRankBatchNorm(after), nn.ReLU(inplace=True)]
        self.proj = nn.Sequential(*layers, nn.Conv2d(width, width, 1))
        self.num_patches = (image_size // patch_size) ** 2


def resize_positions(positions: Tensor, side: int | tuple[int, int]) -> Tensor:
    """Resizes a table of patch positions to another grid, by bicubic interpolation without antialiasing.

    ``side``: of a square grid, or the height and width of a grid. timm's own resizing has antialiasing, and differs by
    up to 2.7 on a table of unit variance.

    Shapes: ``positions`` [1, g * g, D] -> [1, side * side, D] or [1, height * width, D].
    Raises: ``ValueError`` if the table is not that of a square grid.
    """
    count, width = positions.shape[1:]
    grid = math.isqrt(count)
    if grid * grid != count:
        raise ValueError(
            f"a table of {count} patch positions is no square grid ({grid}x{grid} would have {grid * grid})."
        )
    size = (side, side) if isinstance(side, int) else side
    if size == (grid, grid):
        return positions
    table = positions.mT.reshape(1, width, grid, grid)  # [1, D, g, g]
    table = F.interpolate(table, size=size, mode="bicubic", antialias=False, align_corners=False)
    return table.flatten(2).mT


def untiled(side: int, patch_size: int, view: str) -> str:
    """The error line for a patch size that does not divide the side of ``view``."""
    fits = [size for size in range(1, side + 1) if side % size == 0]
    return (
        f"model.patch_size = {patch_size} does not divide {view}: use a size that does "
        f"({', '.join(map(str, fits))}), or change the view's side."
    )


def kept(tokens: Tensor, keep: Tensor) -> Tensor:
    """The kept tokens, in the order of ``keep``.

    Shapes: tokens [B, N, D], ``keep`` int64 [n] (the same of all images) or [B, n] -> [B, n, D].
    Raises: ``ValueError`` if ``keep`` has another shape.
    """
    batch, count, width = tokens.shape
    if keep.dim() == 1:
        return tokens.index_select(1, keep)
    if keep.dim() != 2 or len(keep) != batch:
        raise ValueError(f"keep has shape {list(keep.shape)}; {batch} images take [n] or [{batch}, n].")
    rows = keep + torch.arange(batch, device=keep.device)[:, None] * count  # [B, n]
    # selecting rows of a flat table is about 1.5 times faster on a CPU than gather, forward and backward together
    return tokens.reshape(-1, width).index_select(0, rows.flatten()).view(batch, -1, width)


def class_token(block: nn.Module, x: Tensor) -> Tensor:
    """The output at [CLS] of timm's block, the last one, of which nothing else is used.  [B, 1 + n, D] -> [B, D]

    It equals ``block(x)[:, 0]``, but saves three quarters of the products: only [CLS] attends and passes the MLP.
    """
    attention = block.attn
    batch, count, width = x.shape
    qkv = attention.qkv(block.norm1(x)).view(batch, count, 3, attention.num_heads, -1)
    query, key, value = qkv.transpose(1, 3).unbind(2)  # [B, heads, 1 + n, D / heads] each
    mixed = F.scaled_dot_product_attention(query[:, :, :1], key, value)  # [B, heads, 1, D / heads]
    x = x[:, 0] + block.drop_path1(block.ls1(attention.proj(mixed.reshape(batch, width))))
    return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))


def _initialise(model: VisionTransformer) -> None:
    """Draws the paper's initial weights.

    Differs: the paper's std of a linear layer, 0.02, is meant for widths of 384 and more. A narrower layer gets a
    larger std, 0.02 sqrt(384 / width) (0.049 at width 64), which keeps the size of its output; otherwise the output of
    its blocks would be close to 0.
    """
    linear_std = 0.02 * max(1.0, math.sqrt(384 / model.embed_dim))
    nn.init.trunc_normal_(model.cls_token, std=0.02)
    nn.init.trunc_normal_(model.pos_embed, std=0.02)
    if model.reg_token is not None:
        nn.init.trunc_normal_(model.reg_token, std=0.02)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=linear_std)
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
        if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
            nn.init.zeros_(module.bias)
