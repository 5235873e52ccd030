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
from recipes_lib.lowbit.autograd import autocast_dtype, no_autocast, one_by_one
from recipes_lib.lowbit.matmul import Backend, check_backend, default_backend, product
from recipes_lib.lowbit.quantize import Quantized

SUPPORTED = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class _Plan:
    """What tells one layer's arithmetic from another's."""

    save: Literal["input", "integers"]
    weight_scale: Literal["tensor", "row"]
    weight_gradient: Literal["float", "integers"]
    backend: Backend
    dtype: torch.dtype
    weight_dtype: torch.dtype
    bias_dtype: torch.dtype | None
    name: str


class _Product(torch.autograd.Function):
    """Y = X W^T + b in integers, and beside it what the backward pass needs of them: Q(W) as dX needs it, and Q(X) where
    the plan saves integers. Straight through the rounding.
    """

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, plan: _Plan) -> tuple[Tensor, ...]:
        name, forward, backward = f"the input of {plan.name}", *_quantized_weight(weight, plan)
        left = quantize.rows(x, name=name) if plan.save == "integers" else x
        y = product(left, forward.T, dtype=plan.dtype, backend=plan.backend, bias=bias, name=name)
        return (y, *backward, *left) if plan.save == "integers" else (y, *backward)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        x, weight, _, ctx.plan = inputs
        _, weight_values, weight_scale, *integers = output
        ctx.mark_non_differentiable(weight_values, weight_scale, *integers)
        ctx.set_materialize_grads(False)
        x, x_scale = integers or (x, None)
        # the weight is kept for its version: an edit in place before backward is an error, as with nn.Linear
        ctx.save_for_backward(x, x_scale, weight, weight_values, weight_scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: None) -> tuple[Tensor | None, ...]:
        x, x_scale, _, weight_values, weight_scale = ctx.saved_tensors
        needed = tuple(ctx.needs_input_grad[:3])
        made = iter(_Gradients.apply(grad, x, x_scale, weight_values, weight_scale, ctx.plan, needed))
        return (*(next(made) if each else None for each in needed), None)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *inputs: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        return one_by_one(_Product.apply, info.batch_size, in_dims, inputs)


class _Gradients(torch.autograd.Function):
    """Those of dX = G W in integers, dW by the plan, and db = sum of G that are ``needed``.

    A function of its own, so that ``torch.func.vmap`` finds a rule for the backward pass too. A G that is not finite
    makes dX not finite and raises nothing: a gradient scaler tries scales until one overflows, and skips that step.
    """

    @staticmethod
    def forward(
        grad: Tensor,
        x: Tensor,
        x_scale: Tensor | None,
        weight_values: Tensor,
        weight_scale: Tensor,
        plan: _Plan,
        needed: tuple[bool, bool, bool],
    ) -> tuple[Tensor, ...]:
        made = []
        with no_autocast(grad.device.type):
            if needed[0]:
                weight = Quantized(weight_values, weight_scale)
                made.append(product(grad, weight, dtype=plan.dtype, backend=plan.backend, name=None))
            if needed[1]:
                if x_scale is not None:
                    x = quantize.dequantize(Quantized(x, x_scale), plan.dtype)
                made.append(_weight_gradient(grad, x, plan).to(plan.weight_dtype))
            if needed[2]:
                made.append(grad.sum(dim=0).to(plan.bias_dtype))
        return tuple(made)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        """Keeps nothing: gradients of these gradients are not known."""

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *inputs: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        return one_by_one(_Gradients.apply, info.batch_size, in_dims, inputs)


def _quantized_weight(weight: Tensor, plan: _Plan) -> tuple[Quantized, Quantized]:
    """Q(W) for Y and for dX, which is the same where W has one scale; made anew in every call.

    Nothing tells a layer that its weight is still the same: torch's fused optimisers change weights in place and leave
    their version as it was.
    """
    name = f"the weight of {plan.name}"
    if plan.weight_scale == "tensor":  # the same for W and its transpose
        whole = quantize.tensor(weight, name=name)
        return whole, whole
    return quantize.rows(weight, name=name), quantize.columns(weight, name=name)


def _weight_gradient(grad: Tensor, x: Tensor, plan: _Plan) -> Tensor:
    """G^T X: [n, m], [n, d] -> [m, d]."""
    if plan.weight_gradient == "float":
        return grad.T @ x
    columns = quantize.columns(x, name=None)
    return product(grad.T.contiguous(), columns, dtype=plan.dtype, backend=plan.backend, name=None)


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
        default_backend(torch.device("cpu"))  # found out now, for a compiled graph cannot

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features], in x's dtype or autocast's.

        An input or a weight that is not finite raises as ``quantize.rows``, a gradient never.

        Raises: ``TypeError`` for a dtype that is not supported or not the weight's, ``ValueError`` for a wrong last
        dimension or a back end that does not run here, ``FloatingPointError`` as ``quantize.rows``.
        """
        autocast = autocast_dtype(x.device.type)
        dtype = autocast if autocast is not None and x.dtype in SUPPORTED else x.dtype
        self._check(x, dtype, autocast is not None)
        plan = _Plan(
            self.save,
            self.weight_scale,
            self.weight_gradient,
            self.backend or default_backend(x.device),
            dtype,
            self.weight.dtype,
            None if self.bias is None else self.bias.dtype,
            f"{type(self).__name__}({self.in_features}, {self.out_features})",
        )
        rows = x.to(dtype).flatten(0, -2) if x.dim() > 1 else x.to(dtype)[None]  # [n, d]
        y, *_ = _Product.apply(rows, self.weight, self.bias, plan)
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
