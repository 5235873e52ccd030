# SPDX-License-Identifier: Apache-2.0
"""Layer-wise adaptive rate scaling, for large batches."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class LARS(torch.optim.Optimizer):
    r"""SGD with momentum whose step is scaled, tensor by tensor, to the size of the weights.

    .. math::
        \lambda = \eta \frac{\|w\|}{\|g\| + \beta \|w\|}, \qquad
        v \leftarrow \mu v + \lambda (g + \beta w), \qquad
        w \leftarrow w - \gamma v

    with trust coefficient :math:`\eta`, weight decay :math:`\beta`, momentum :math:`\mu`, learning rate
    :math:`\gamma`. Tensors of one dimension (biases, norms) get plain SGD with momentum: no decay, no scaling; as do
    weights that are still 0, whose scale would be 0 for ever.

    ``lr_in_momentum``: :math:`v \leftarrow \mu v + \gamma \lambda (g + \beta w)` and :math:`w \leftarrow w - v`, so that
    a step keeps the learning rate it was made with; the same at a constant :math:`\gamma`.

    Raises: ``ValueError`` for a negative or otherwise impossible hyper-parameter.

    Source: You, Gitman, Ginsburg, "Large Batch Training of Convolutional Networks", 2017, Eq. 6 and Algorithm 1.
    Differs: the paper and the code of PAWS have :math:`\gamma` inside :math:`v` (``lr_in_momentum``); torch's SGD and
    most SSL papers' codes multiply :math:`v` by it, as here by default. PAWS's code leaves a weight without any
    gradient where it is, here it decays; it tells norms by their names, and so scales those of a ResNet's shortcuts.
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
    ) -> None:
        for name, value, allowed in (
            ("lr", lr, lr >= 0),
            ("momentum", momentum, 0 <= momentum < 1),
            ("weight_decay", weight_decay, weight_decay >= 0),
            ("trust_coefficient", trust_coefficient, trust_coefficient > 0),
        ):
            if not allowed:
                raise ValueError(f"LARS {name} = {value} is not allowed")
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
            "lr_in_momentum": lr_in_momentum,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Takes one step with the gradients there are; ``closure`` recomputes the loss, as in torch's optimisers."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._move(weight, group)
        return loss

    def _move(self, weight: Tensor, group: dict[str, Any]) -> None:
        update = weight.grad
        if weight.ndim > 1:
            decay = group["weight_decay"]
            size, slope = _norm(weight), _norm(weight.grad)
            total = slope + decay * size
            scale = torch.where((size > 0) & (total > 0), group["trust_coefficient"] * size / total, 1.0)
            update = (update + decay * weight) * scale.to(weight.dtype)
        state = self.state[weight]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        inside, outside = (group["lr"], 1.0) if group["lr_in_momentum"] else (1.0, group["lr"])
        buffer = state["momentum_buffer"].mul_(group["momentum"]).add_(update, alpha=inside)
        weight.sub_(buffer, alpha=outside)


def _norm(x: Tensor) -> Tensor:
    """Euclidean norm; bf16 squares need float32 to be added up. [...] -> []"""
    return torch.linalg.vector_norm(x, dtype=torch.promote_types(x.dtype, torch.float32))
