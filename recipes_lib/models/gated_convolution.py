# SPDX-License-Identifier: Apache-2.0
"""A convolution written as gated positional self-attention, which can learn to look beyond its kernel.

Symbols: B images, H heads (one for each pixel of the kernel), N keys (the map's pixels), Q queries (the output's
pixels), C input channels, d dimensions of a query; delta a key's offset from its query, Delta_h head h's offset in the
kernel; P position attention, A content attention, g gate, T = g P + (1 - g) A; alpha (``locality_strength``) and v_pos
as in ConViT.
Source: d'Ascoli et al., "Transformed CNNs", arXiv 2106.05795; the construction: Cordonnier et al., arXiv 1911.03584.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Gate = Literal["linear", "near", "saturated"]
"""How the gate g depends on its parameter. linear: g is the parameter, kept within 0 and 1; it starts at 1 with a live
gradient. near: its sigmoid, which starts a little below 1. saturated: a sigmoid that is 1 to the last digit; its
gradient is 0, so it serves only to test that the layer is the convolution."""
LOCALITY_STRENGTH = {"linear": 40.0, "near": 10.0, "saturated": 40.0}
"""alpha at the start, by gate. At 40 no attention is off the head's offset even in float64, and v_pos cannot learn; at
10 it is 1.8e-4, and v_pos learns."""
EXACT_STRENGTH = {torch.float32: 20.0, torch.float64: 37.0}
"""The smallest alpha with which position attention is the convolution to the last digits of the dtype. Half precision
counts as float32, in which positions are computed."""
SATURATED = 40.0
"""A gate parameter whose sigmoid is 1 to the last digit of float64."""
MAP_BUDGET = 64 * 2**20
"""Bytes of attention maps for each image and layer above which a layer refuses a feature map: 9 heads on 36x36 pixels."""


def off_centre_mass(locality_strength: float) -> float:
    """The share of a head's position attention that is not on its own offset, on a grid without borders.

    It is 1 - (sum over integers n of exp(-alpha n^2))^-2, about 4 exp(-alpha) for large alpha.

    >>> f"{off_centre_mass(10.0):.3g}"
    '0.000182'

    Raises: ``ValueError`` if the strength is not above 0.
    """
    _positive(locality_strength)
    reach = math.ceil(math.sqrt(746 / locality_strength)) + 1  # exp(-746) is 0 in float64
    beyond = 2 * sum(math.exp(-locality_strength * n * n) for n in range(1, reach))
    return -math.expm1(-2 * math.log1p(beyond))  # 1 - (1 + beyond)^-2 without its cancellation


class GatedConvolution(nn.Module):
    """A 2-D convolution as gated positional self-attention: one head for each pixel of the kernel.

    Head h has value matrix W_h = ``weight[:, :, row, column]``. The layer's output at query i is
    b + sum_h W_h sum_j T^h_ij x_j. P^h is the softmax over the keys of v_pos . (dx, dy, dx^2 + dy^2), which starts as
    -alpha |delta - Delta_h|^2: attention to the pixel at offset Delta_h. Its keys include the border of zeros, so a
    head whose offset lies outside the image adds 0, as the convolution does. A^h is the softmax over the image's own
    pixels of the products of queries and keys. With g = 1 and a large alpha, the output is the convolution's.

    With a stride, the queries are every stride-th pixel; with a dilation, offsets are multiples of it; with groups, W_h
    is block-diagonal, while all channels share a head's attention. ``weight`` and ``bias`` are the convolution's own
    parameters under the same names, so its weights can be loaded.

    In evaluation without gradients, heads with g = 1 and all of their position attention on their own offset are
    computed by the convolution itself.

    ``gate_logit``: the parameter of gate ``near`` at the start. ``head_dim``: d. ``map_budget``: see :data:`MAP_BUDGET`.

    Shapes: [B, C, height, width] -> [B, C_out, ceil(height / stride), ceil(width / stride)].
    Raises: ``ValueError`` for a convolution that :func:`obstacle` names, or a strength or gate that it should not
    start with; in the forward pass, for a map above the budget.
    Differs: the paper's layers start from ConViT's, whose heads share the width. Here each head sees all channels,
    because values of C / H dimensions have matrices W_h of too small a rank.
    """

    def __init__(
        self,
        convolution: nn.Conv2d,
        *,
        gate: Gate = "linear",
        locality_strength: float | None = None,
        gate_logit: float = 10.0,
        head_dim: int = 8,
        map_budget: int = MAP_BUDGET,
    ) -> None:
        super().__init__()
        if reason := obstacle(convolution):
            raise ValueError(f"this convolution cannot become attention: {reason}.")
        alpha = LOCALITY_STRENGTH[gate] if locality_strength is None else locality_strength
        self.weight, self.bias = convolution.weight, convolution.bias
        _check_start(gate, alpha, gate_logit, self.weight.dtype)
        self.stride, self.dilation, self.groups = convolution.stride, convolution.dilation, convolution.groups
        self.kernel_size, self.gate_kind, self.map_budget = convolution.kernel_size, gate, map_budget
        self.padding = tuple(d * (k - 1) // 2 for d, k in zip(self.dilation, self.kernel_size, strict=True))
        self.head_dim, self.heads = head_dim, math.prod(self.kernel_size)

        like = {"device": self.weight.device, "dtype": self.weight.dtype}
        offsets = self._offsets().to(**like)  # [H, 2]
        self.v_pos = nn.Parameter(alpha * torch.cat([2 * offsets, -torch.ones(self.heads, 1, **like)], dim=1))
        start = {"linear": 1.0, "near": gate_logit, "saturated": SATURATED}[gate]
        self.gate = nn.Parameter(torch.full((self.heads,), start, **like))
        self.query = nn.Linear(convolution.in_channels, self.heads * head_dim, bias=False, **like)
        self.key = nn.Linear(convolution.in_channels, self.heads * head_dim, bias=False, **like)
        for layer in (self.query, self.key):  # at zero, each would have no gradient because of the other
            nn.init.normal_(layer.weight, std=convolution.in_channels**-0.5)
        self.train(convolution.training)

    def forward(self, maps: Tensor) -> Tensor:
        """The output feature maps.  [B, C, height, width] -> [B, C_out, height / stride, width / stride]"""
        if self.training or torch.is_grad_enabled():
            return self.attend(maps)
        local = self.is_local(reach=max(maps.shape[-2:]) + max(self.padding))
        if not local.any():
            return self.attend(maps)
        kernel = self.weight * local.view(self.kernel_size)
        near = F.conv2d(maps, kernel, self.bias, self.stride, self.padding, self.dilation, self.groups)
        return near if local.all() else near + self._attend(maps, torch.nonzero(~local)[:, 0])

    def attend(self, maps: Tensor) -> Tensor:
        """The output by attention in all heads, also where the convolution would give the same.  Shapes: as forward."""
        out = self._attend(maps, None)
        return out if self.bias is None else out + self.bias.to(out.dtype)[:, None, None]

    def gates(self) -> Tensor:
        """The gate g of each head, in the order of the kernel's pixels, row by row.  -> [H], from 0 to 1"""
        return _Within.apply(self.gate) if self.gate_kind == "linear" else self.gate.sigmoid()

    def content_maps(self, maps: Tensor) -> Tensor:
        """The content attention A over the image's own pixels.  [B, C, height, width] -> [B, H, Q, N]"""
        return self._content(_tokens(maps), _tokens(self._at_queries(maps)), None)

    def position_maps(self, height: int, width: int) -> Tensor:
        """The position attention P to the image's own pixels, in float32 at least.  -> [H, Q, N]

        A row sums to less than 1 where a head attends to the border of zeros, whose pixels are left out here.
        """
        rows, columns = (self._along(axis, size) for axis, size in enumerate((height, width)))  # [H, q, n] each
        # the squared distance is a sum over the axes, so P of the padded grid is the product of two softmaxes
        return (rows[:, :, None, :, None] * columns[:, None, :, None, :]).flatten(3).flatten(1, 2)

    def stray_attention(self, reach: int) -> Tensor:
        """The share of each head's position attention that is off its own offset, with keys up to ``reach`` away.

        Shapes: -> [H].
        """
        keys = torch.arange(-reach, reach + 1, device=self.v_pos.device)
        own = self._offsets().to(keys.device)[:, :, None]  # [H, 2, 1]
        across, along = (
            self._softmax(axis, keys[None])[:, 0].masked_fill(keys == own[:, 1 - axis], 0).sum(dim=1) for axis in (0, 1)
        )
        return across + along - across * along  # 1 - (1 - across) (1 - along)

    def is_local(self, reach: int) -> Tensor:
        """Whether each head is a pixel of the convolution to the last digit, with keys up to ``reach`` away.

        Shapes: -> bool [H].
        """
        stray = self.stray_attention(reach)
        return (self.gates() == 1) & (stray < torch.finfo(stray.dtype).eps / 2)

    def convolution(self) -> nn.Conv2d:
        """The convolution of this layer's weight and bias, the same parameters: the layer with all gates at 1."""
        groups, out = self.groups, self.weight.shape[0]
        made = nn.Conv2d(
            self.weight.shape[1] * groups,
            out,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            groups,
            bias=self.bias is not None,
            device="meta",
        )
        made.weight, made.bias = self.weight, self.bias
        return made.train(self.training)

    def border(self, height: int, width: int) -> Tensor:
        """Which outputs' kernels touch the border of zeros, for a map of this size.  -> bool [height', width']"""
        touched = []
        for size, stride, padding in zip((height, width), self.stride, self.padding, strict=True):
            centre = torch.arange(0, size, stride)
            touched.append((centre < padding) | (centre >= size - padding))
        return touched[0][:, None] | touched[1][None]

    def extra_repr(self) -> str:
        """What ``print(network)`` shows."""
        sizes = f"{self.weight.shape[1] * self.groups}, {self.weight.shape[0]}, kernel_size={self.kernel_size}"
        return f"{sizes}, stride={self.stride}, dilation={self.dilation}, groups={self.groups}, gate={self.gate_kind}"

    def _attend(self, maps: Tensor, chosen: Tensor | None) -> Tensor:
        """The output of the ``chosen`` heads (int64; None: all) without the bias.  Shapes: as forward"""
        height, width = maps.shape[-2:]
        queries = self._at_queries(maps)
        self._check_size(height, width, queries.shape[-2] * queries.shape[-1])
        tokens = _tokens(maps)  # [B, N, C]
        content = self._content(tokens, _tokens(queries), chosen)  # [B, H, Q, N]
        position, gates, kernel = self.position_maps(height, width), self.gates(), self.weight.flatten(2)
        if chosen is not None:
            position, gates, kernel = position[chosen], gates[chosen], kernel[:, :, chosen]
        gates = gates.to(position.dtype)[:, None, None]
        # one map of both, so that the values are summed once
        mixed = torch.addcmul((gates * position).to(content.dtype), content, (1 - gates).to(content.dtype))
        seen = (mixed.flatten(1, 2) @ tokens).unflatten(1, mixed.shape[1:3])  # [B, H, Q, C]
        seen = seen.unflatten(3, (self.groups, -1)).permute(3, 0, 2, 1, 4).flatten(3)  # [G, B, Q, H * C / G]
        kernel = kernel.unflatten(0, (self.groups, -1)).mT.flatten(2)  # [G, C_out / G, H * C / G]
        out = (seen.flatten(1, 2) @ kernel.mT).unflatten(1, seen.shape[1:3])  # [G, B, Q, C_out / G]
        return out.permute(1, 0, 3, 2).flatten(1, 2).unflatten(2, queries.shape[-2:])

    def _content(self, tokens: Tensor, queries: Tensor, chosen: Tensor | None) -> Tensor:
        """A of the ``chosen`` heads.  [B, N, C], [B, Q, C] -> [B, H, Q, N]"""
        query, key = self.query.weight, self.key.weight
        if chosen is not None:
            query, key = (w.unflatten(0, (self.heads, -1))[chosen].flatten(0, 1) for w in (query, key))
        query, key = (
            F.linear(x, w).unflatten(2, (-1, self.head_dim)).transpose(1, 2)
            for x, w in ((queries, query), (tokens, key))
        )  # [B, H, Q or N, d]
        logits = query * self.head_dim**-0.5 @ key.mT  # scaled where there are fewer numbers
        return logits.softmax(dim=-1, dtype=_precise(logits.dtype)).to(logits.dtype)

    def _along(self, axis: int, size: int) -> Tensor:
        """P along one axis, without the keys in the border of zeros.  -> [H, q, n]"""
        device, padding = self.v_pos.device, self.padding[axis]
        queries = torch.arange(0, size, self.stride[axis], device=device)
        keys = torch.arange(-padding, size + padding, device=device)
        attention = self._softmax(axis, keys[None] - queries[:, None])
        return attention[:, :, padding : padding + size]

    def _softmax(self, axis: int, offsets: Tensor) -> Tensor:
        """The position attention along one axis to keys at integer ``offsets``.  [q, n] -> [H, q, n]"""
        v_pos = self.v_pos.to(_precise(self.v_pos.dtype))  # half precision would lose the digits of large logits
        linear, square = v_pos[:, 1 - axis], v_pos[:, 2]  # axis 0 is y, the second number of v_pos
        offsets = offsets.to(v_pos.dtype)
        logits = linear[:, None, None] * offsets + square[:, None, None] * offsets.square()
        return logits.softmax(dim=-1)

    def _offsets(self) -> Tensor:
        """Delta_h of each head, (dx, dy), in the order of ``weight.flatten(2)``.  -> int64 [H, 2]"""
        height, width = ((torch.arange(k) - k // 2) * d for k, d in zip(self.kernel_size, self.dilation, strict=True))
        return torch.stack([width.repeat(len(height)), height.repeat_interleave(len(width))], dim=1)

    def _at_queries(self, maps: Tensor) -> Tensor:
        return maps[:, :, :: self.stride[0], :: self.stride[1]]

    def _check_size(self, height: int, width: int, queries: int) -> None:
        needed = self.heads * queries * height * width * 4
        if needed > self.map_budget:
            raise ValueError(
                f"a feature map of {height}x{width} pixels has {queries * height * width:,} pairs of pixels: {self.heads} "
                f"attention maps of an image would take {needed / 2**20:,.1f} MiB, and map_budget is "
                f"{self.map_budget / 2**20:,.1f} MiB. Recast only the network's last stage, or use smaller images."
            )


def obstacle(layer: nn.Conv2d) -> str | None:
    """Why a convolution has no attention that is the same function here, or None if it has one.

    Wanted are a kernel with odd sides, one of them above 1, and zeros as padding that keep the kernel's centre on the
    image: dilation * (kernel - 1) / 2 of them. Strides, dilations and groups may have any value.
    """
    kernel, dilation = layer.kernel_size, layer.dilation
    if type(layer) is not nn.Conv2d:
        return f"it is a {type(layer).__name__}, which may compute something else than nn.Conv2d"
    if any(side % 2 == 0 for side in kernel):
        return f"its kernel is {_by(kernel)}, and only odd sides have a pixel in the centre"
    if kernel == (1, 1):
        return "its kernel is 1x1, which sees no neighbour"
    if layer.padding_mode != "zeros":
        return f"its padding_mode is {layer.padding_mode!r}, and only 'zeros' is supported"
    wanted = tuple(d * (k - 1) // 2 for d, k in zip(dilation, kernel, strict=True))
    if layer.padding not in (wanted, "same"):
        return f"its padding is {layer.padding}, and only {wanted}, dilation * (kernel - 1) / 2, is supported"
    if layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks:
        return "it has hooks, which would be lost"
    return None


class _Within(torch.autograd.Function):
    """A number kept within 0 and 1, with a gradient unless it is outside and would be moved further out.

    A plain clamp would stop the gradient for ever after the first step beyond 1.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(number: Tensor) -> Tensor:
        return number.clamp(0, 1)

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        (number,) = ctx.saved_tensors
        # a step goes against the gradient
        outwards = ((number > 1) & (grad < 0)) | ((number < 0) & (grad > 0))
        return grad.masked_fill(outwards, 0)


def _check_start(gate: Gate, alpha: float, gate_logit: float, dtype: torch.dtype) -> None:
    """Raises ``ValueError`` for a start that is not the convolution, or from which the gate could not move."""
    if gate not in LOCALITY_STRENGTH:
        raise ValueError(f"gate = {gate!r} is unknown. There are: {', '.join(LOCALITY_STRENGTH)}.")
    _positive(alpha)
    precise = _precise(dtype)
    least = EXACT_STRENGTH[precise]
    if gate != "near" and alpha < least:
        raise ValueError(
            f"locality_strength = {alpha:g} with gate {gate}: the layer would differ from its convolution by about "
            f"4 exp(-{alpha:g}) = {4 * math.exp(-alpha):.1e} of the output. Use at least {least:g} in {_name(precise)}, or "
            f"gate near."
        )
    if gate == "near" and torch.tensor(gate_logit, dtype=dtype, device="cpu").sigmoid() == 1:
        most = min(10, int(math.log(2 / torch.finfo(dtype).eps)))  # exp(-logit) is lost beside 1 beyond it
        raise ValueError(
            f"gate_logit = {gate_logit:g}: its sigmoid is 1 to the last digit of {_name(dtype)}, so the gate's gradient is "
            f"exactly 0 and the layer stays a convolution. Use gate linear, or at most {most}."
        )


def _positive(alpha: float) -> None:
    if not 0 < alpha < math.inf:
        raise ValueError(f"locality_strength = {alpha} is not allowed: use a finite value above 0; ConViT's is 1.")


def _precise(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _tokens(maps: Tensor) -> Tensor:
    """[B, C, height, width] -> [B, height * width, C]"""
    return maps.flatten(2).mT.contiguous()


def _by(sides: tuple[int, ...]) -> str:
    return "x".join(map(str, sides))
