# SPDX-License-Identifier: Apache-2.0
"""Gated positional self-attention (GPSA): attention to content, and attention to positions that starts as a convolution.

Symbols: B images, N queries, M keys, H heads, D width, d = D / H; A content attention, P position attention, s gate,
T = (1 - s) A + s P; v_pos and alpha (``locality_strength``) as in the paper.
Source: d'Ascoli et al., "ConViT: Improving Vision Transformers with Soft Convolutional Inductive Biases",
arXiv 2103.10697.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def grid_positions(
    height: int, width: int, *, start: int = 0, step: int = 1, device: torch.device | str | None = None
) -> Tensor:
    """The (column, row) of each cell of a grid, row by row, in units of one cell.  -> [height * width, 2]

    ``start`` is the column and the row of the first cell, and ``step`` the distance of neighbours: the keys of a map of
    ``h x w`` cells with a border of ``p`` zeros are ``grid_positions(h + 2 * p, w + 2 * p, start=-p)``, and the queries
    of a convolution with stride 2 are ``grid_positions(h // 2, w // 2, step=2)``.

    >>> grid_positions(2, 2).tolist()
    [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]
    """
    rows, columns = torch.meshgrid(
        torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij"
    )
    return torch.stack([columns, rows], dim=-1).reshape(-1, 2) * float(step) + start


def relative_codes(queries: Tensor, keys: Tensor) -> Tensor:
    """The relative position (dx, dy, dx^2 + dy^2) of each key as seen from each query.

    Shapes: ``queries`` [N, 2], ``keys`` [M, 2], each a (column, row) -> [N, M, 3].
    """
    offsets = keys[None] - queries[:, None]  # [N, M, 2]
    return torch.cat([offsets, offsets.square().sum(dim=-1, keepdim=True)], dim=-1)


def local_position_weights(heads: int, strength: float) -> Tensor:
    """The v_pos with which each head attends around its own offset, and all heads together to a square of offsets.

    Head h = h1 + k h2 of the k^2 heads attends to a Gaussian of variance 1 / (2 strength) per axis, around the offset
    (h2 - c, h1 - c) = (dx, dy) from the query, c = (k - 1) / 2. An odd k has one head at each pixel of a k x k
    convolution; an even k has its centres at half-integers.

    Shapes: -> [H, 3], for the codes of :func:`relative_codes`.
    Raises: ``ValueError`` if the number of heads is no square or the strength is not above 0.
    """
    side = math.isqrt(max(heads, 0))
    if heads < 1 or side * side != heads:
        near = " or ".join(str(k * k) for k in (side, side + 1) if k)
        raise ValueError(f"{heads} heads are no square of offsets, and some would stay without one: use {near} heads.")
    if not strength > 0:
        raise ValueError(
            f"locality strength = {strength} is not above 0 (0 attends to all positions alike, a negative one avoids "
            f"its neighbours): use a positive one; the paper uses 1."
        )
    along = torch.arange(side) - (side - 1) / 2
    dx, dy = along.repeat_interleave(side), along.repeat(side)  # [H] each
    return strength * torch.stack([2 * dx, 2 * dy, -torch.ones(heads)], dim=1)


def position_attention(v_pos: Tensor, codes: Tensor) -> Tensor:
    """The position attention P of each head: the softmax over the keys of v_pos . r, in float32 at least.

    Shapes: ``v_pos`` [H, 3], ``codes`` [N, M, 3] -> [H, N, M].
    """
    # half precision would lose the low digits of logits as large as strength * M
    precision = torch.promote_types(v_pos.dtype, torch.float32)
    with torch.autocast(v_pos.device.type, enabled=False):
        logits = F.linear(codes.to(precision), v_pos.to(precision))  # [N, M, H]
        return logits.movedim(-1, 0).softmax(dim=-1)  # the softmax subtracts the largest logit, so it cannot overflow


def axis_attention(slope: Tensor, curvature: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
    """The position attention along one axis: the softmax over the keys of slope delta + curvature delta^2.

    A logit v_pos . r is the sum of one of dx and one of dy, so over a grid the softmax is the product of two: the
    attention of :func:`position_attention` to the key in row m and column q is
    ``axis_attention(v_pos[:, 1], v_pos[:, 2], rows, rows)[h, n, m]`` times
    ``axis_attention(v_pos[:, 0], v_pos[:, 2], columns, columns)[h, p, q]``. This holds for any v_pos.

    Shapes: ``slope``, ``curvature`` [H], ``queries`` [n], ``keys`` [m] -> [H, n, m], in float32 at least.
    """
    precision = torch.promote_types(slope.dtype, torch.float32)
    delta = (keys - queries[:, None]).to(precision)  # [n, m]
    slope, curvature = slope.to(precision)[:, None, None], curvature.to(precision)[:, None, None]
    return (delta * (slope + delta * curvature)).softmax(dim=-1)


def attend_along_axes(rows: Tensor, columns: Tensor, values: Tensor) -> Tensor:
    """The mean of the values under the product of an attention to rows and one to columns.

    It takes two small products in place of one with the whole map: a number of the output costs q m / n + m products
    in place of m q (28 in place of 196 on a grid of 14x14).

    Shapes: ``rows`` [H, n, m], ``columns`` [H, p, q], ``values`` [B, m, q, H, d] -> [B, n, p, H, d].
    """
    batch, m, q, heads, width = values.shape
    n, p = rows.shape[1], columns.shape[1]
    inner = values.permute(3, 2, 0, 1, 4).reshape(heads, q, -1)  # [H, q, B m d]: one product per head is fastest
    inner = (columns @ inner).view(heads, p, batch, m, width).permute(0, 3, 2, 1, 4).reshape(heads, m, -1)
    return (rows @ inner).view(heads, n, batch, p, width).permute(2, 1, 3, 0, 4)


class PositionWeights(nn.Module):
    """Each head's linear map of a relative code to a position logit, with timm's state-dict keys.

    It is no ``nn.Linear``, so that no general rule about linear layers (initial weights, low-bit products) changes it.
    The bias, b_pos, is a number per head in the paper's weights that cancels in the softmax. Its gradient would be
    rounding noise, which Adam scales up to whole steps, so it is a buffer: stored, and neither used nor trained.
    """

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(heads, 3))  # v_pos
        self.register_buffer("bias", torch.zeros(heads))  # b_pos

    def forward(self, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """The attention of a grid's cells to rows and to columns, whose product is P.  -> [H, n, n], [H, p, p]"""
        rows, columns = (torch.arange(count, device=self.weight.device) for count in grid)
        dx, dy, squared = self.weight.unbind(dim=1)
        along_rows = axis_attention(dy, squared, rows, rows)
        return along_rows, axis_attention(dx, squared, columns, columns)

    def whole(self, grid: tuple[int, int]) -> Tensor:
        """The position attention P of a grid of N cells.  -> [H, N, N]"""
        positions = grid_positions(*grid, device=self.weight.device)
        return position_attention(self.weight, relative_codes(positions, positions))


class GPSA(nn.Module):
    """Gated positional self-attention over the patches of an image, with timm's state-dict keys.

    Each head attends with T = (1 - s) A + s P, where A is the attention to content of plain self-attention, P the
    attention to relative positions, and s = sigmoid(lambda) the gate. T V = (1 - s) A V + s P V, so that A V is torch's
    fused attention. P is computed once for all images, as the product of an attention to rows and one to columns.

    ``locality_strength``: alpha of :func:`local_position_weights`, with which the layer starts as a convolution whose
    values are the patches themselves; None starts from random positions and values.
    ``gate_init``: lambda at the start. ``fixed``: what is not learned. gate: lambda; attention: lambda, v_pos, queries
    and keys, so that only values and output are learned.

    Shapes: patches [B, N, D] of a grid of N = height * width, row by row -> [B, N, D].
    Source: arXiv 2103.10697, Eq. 4-6; the fixed variants are those of its Table 3.
    Raises: ``ValueError`` if the heads do not divide the width, if patches do not fill the grid, or as
    :func:`local_position_weights`.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        locality_strength: float | None = 1.0,
        gate_init: float = 1.0,
        fixed: Literal["none", "gate", "attention"] = "none",
        std: float = 0.02,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"a width of {width} cannot be divided among {heads} heads: use a multiple of {heads}.")
        self.num_heads = heads
        self.qk = nn.Linear(width, 2 * width, bias=False)
        self.v = nn.Linear(width, width, bias=False)
        self.proj = nn.Linear(width, width)
        self.pos_proj = PositionWeights(heads)
        self.gating_param = nn.Parameter(torch.full((heads,), float(gate_init)))  # lambda
        for weight in (self.qk.weight, self.v.weight, self.proj.weight, self.pos_proj.weight):
            nn.init.trunc_normal_(weight, std=std)
        nn.init.zeros_(self.proj.bias)
        if locality_strength is not None:
            nn.init.eye_(self.v.weight)
            with torch.no_grad():
                self.pos_proj.weight.copy_(local_position_weights(heads, locality_strength))
        self.gating_param.requires_grad_(fixed == "none")
        if fixed == "attention":
            self.qk.requires_grad_(False)
            self.pos_proj.requires_grad_(False)

    @property
    def gate(self) -> Tensor:
        """The share of each head's attention that goes to positions, s.  -> [H], from 0 to 1"""
        return self.gating_param.sigmoid()

    def forward(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """The layer's output, for patches of a grid of (height, width).  [B, N, D] -> [B, N, D]"""
        query, key, value = self._split(patches, grid)  # [B, N, H, d] each
        content = F.scaled_dot_product_attention(*(part.transpose(1, 2) for part in (query, key, value)))
        rows, columns = self.pos_proj(grid)
        rows = rows * self.gate[:, None, None]  # the gate's s at its smallest factor; 1 - s without cancellation
        position = attend_along_axes(rows.to(value), columns.to(value), value.unflatten(1, grid)).flatten(1, 2)
        rest = (-self.gating_param).sigmoid()[:, None].to(value)
        return self.proj(torch.addcmul(position, content.transpose(1, 2), rest).flatten(2))

    def attention_map(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """The whole map T, for analysis; each row sums to 1.  [B, N, D] -> [B, H, N, N]"""
        query, key, _ = self._split(patches, grid)
        position = self.pos_proj.whole(grid)  # [H, N, N]
        content = torch.einsum("bnhd,bmhd->bhnm", query, key).to(position) / math.sqrt(query.shape[-1])
        return torch.lerp(content.softmax(dim=-1), position, self.gate[:, None, None].to(position))

    def _split(self, patches: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values by head.  [B, N, D] -> 3 x [B, N, H, d]"""
        _, count, width = patches.shape
        if count != math.prod(grid):
            raise ValueError(
                f"{count} patches do not fill a grid of {grid[0]}x{grid[1]}: give (height, width) in patches, and no [CLS]."
            )
        heads = (self.num_heads, width // self.num_heads)
        query, key = self.qk(patches).unflatten(-1, (2, *heads)).unbind(dim=2)
        return query, key, self.v(patches).unflatten(-1, heads)
