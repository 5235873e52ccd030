# SPDX-License-Identifier: Apache-2.0
"""LARS: layer-wise adaptive rate scaling, an optimiser for large batches."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class LARS(torch.optim.Optimizer):
    r"""SGD with momentum that scales the step of each tensor to the norm of its weights.

    .. math::
        \lambda = \eta \frac{\|w\|}{\|g\| + \beta \|w\|}, \qquad
        v \leftarrow \mu v + \lambda (g + \beta w), \qquad
        w \leftarrow w - \gamma v

    with weights :math:`w`, gradient :math:`g`, momentum buffer :math:`v`, trust coefficient :math:`\eta`, weight decay
    :math:`\beta`, momentum :math:`\mu` and learning rate :math:`\gamma`. Tensors of one dimension (biases, norms) get
    plain SGD with momentum: no decay and no scaling. Weights that are all 0 are not scaled either: :math:`\lambda`
    would stay 0 for ever.

    ``nesterov``: Nesterov momentum: the step is :math:`\gamma (\lambda (g + \beta w) + \mu v)` with the new :math:`v`.
    ``scale_vectors``: tensors of one dimension decay and are scaled like the others; meant for a group of its own.
    ``lr_in_momentum``: :math:`v \leftarrow \mu v + \gamma \lambda (g + \beta w)` and :math:`w \leftarrow w - v`, so
    that each gradient keeps the learning rate of its own step. It makes no difference at a constant :math:`\gamma`.

    Raises: ``ValueError`` for a negative or otherwise impossible hyper-parameter, and for parameters that are not
    real floating-point numbers.

    Source: You, Gitman, Ginsburg, "Large Batch Training of Convolutional Networks", 2017, Eq. 6 and Algorithm 1.
    Differs: the paper and PAWS's code have :math:`\gamma` inside :math:`v` (``lr_in_momentum``); torch's SGD and the
    code of most SSL papers multiply :math:`v` by it, as here by default. PAWS's code does not change a weight whose
    gradient is 0; here it decays. PAWS's code finds norm layers by their names, and therefore scales those of a
    ResNet's shortcuts: to do the same, put the weights of ``downsample.1`` into a group with ``scale_vectors``. The
    paper has no ``nesterov``.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        *,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 0.001,
        lr_in_momentum: bool = False,
        nesterov: bool = False,
        scale_vectors: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
            "lr_in_momentum": lr_in_momentum,
            "nesterov": nesterov,
            "scale_vectors": scale_vectors,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a parameter group, as torch's optimisers do.

        Raises: ``ValueError`` for the same faults as the class.
        """
        super().add_param_group(param_group)
        try:
            _check(self.param_groups[-1])
        except ValueError:
            self.param_groups.pop()
            raise

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:  # a state saved by an older version lacks the newer options
            for key, value in self.defaults.items():
                group.setdefault(key, value)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]  # torch overloads it
        """Updates all parameters that have a gradient; ``closure`` recomputes the loss, as in torch's optimisers."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._move(weight, weight.grad, group)
        return loss

    def _move(self, weight: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        update = grad
        if weight.ndim > 1 or group["scale_vectors"]:
            decay = group["weight_decay"]
            size, slope = _norm(weight), _norm(grad)
            total = slope + decay * size
            scale = torch.where((size > 0) & (total > 0), group["trust_coefficient"] * size / total, 1.0)
            update = (update + decay * weight) * scale.to(weight.dtype)
        state = self.state[weight]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        inside, outside = (group["lr"], 1.0) if group["lr_in_momentum"] else (1.0, group["lr"])
        buffer = state["momentum_buffer"].mul_(group["momentum"]).add_(update, alpha=inside)
        if group["nesterov"]:
            weight.sub_(update, alpha=inside * outside).sub_(buffer, alpha=group["momentum"] * outside)
        else:
            weight.sub_(buffer, alpha=outside)


def _check(group: dict[str, Any]) -> None:
    """Raises ``ValueError`` if a group has a hyper-parameter out of range or a parameter that is not floating-point."""
    for name, allowed in (
        ("lr", group["lr"] >= 0),
        ("momentum", 0 <= group["momentum"] < 1),
        ("weight_decay", group["weight_decay"] >= 0),
        ("trust_coefficient", group["trust_coefficient"] > 0),
    ):
        if not allowed:
            raise ValueError(f"LARS {name} = {group[name]} is not allowed")
    for weight in group["params"]:
        if not weight.is_floating_point():
            raise ValueError(
                f"LARS got a parameter of shape {tuple(weight.shape)} and {weight.dtype}; it takes floating-point numbers. "
                "View complex ones as real."
            )


def _norm(x: Tensor) -> Tensor:
    """The Euclidean norm, summed in float32 at least: bfloat16 is too coarse for the sum of squares.  [...] -> []"""
    return torch.linalg.vector_norm(x, dtype=torch.promote_types(x.dtype, torch.float32))
