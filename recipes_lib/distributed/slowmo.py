# SPDX-License-Identifier: Apache-2.0
r"""Slow momentum: what the workers' mean did in a round is a gradient for one more, slower step of momentum.

With :math:`x_0` the weights at the round's start, :math:`\bar x` the workers' mean at its end, :math:`\gamma` the
learning rate of the round's last step, :math:`\beta` the slow momentum and :math:`\alpha` the slow learning rate:

.. math::
    u \leftarrow \beta u + \frac{x_0 - \bar x}{\gamma}, \qquad
    x_0 \leftarrow x_0 - \alpha \gamma u, \qquad
    x_k \leftarrow x_0

:math:`\beta = 0, \alpha = 1` is plain averaging. Source: Wang, Tantia, Ballas, Rabbat, "SlowMo: Improving
Communication-Efficient Distributed SGD with Slow Momentum", ICLR 2020, Algorithm 1. Differs: fairscale's SlowMo has two
periods, one for averaging and a longer one for the slow step; here, as in the algorithm, one period is both.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from recipes_lib.config import SyncConfig
from recipes_lib.distributed.fsdp import FSDP
from recipes_lib.distributed.sync import DDP, Buffers, LocalSGD, Strategy, Traffic

_NO_STEP = 1e-30  # a learning rate below it leaves float32 in the quotient


class SlowMo:
    r""":class:`~recipes_lib.distributed.sync.LocalSGD` with slow momentum at the end of each round; no byte more is sent.

    In the synchronous steps before ``start`` rounds are counted too: with ``start`` at the run's length this is SlowMo over
    DDP. :math:`\gamma` is each parameter group's own ``lr``; where it is 0 (the end of a cosine) the round is averaged
    plainly and ``u`` stays. Parameters that the optimiser does not move are averaged plainly too. An incomplete last
    round ends as every round does. Memory: two copies of the optimised weights.

    Raises: ``ValueError`` for a value out of its range.
    """

    def __init__(
        self, period: int, *, momentum: float, lr: float = 1.0, start: int = 0, buffers: Buffers = "maintain"
    ) -> None:
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum = {momentum} is not allowed: use a value in [0, 1)")
        if not lr > 0:
            raise ValueError(f"lr = {lr} is not allowed: use a value above 0")
        self._local = LocalSGD(period, start=start, buffers=buffers)
        self.momentum, self.lr = momentum, lr

    @property
    def traffic(self) -> Traffic:
        """What was averaged over ranks so far."""
        return self._local.traffic

    @property
    def trained(self) -> nn.Module:
        """The method."""
        return self._local.trained

    def wrap(self, method: nn.Module, optimizer: torch.optim.Optimizer) -> nn.Module:
        """As :meth:`LocalSGD.wrap`; the first round starts from these weights."""
        model = self._local.wrap(method, optimizer)
        names = {parameter: name for name, parameter in method.named_parameters()}
        self._optimizer = optimizer
        optimised = [weight for group in optimizer.param_groups for weight in group["params"]]
        self._anchor = {names[weight]: weight.detach().clone() for weight in optimised}
        self._slow = {names[weight]: torch.zeros_like(weight) for weight in optimised}
        self._names = names
        return model

    def hold(self, step: int, last: bool) -> AbstractContextManager:
        """As :meth:`LocalSGD.hold`."""
        return self._local.hold(step, last)

    def meets(self, step: int) -> bool:
        """As :meth:`LocalSGD.meets`."""
        return self._local.meets(step)

    def alike(self, step: int) -> bool:
        """As :meth:`LocalSGD.alike`."""
        return self._local.alike(step)

    def after_step(self, step: int) -> None:
        """Averages and takes the slow step where a round ends."""
        self._local.after_step(step)
        if self._local.ends_round(step):
            self._step()

    def finish(self, step: int) -> None:
        """Averages what a last, incomplete round left, and takes its slow step."""
        if not self._local.level(step):
            self._local.finish(step)
            self._step()

    def state_dict(self) -> dict[str, Tensor]:
        """The weights at the round's start, ``anchor/NAME``, and ``slow_momentum/NAME``; the same on every rank."""
        return {f"anchor/{name}": tensor for name, tensor in self._anchor.items()} | {
            f"slow_momentum/{name}": tensor for name, tensor in self._slow.items()
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes what :meth:`state_dict` gave. Raises: ``KeyError`` where a parameter has no entry."""
        for key, tensor in self.state_dict().items():
            tensor.copy_(state[key])

    def unwrap(self) -> None:
        """As :meth:`LocalSGD.unwrap`."""

    @torch.no_grad()
    def _step(self) -> None:
        for group in self._optimizer.param_groups:
            weights = group["params"]
            places = [self._names[weight] for weight in weights]
            anchor, slow = [self._anchor[name] for name in places], [self._slow[name] for name in places]
            slow_step(anchor, slow, weights, float(group["lr"]), self.momentum, self.lr)
            torch._foreach_copy_(weights, anchor)


@torch.no_grad()
def slow_step(
    anchor: Sequence[Tensor], slow: Sequence[Tensor], mean: Sequence[Tensor], gamma: float, momentum: float, lr: float
) -> None:
    """Moves ``anchor`` (x_0) and ``slow`` (u), in place, by a round that ended in the workers' ``mean``.

    At ``gamma`` 0, or next to it, there is no quotient: ``anchor`` becomes ``mean`` and ``slow`` stays.
    """
    if gamma < _NO_STEP:
        torch._foreach_copy_(anchor, mean)
        return
    moved = torch._foreach_sub(anchor, mean)
    torch._foreach_mul_(slow, momentum)
    torch._foreach_add_(slow, moved, alpha=1 / gamma)
    torch._foreach_add_(anchor, slow, alpha=-lr * gamma)


def build(config: SyncConfig) -> Strategy:
    """The strategy of ``config.name``."""
    match config.name:
        case "ddp":
            return DDP()
        case "fsdp":
            return FSDP()
        case "local_sgd":
            return LocalSGD(config.period, buffers=config.buffers)
        case "post_local_sgd":
            return LocalSGD(config.period, start=config.start, buffers=config.buffers)
        case "slowmo":
            how = {"momentum": config.momentum, "lr": config.lr, "start": config.start, "buffers": config.buffers}
            return SlowMo(config.period, **how)
        case unknown:
            raise ValueError(
                f"there is no strategy {unknown!r}; there are ddp, fsdp, local_sgd, post_local_sgd and slowmo"
            )
