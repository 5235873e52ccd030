# SPDX-License-Identifier: Apache-2.0
"""Linear layers that multiply 8-bit integers in training; drop-in replacements of ``nn.Linear``.

Symbols: X the input [n, d], W the weight [m, d], b the bias [m], G the gradient of the output Y [n, m]; n is the
product of all leading dimensions; Q(.) a matrix as 8-bit integers and scales. An entry of Y = X W^T + b is a sum of d
products, one of dX = G W a sum of m, one of dW = G^T X a sum of n, which is tens of thousands. The variance of the
rounding error grows with the length of the sum, so SwitchBack computes dW in the input's precision.
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
    """The settings in which the arithmetic of the layers differs."""

    save: Literal["input", "integers"]
    weight_scale: Literal["tensor", "row"]
    weight_gradient: Literal["float", "integers"]
    backend: Backend
    dtype: torch.dtype
    weight_dtype: torch.dtype
    bias_dtype: torch.dtype | None
    name: str


class _Product(torch.autograd.Function):
    """Y = X W^T + b by an integer product; gradients pass straight through the rounding.

    It also returns what the backward pass needs: Q(W) with the scales that dX needs, and Q(X) if the plan saves
    integers.
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
        # the weight is saved for its version counter: an edit in place before backward is an error, as with nn.Linear
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
    """Computes those of dX = G W (in integers), dW (by the plan) and db = sum of G that are ``needed``.

    It is a separate function so that ``torch.func.vmap`` finds a rule for the backward pass too. If G is not finite, dX
    is not finite either, and no error is raised: a gradient scaler raises its scale until a gradient overflows, and
    then skips that step.
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
                made.append(product(grad, weight, dtype=plan.dtype, backend=plan.backend, name=None))  # dX [n, d]
            if needed[1]:
                if x_scale is not None:
                    x = quantize.dequantize(Quantized(x, x_scale), plan.dtype)
                made.append(_weight_gradient(grad, x, plan).to(plan.weight_dtype))  # dW [m, d]
            if needed[2]:
                made.append(grad.sum(dim=0).to(plan.bias_dtype))  # db [m]
        return tuple(made)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        """Saves nothing: there are no second derivatives."""

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *inputs: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        return one_by_one(_Gradients.apply, info.batch_size, in_dims, inputs)


def _quantized_weight(weight: Tensor, plan: _Plan) -> tuple[Quantized, Quantized]:
    """Q(W) for Y and Q(W) for dX, which are the same object if W has one scale; both are computed anew in every call.

    A layer cannot know that its weight is unchanged: torch's fused optimisers change weights in place without raising
    their version counter.
    """
    name = f"the weight of {plan.name}"
    if plan.weight_scale == "tensor":  # one scale serves W and its transpose
        whole = quantize.tensor(weight, name=name)
        return whole, whole
    return quantize.rows(weight, name=name), quantize.columns(weight, name=name)


def _weight_gradient(grad: Tensor, x: Tensor, plan: _Plan) -> Tensor:
    """The weight's gradient dW = G^T X.  [n, m], [n, d] -> [m, d]"""
    if plan.weight_gradient == "float":
        return grad.T @ x
    columns = quantize.columns(x, name=None)
    return product(grad.T.contiguous(), columns, dtype=plan.dtype, backend=plan.backend, name=None)


class _IntegerLinear(nn.Linear):
    """The common part of the four layers; a subclass sets what is saved, how W is scaled and how dW is computed."""

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
        default_backend(torch.device("cpu"))  # tests the CPU's product now: a compiled graph cannot

    def forward(self, x: Tensor) -> Tensor:
        """Y = X W^T + b in the dtype of ``x`` or of autocast.  [..., in_features] -> [..., out_features]

        Raises: ``TypeError`` for a dtype that is not supported or not the weight's, ``ValueError`` for a wrong last
        dimension or a back end that does not run here, ``FloatingPointError`` for an input or a weight that is not
        finite, under the conditions of ``quantize.rows``; a gradient that is not finite never raises.
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
        """The text of ``nn.Linear``, with the back end if one is set."""
        return super().extra_repr() + (f", backend={self.backend!r}" if self.backend else "")


class SwitchBackLinear(_IntegerLinear):
    """SwitchBack: Y and dX in 8-bit integers (a scale per row of X and G, one for W), dW in the input's precision.

    dW is, bit for bit, that of ``nn.Linear`` for the same G and X; under autocast it is computed in autocast's dtype.
    The state dict is that of ``nn.Linear``. ``backend``: see ``matmul.Backend``; None: ``matmul.default_backend``.

    Source: Wortsman et al., "Stable and low-precision training for large-scale vision-language models",
    arXiv 2304.13013.
    """


class SwitchBackMLinear(_IntegerLinear):
    """SwitchBack that saves X for the backward pass as integers: a quarter to a half of the memory, some noise in dW.

    Source: arXiv 2304.13013, SwitchBackM.
    """

    save = "integers"


class SwitchBackQLinear(_IntegerLinear):
    """SwitchBack with a scale per row of W in Y and a scale per column of W in dX.

    Source: arXiv 2304.13013, SwitchBackQ.
    """

    weight_scale = "row"


class Int8Linear(_IntegerLinear):
    """All three products in 8-bit integers: the baseline that SwitchBack is compared with.

    dW has a scale per row of G^T and a scale per column of X; W has those of SwitchBackQ.

    Source: arXiv 2304.13013, the LLM.int8()-style baseline, without LLM.int8()'s outliers in 16 bits.
    """

    weight_scale = "row"
    weight_gradient = "integers"
