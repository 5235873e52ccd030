# SPDX-License-Identifier: Apache-2.0
"""8-bit floating point: its exact grids, and a linear layer that is computed as if its numbers lay on them.

E4M3 has 4 exponent and 3 mantissa bits, no infinity, and serves inputs and weights; E5M2 has 5 and 2, and serves
gradients, which need range more than precision. Micikevicius et al., "FP8 formats for deep learning", arXiv 2209.05433.

Symbols: X the input [n, d], W the weight [m, d], G the gradient of the output [n, m].
"""

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from recipes_lib.lowbit.autograd import autocast_dtype, no_autocast, one_by_one

Format = Literal["e4m3", "e5m2"]
Scaling = Literal["tensor", "row"]


class _Grid(NamedTuple):
    mantissa_bits: int
    smallest_exponent: int
    largest: float


GRIDS: dict[str, _Grid] = {"e4m3": _Grid(3, -6, 448.0), "e5m2": _Grid(2, -14, 57344.0)}
"""Bits after the leading one, exponent of the smallest normal number (below it the steps stay), largest number."""


def round_to(x: Tensor, fmt: Format) -> Tensor:
    """The nearest number of the format, halves to the even mantissa; beyond the largest number, that number.

    Torch's own cast to ``float8_e5m2`` makes infinities there, and that to ``float8_e4m3fn`` has done either in its
    history. NaN stays NaN. [...] -> [...] of x's dtype, which holds every number of both formats.
    """
    grid = _grid(fmt)
    wide = x.to(torch.promote_types(x.dtype, torch.float32)).clamp(-grid.largest, grid.largest)
    exponent = torch.frexp(wide).exponent.sub_(1).clamp_(min=grid.smallest_exponent)
    step = torch.ldexp(torch.ones_like(wide), exponent.sub_(grid.mantissa_bits))
    return (wide / step).round_().mul_(step).to(x.dtype)  # exact: a step is a power of two


def quantized(x: Tensor, fmt: Format, *, scaling: Scaling) -> Tensor:
    """``x`` with its largest magnitude (of each row, or of all) brought to the format's largest number, rounded, and
    brought back. [n, k] -> [n, k] of x's dtype; the numbers on the way are float32.

    The scale is 2^126 at most, where it and its inverse are both normal numbers. Where the largest magnitude is below
    5e-36 (E4M3) or 7e-34 (E5M2) it thus stays below the format's largest number; it would be brought to infinity else.
    """
    if x.numel() == 0:
        return x
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    top = wide.abs().amax(dim=1 if scaling == "row" else (0, 1), keepdim=True)
    scale = (_grid(fmt).largest / torch.where(top == 0, 1.0, top)).clamp(max=1 / torch.finfo(top.dtype).tiny)
    return (round_to(wide * scale, fmt) / scale).to(x.dtype)


def _grid(fmt: str) -> _Grid:
    if fmt not in GRIDS:
        raise ValueError(f"fmt = {fmt!r}; there are {', '.join(GRIDS)}.")
    return GRIDS[fmt]


class _Simulated(torch.autograd.Function):
    """Y = X W^T, dX = G W and dW = G^T X from numbers on the grids; straight through the rounding."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, scaling: Scaling) -> Tensor:
        coarse = quantized(weight, "e4m3", scaling="tensor")
        return quantized(x, "e4m3", scaling=scaling) @ coarse.T

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        x, weight, ctx.scaling = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        needed = tuple(ctx.needs_input_grad[:2])
        made = iter(_Gradients.apply(grad, *ctx.saved_tensors, ctx.scaling, needed))
        return (*(next(made) if each else None for each in needed), None)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *inputs: Any) -> tuple[Tensor, int]:
        (y,), _ = one_by_one(lambda *sample: (_Simulated.apply(*sample),), info.batch_size, in_dims, inputs)
        return y, 0


class _Gradients(torch.autograd.Function):
    """Those of dX and dW that are ``needed``; a function of its own, for ``torch.func.vmap``."""

    @staticmethod
    def forward(
        grad: Tensor, x: Tensor, weight: Tensor, scaling: Scaling, needed: tuple[bool, bool]
    ) -> tuple[Tensor, ...]:
        made = []
        with no_autocast(grad.device.type):
            coarse = quantized(grad, "e5m2", scaling=scaling)
            if needed[0]:
                made.append(coarse @ quantized(weight, "e4m3", scaling="tensor"))
            if needed[1]:
                # by row is SwitchBack: dW from G and X as they are
                made.append(coarse.T @ quantized(x, "e4m3", scaling="tensor") if scaling == "tensor" else grad.T @ x)
        return tuple(made)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        """Keeps nothing: gradients of these gradients are not known."""

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *inputs: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        return one_by_one(_Gradients.apply, info.batch_size, in_dims, inputs)


class Fp8Linear(nn.Linear):
    """``nn.Linear`` whose products are of E4M3 inputs and weights and E5M2 gradients, simulated in the input's dtype.

    ``scaling`` "tensor": one scale a matrix, all three products in fp8, the paper's baseline. "row": SwitchBack in fp8,
    with a scale for each row of X and G, one for W, and dW from X and G as they are. The state dict is ``nn.Linear``'s.

    It shows what fp8 does to training and saves no time. Values that are not finite stay so.

    Source: Wortsman et al., arXiv 2304.13013.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        scaling: Scaling = "tensor",
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        if scaling not in ("tensor", "row"):
            raise ValueError(f"Fp8Linear scaling = {scaling!r}; there are tensor and row.")
        self.scaling = scaling

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features], in x's dtype or autocast's.

        Raises: ``TypeError`` for integers, ``ValueError`` for a wrong last dimension.
        """
        if not x.is_floating_point():
            raise TypeError(f"Fp8Linear: the input is {str(x.dtype).removeprefix('torch.')}; it takes floats.")
        if x.dim() == 0 or x.shape[-1] != self.in_features:
            raise ValueError(f"Fp8Linear: the input has shape {list(x.shape)}; in_features is {self.in_features}.")
        dtype = autocast_dtype(x.device.type) or x.dtype
        rows = x.to(dtype).flatten(0, -2) if x.dim() > 1 else x.to(dtype)[None]
        weight = self.weight.to(dtype)
        y = _Simulated.apply(rows, weight, self.scaling)
        y = y if self.bias is None else y + self.bias.to(dtype)
        return y.view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        """``nn.Linear``'s, with the scaling."""
        return f"{super().extra_repr()}, scaling={self.scaling!r}"
