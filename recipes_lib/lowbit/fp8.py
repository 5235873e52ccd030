# SPDX-License-Identifier: Apache-2.0
"""8-bit floating point (fp8): rounding to the numbers of its two formats, and a linear layer that simulates it.

E4M3 has 4 exponent and 3 mantissa bits and no infinity; it is used for inputs and weights. E5M2 has 5 and 2; it is used
for gradients, which need range more than precision.

Symbols: X the input [n, d], W the weight [m, d], G the gradient of the output Y [n, m].

Source: Micikevicius et al., "FP8 formats for deep learning", arXiv 2209.05433.
"""

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from recipes_lib.lowbit.autograd import autocast_dtype, no_autocast, one_by_one

Format = Literal["e4m3", "e5m2"]
Scaling = Literal["tensor", "row"]


class _Grid(NamedTuple):
    """The numbers that a format can represent."""

    mantissa_bits: int
    smallest_exponent: int
    largest: float


GRIDS: dict[str, _Grid] = {"e4m3": _Grid(3, -6, 448.0), "e5m2": _Grid(2, -14, 57344.0)}
"""Per format: bits after the leading one, exponent of the smallest normal number (below it the step between numbers is
constant), largest number."""


def round_to(x: Tensor, fmt: Format) -> Tensor:
    """Rounds ``x`` to the nearest numbers of the format, halves to the even mantissa; too large ones to the largest.

    Torch's own cast to ``float8_e5m2`` turns too large numbers into infinities; its cast to ``float8_e4m3fn`` saturates
    in some versions and not in others. NaN stays NaN.

    Shapes: [...] -> [...] of the dtype of ``x``, which can represent every number of both formats.
    """
    grid = _grid(fmt)
    wide = x.to(torch.promote_types(x.dtype, torch.float32)).clamp(-grid.largest, grid.largest)
    exponent = torch.frexp(wide).exponent.sub_(1).clamp_(min=grid.smallest_exponent)
    step = torch.ldexp(torch.ones_like(wide), exponent.sub_(grid.mantissa_bits))
    return (wide / step).round_().mul_(step).to(x.dtype)  # division and product are exact: a step is a power of two


def quantized(x: Tensor, fmt: Format, *, scaling: Scaling) -> Tensor:
    """Scales ``x`` so that its largest magnitude is the format's largest number, rounds it, and scales it back.

    The scale is one per row or one per matrix, by ``scaling``. It is 2^126 at most, so that the scale and its inverse
    are both normal numbers; without this limit a tiny matrix would be scaled to infinity. A largest magnitude below
    5e-36 (E4M3) or 7e-34 (E5M2) therefore stays below the format's largest number.

    Shapes: [n, k] -> [n, k] of the dtype of ``x``; intermediate numbers are float32.
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
    """Y = X W^T, dX = G W and dW = G^T X of fp8 numbers; gradients pass straight through the rounding."""

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
    """Computes those of dX and dW that are ``needed``; ``torch.func.vmap`` needs a separate function for its rule."""

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
                # scaling by row is SwitchBack: dW from the unrounded G and X
                made.append(coarse.T @ quantized(x, "e4m3", scaling="tensor") if scaling == "tensor" else grad.T @ x)
        return tuple(made)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        """Saves nothing: there are no second derivatives."""

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *inputs: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        return one_by_one(_Gradients.apply, info.batch_size, in_dims, inputs)


class Fp8Linear(nn.Linear):
    """``nn.Linear`` that multiplies E4M3 inputs and weights and E5M2 gradients, simulated in the input's dtype.

    ``scaling`` "tensor": one scale per matrix and all three products in fp8, the paper's baseline. "row": SwitchBack in
    fp8, with a scale per row of X and G, one scale for W, and dW from the unrounded X and G. The state dict is that of
    ``nn.Linear``.

    The simulation shows what fp8 does to training; it saves no time. Values that are not finite stay so.

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
        """Y = X W^T + b in the dtype of ``x`` or of autocast.  [..., in_features] -> [..., out_features]

        Raises: ``TypeError`` for integers, ``ValueError`` for a wrong last dimension.
        """
        if not x.is_floating_point():
            raise TypeError(f"Fp8Linear: the input is {str(x.dtype).removeprefix('torch.')}; it takes floats.")
        if x.dim() == 0 or x.shape[-1] != self.in_features:
            raise ValueError(f"Fp8Linear: the input has shape {list(x.shape)}; in_features is {self.in_features}.")
        dtype = autocast_dtype(x.device.type) or x.dtype
        rows = x.to(dtype).flatten(0, -2) if x.dim() > 1 else x.to(dtype)[None]  # [n, d]
        weight = self.weight.to(dtype)
        y = _Simulated.apply(rows, weight, self.scaling)  # [n, m]
        y = y if self.bias is None else y + self.bias.to(dtype)
        return y.view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        """The text of ``nn.Linear``, with the scaling."""
        return f"{super().extra_repr()}, scaling={self.scaling!r}"
