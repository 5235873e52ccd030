# SPDX-License-Identifier: Apache-2.0
"""Linear layers that multiply 8-bit integers and are trained as they are; drop-in for ``nn.Linear``.

Symbols: X the input [n, d], W the weight [m, d], b the bias [m], G the gradient of the output Y [n, m]; n counts all
leading dimensions together. Y = X W^T + b and dX = G W add up d and m products; dW = G^T X adds up n, tens of thousands.
The variance of a quantised sum's error grows with its length, so SwitchBack leaves dW alone.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from recipes_lib.lowbit import quantize
from recipes_lib.lowbit.matmul import Backend, check_backend, default_backend, int_mm_is_exact, product
from recipes_lib.lowbit.quantize import Quantized

SUPPORTED = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class _Plan:
    """What tells one layer's arithmetic from another's."""

    save: Literal["input", "integers"]
    weight_gradient: Literal["float", "integers"]
    backend: Backend
    dtype: torch.dtype
    name: str


class _Product(torch.autograd.Function):
    """Y = X W^T + b in integers, dX = G W in integers, dW by the plan; straight through the rounding.

    ``forward_*`` is Q(W) as Y needs it, ``backward_*`` as dX needs it; none: the same.
    """

    @staticmethod
    def forward(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        forward_values: Tensor,
        forward_scale: Tensor,
        backward_values: Tensor | None,
        backward_scale: Tensor | None,
        plan: _Plan,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        left = quantize.rows(x, name=f"the input of {plan.name}") if plan.save == "integers" else x
        right = Quantized(forward_values, forward_scale).T
        name = f"the input of {plan.name}"
        y = product(left, right, dtype=plan.dtype, backend=plan.backend, bias=bias, name=name)
        return (y, left.values, left.scale) if plan.save == "integers" else (y, None, None)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        x, weight, bias, *forward, backward_values, backward_scale, ctx.plan = inputs
        for_dx = forward if backward_values is None else (backward_values, backward_scale)
        _, values, scale = output
        if values is not None:
            ctx.mark_non_differentiable(values, scale)
        ctx.set_materialize_grads(False)
        ctx.has_bias, ctx.bias_dtype = bias is not None, bias.dtype if bias is not None else None
        # the weight is kept for its version: an edit in place before backward is an error, as with nn.Linear
        kept = (None, values, scale) if ctx.plan.save == "integers" else (x, None, None)
        ctx.save_for_backward(*kept, weight, *for_dx)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: None) -> tuple[Tensor | None, ...]:
        x, values, scale, weight, weight_values, weight_scale = ctx.saved_tensors
        plan, needed = ctx.plan, ctx.needs_input_grad
        with torch.autocast(grad.device.type, enabled=False):
            dx = dw = db = None
            if needed[0]:
                dx = product(
                    grad,
                    Quantized(weight_values, weight_scale),
                    dtype=plan.dtype,
                    backend=plan.backend,
                    name=f"the output's gradient of {plan.name}",
                )
            if needed[1]:
                if plan.save == "integers":
                    x = quantize.dequantize(Quantized(values, scale), plan.dtype)
                dw = _weight_gradient(grad, x, plan).to(weight.dtype)
            if ctx.has_bias and needed[2]:
                db = grad.sum(dim=0).to(ctx.bias_dtype)
        return dx, dw, db, None, None, None, None, None


def _weight_gradient(grad: Tensor, x: Tensor, plan: _Plan) -> Tensor:
    """G^T X: [n, m], [n, d] -> [m, d]."""
    if plan.weight_gradient == "float":
        return grad.T @ x
    name = f"the output's gradient of {plan.name}"
    columns = quantize.columns(x, name=f"the input of {plan.name}")
    return product(grad.T.contiguous(), columns, dtype=plan.dtype, backend=plan.backend, name=name)


class _IntegerLinear(nn.Linear):
    """What the four layers share; a subclass says what it saves, how W is scaled and how dW is made."""

    save: ClassVar[Literal["input", "integers"]] = "input"
    weight_scale: ClassVar[Literal["tensor", "row"]] = "tensor"
    weight_gradient: ClassVar[Literal["float", "integers"]] = "float"

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        backend: Backend | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        self.backend = backend
        int_mm_is_exact("cpu")  # found out now, for a compiled graph cannot

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features], in x's dtype or autocast's.

        Raises: ``TypeError`` for a dtype that is not supported or not the weight's, ``ValueError`` for a wrong last
        dimension or a back end that does not run here, ``FloatingPointError`` as ``quantize.rows``.
        """
        device = x.device.type
        autocast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast and x.dtype in SUPPORTED else x.dtype
        self._check(x, dtype, autocast)
        backend = self.backend or default_backend(x.device)
        name = f"{type(self).__name__}({self.in_features}, {self.out_features})"
        plan = _Plan(self.save, self.weight_gradient, backend, dtype, name)
        weights = self._quantized_weight()
        rows = x.to(dtype).reshape(-1, self.in_features)  # [n, d]
        y, _, _ = _Product.apply(rows, self.weight, self.bias, *weights, plan)
        return y.view(*x.shape[:-1], self.out_features)

    def _check(self, x: Tensor, dtype: torch.dtype, autocast: bool) -> None:
        name = type(self).__name__
        for what, found in (("the input", x.dtype), ("the weight", self.weight.dtype)):
            if found not in SUPPORTED:
                allowed = ", ".join(str(each).removeprefix("torch.") for each in SUPPORTED)
                raise TypeError(f"{name}: {what} is {str(found).removeprefix('torch.')}; it takes {allowed}.")
        if not autocast and self.weight.dtype != dtype:
            raise TypeError(f"{name}: the input is {dtype} and the weight {self.weight.dtype}; make them one dtype.")
        if x.dim() == 0 or x.shape[-1] != self.in_features:
            raise ValueError(f"{name}: the input has shape {list(x.shape)}; in_features is {self.in_features}.")
        if self.backend is not None:
            check_backend(self.backend, x.device)

    @torch.no_grad()
    def _quantized_weight(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Q(W) for Y, and Q(W) for dX where that differs; made anew in every call.

        Nothing tells a layer that its weight is still the same: torch's fused optimisers change weights in place and
        leave their version as it was.
        """
        name = f"the weight of {type(self).__name__}({self.in_features}, {self.out_features})"
        if self.weight_scale == "tensor":  # the same for W and its transpose
            whole = quantize.tensor(self.weight, name=name)
            return (*whole, None, None)
        return (*quantize.rows(self.weight, name=name), *quantize.columns(self.weight, name=name))

    def extra_repr(self) -> str:
        """``nn.Linear``'s, with the back end where one is set."""
        return super().extra_repr() + (f", backend={self.backend!r}" if self.backend else "")


class SwitchBackLinear(_IntegerLinear):
    """Y and dX in 8-bit integers (rows of X and G, one scale for W), dW in the input's own precision.

    dW is, bit for bit, ``nn.Linear``'s for the same G and X; under autocast it is made in autocast's dtype. The state
    dict is ``nn.Linear``'s. ``backend``: see ``matmul.Backend``; none: ``matmul.default_backend``.

    Source: Wortsman et al., "Stable and low-precision training for large-scale vision-language models",
    arXiv 2304.13013.
    """


class SwitchBackMLinear(_IntegerLinear):
    """SwitchBack that keeps X for the backward pass as integers: a quarter to a half of the memory, a little noise in dW.

    Source: arXiv 2304.13013, SwitchBackM.
    """

    save = "integers"


class SwitchBackQLinear(_IntegerLinear):
    """SwitchBack with a scale for each row of W in Y, and for each column of W in dX.

    Source: arXiv 2304.13013, SwitchBackQ.
    """

    weight_scale = "row"


class Int8Linear(_IntegerLinear):
    """All three products in integers, dW by rows of G^T and columns of X: the baseline that SwitchBack is better than.

    Source: arXiv 2304.13013, the LLM.int8()-style baseline, without LLM.int8()'s outliers in 16 bits.
    """

    weight_scale = "row"
    weight_gradient = "integers"
