# SPDX-License-Identifier: Apache-2.0
"""How far attention reaches: non-locality of each layer and head, attention maps and gates, of ViTs and ConViTs.

Symbols: B images, L blocks, H heads, N patches, T attention maps.
Source: d'Ascoli et al., arXiv 2103.10697, section 4.
"""

import math
from collections.abc import Callable, Iterable

import torch
from timm.models.vision_transformer import Attention
from torch import Tensor

from recipes_lib.distributed.fsdp import gathered
from recipes_lib.evaluation.features import evaluating
from recipes_lib.models.convit import ConViT
from recipes_lib.models.gpsa import GPSA, grid_positions
from recipes_lib.models.vit import VisionTransformer


def non_locality(attention: Tensor, grid: tuple[int, int]) -> Tensor:
    """The mean distance, in patches, between a patch and what it attends to: the mean over i of sum_j T_ij |i - j|.

    It is 0 where each patch attends to itself alone, and :func:`uniform_non_locality` where it attends to all alike. It
    is linear in the attention, so that of an average over images is the average.

    Shapes: [..., N, N], rows that sum to 1, N patches of a grid of (height, width), row by row -> [...].
    Raises: ``ValueError`` if the attention is not among the patches of the grid.
    """
    count = math.prod(grid)
    if attention.shape[-2:] != (count, count):
        raise ValueError(
            f"attention of {list(attention.shape)} is not among the {count} patches of a grid of {grid[0]}x{grid[1]}: "
            "drop [CLS] and renormalise the rows first."
        )
    positions = grid_positions(*grid, device=attention.device).to(attention)
    return (attention * torch.cdist(positions, positions)).sum(dim=-1).mean(dim=-1)


def uniform_non_locality(grid: tuple[int, int]) -> float:
    """The non-locality of attention that is the same to all patches of a grid of (height, width), in patches."""
    count = math.prod(grid)
    return non_locality(torch.full((count, count), 1 / count, dtype=torch.float64), grid).item()


def attention_maps(backbone: VisionTransformer | ConViT, images: Tensor) -> list[Tensor]:
    """The attention among the patches of each image, block by block, in evaluation mode and without gradients.

    Tokens without a patch, such as [CLS], are left out of rows and columns; then each row is divided by its sum, so
    that it is the distribution over patches of what goes to patches.

    Shapes: [B, 3, height, width] -> L times [B, H, N, N].
    """
    return [_map(layer, tokens, grid) for layer, tokens, grid in _inputs(backbone, images)]


def mean_attention(backbone: VisionTransformer | ConViT, batches: Iterable[Tensor]) -> Tensor:
    """The mean of :func:`attention_maps` over the images of all batches. It stores one block's maps at a time.

    Shapes: batches of [B, 3, height, width], all of one size -> [L, H, N, N].
    Raises: ``ValueError`` if there is no image.
    """
    return _mean(backbone, batches, lambda maps, grid: maps)


def non_localities(backbone: VisionTransformer | ConViT, batches: Iterable[Tensor]) -> Tensor:
    """The non-locality D^{l,h} of each block and head, averaged over the images of all batches.

    Its mean over the heads is the paper's D^l. The rows of plain self-attention are renormalised as in
    :func:`attention_maps`.

    Shapes: batches of [B, 3, height, width] -> [L, H], in patches.
    Raises: ``ValueError`` if there is no image.
    Differs: the released code has no rule for [CLS] in plain self-attention.
    """
    return _mean(backbone, batches, non_locality)


def gates(backbone: ConViT) -> Tensor:
    """The share of attention that goes to positions, of each block with GPSA and each head.

    Shapes: -> [blocks with GPSA, H], from 0 to 1.
    Raises: ``ValueError`` if no block has GPSA.
    """
    if not backbone.gpsa_layers:
        raise ValueError("this ConViT has no block with GPSA, so no gates: build it with gpsa_layers of at least 1.")
    return torch.stack([gathered(block.attn.gate) for block in backbone.blocks[: backbone.gpsa_layers]])


Layer = GPSA | Attention


@torch.no_grad()
def _inputs(backbone: VisionTransformer | ConViT, images: Tensor) -> list[tuple[Layer, Tensor, tuple[int, int]]]:
    """The attention layer of each block, its input, and the grid of the patches."""
    inputs: list[Tensor] = []
    hooks = [
        block.attn.register_forward_pre_hook(lambda layer, arguments: inputs.append(arguments[0]))
        for block in backbone.blocks
    ]
    try:
        with evaluating(backbone):
            backbone.tokens(images)  # unlike ``forward``, it calls the last block's attention as a module
    finally:
        for hook in hooks:
            hook.remove()
    height, width = (side // backbone.patch_size for side in images.shape[-2:])
    return [(block.attn, x, (height, width)) for block, x in zip(backbone.blocks, inputs, strict=True)]


@torch.no_grad()
def _map(layer: Layer, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """The attention among patches.  [B, 1 + N or N, D] -> [B, H, N, N]"""
    if isinstance(layer, GPSA):
        return layer.attention_map(tokens, grid)
    query, key, _ = layer.qkv(tokens).unflatten(-1, (3, layer.num_heads, -1)).unbind(dim=2)  # [B, 1 + N, H, d] each
    first = tokens.shape[1] - math.prod(grid)  # a softmax over the patches alone is what renormalising gives
    logits = torch.einsum("bnhd,bmhd->bhnm", query[:, first:], key[:, first:]) * layer.scale
    return logits.softmax(dim=-1)


def _mean(
    backbone: VisionTransformer | ConViT,
    batches: Iterable[Tensor],
    measure: Callable[[Tensor, tuple[int, int]], Tensor],
) -> Tensor:
    """The mean over all images of ``measure`` of each block's attention maps.  -> [L, ...]"""
    total, count = 0, 0
    for images in batches:
        layers = _inputs(backbone, images)
        total = total + torch.stack([measure(_map(*each), each[2]).sum(dim=0) for each in layers])
        count += len(images)
    if not count:
        raise ValueError("there is no image whose attention could be measured: give at least one.")
    return total / count
