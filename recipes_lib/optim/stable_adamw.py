# SPDX-License-Identifier: Apache-2.0
"""AdamW that takes a smaller step where its second moment lags behind the gradients."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

# v: running mean of gradients ("exp_avg"), u: of their squares ("exp_avg_sq"), eta: the clipped learning rate

_PIECE = 262_144
"""Elements that a CPU thread works on at once. Of 2**16 to 2**19 those from 2**18 were fastest: fewer calls weigh more
than the nearest cache; all tensors at once would need fresh memory at every step."""


class StableAdamW(torch.optim.Optimizer):
    r"""AdamW with AdaFactor's update clipping: a tensor whose gradients outgrow :math:`u` gets a lower learning rate.

    .. math::
        v \leftarrow \hat\beta_1 v + (1 - \hat\beta_1) g, \qquad
        u \leftarrow \hat\beta_2 u + (1 - \hat\beta_2) g^2, \qquad
        \hat\beta = \beta \frac{1 - \beta^{t-1}}{1 - \beta^t}

    .. math::
        \mathrm{RMS} = \sqrt{\mathrm{mean}(g^2 / \max(u, \epsilon^2))}, \qquad
        \eta = \frac{\gamma}{\max(1, \mathrm{RMS})}, \qquad
        \theta \leftarrow (1 - \eta \lambda) \theta - \eta \frac{v}{\sqrt{u} + \epsilon}

    for each tensor, at its step :math:`t` from 1, with learning rate :math:`\gamma` and weight decay :math:`\lambda`.
    While RMS is at most 1 it is AdamW, whose bias correction :math:`\hat\beta` holds. ``clip_decay=False``: the decay
    keeps :math:`\gamma`. RMS never exceeds :math:`1 / \sqrt{1 - \hat\beta_2}`.

    Each tensor must be whole on its rank: the mean of a part is not that of the tensor. With gradients averaged over
    ranks, as DDP's are, the RMS is the same on all of them. On a GPU a step waits once for the device.

    Raises: ``ValueError`` for a hyper-parameter that is not allowed, and for sparse gradients.

    Source: Wortsman et al., "Stable and low-precision training for large-scale vision-language models", NeurIPS 2023.
    Differs: the authors' public code decays with :math:`\gamma`; torch-optimi and pytorch_optimizer
    with :math:`\eta`, as here by default.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        *,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        clip_decay: bool = True,
    ) -> None:
        for name, value, allowed in (
            ("lr", lr, lr >= 0),
            ("betas", betas, len(betas) == 2 and all(0 <= beta < 1 for beta in betas)),
            ("eps", eps, eps > 0),
            ("weight_decay", weight_decay, weight_decay >= 0),
        ):
            if not allowed:
                raise ValueError(f"StableAdamW {name} = {value} is not allowed")
        self._rms: dict[nn.Parameter, Tensor] = {}
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "clip_decay": clip_decay}
        super().__init__(params, defaults)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._rms = {}  # no part of the state: it belongs to the step just made

    def rms(self) -> dict[nn.Parameter, Tensor]:
        """RMS of the last step of each parameter that moved in it; scalars on the parameters' device, not waited for."""
        return dict(self._rms)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Takes one step with the gradients there are; ``closure`` recomputes the loss, as in torch's optimisers."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        bunches = [(group, bunch) for group in self.param_groups for bunch in self._alike(group["params"])]
        sizes = [self._observe(group, bunch) for group, bunch in bunches]
        self._rms = {
            weight: size
            for (_, bunch), bunch_sizes in zip(bunches, sizes, strict=True)
            for weight, size in zip(bunch, bunch_sizes.unbind(), strict=True)
        }
        # all moments first: reading the first RMS waits for a GPU, those after it are there
        for (group, bunch), bunch_sizes in zip(bunches, sizes, strict=True):
            self._move(group, bunch, bunch_sizes.tolist())
        return loss

    def _alike(self, weights: list[nn.Parameter]) -> list[list[nn.Parameter]]:
        """Those with a gradient, counted one step further, in lists of one device, dtype and step."""
        bunches: dict[tuple[Any, ...], list[nn.Parameter]] = {}
        for weight in weights:
            if weight.grad is None:
                continue
            if weight.grad.layout != torch.strided:
                raise ValueError(
                    f"StableAdamW takes dense gradients only; one of shape {tuple(weight.shape)} has layout "
                    f"{weight.grad.layout}. Give that parameter to torch.optim.SparseAdam."
                )
            bunches.setdefault((weight.device, weight.dtype), []).append(weight)
        return [part for bunch in bunches.values() for part in self._of_one_step(bunch)]

    def _of_one_step(self, weights: list[nn.Parameter]) -> Iterable[list[nn.Parameter]]:
        by_step: dict[int, list[nn.Parameter]] = {}
        for weight in weights:
            state = self.state[weight]
            if not state:
                state |= {"step": 0, "exp_avg": torch.zeros_like(weight), "exp_avg_sq": torch.zeros_like(weight)}
            state["step"] += 1
            by_step.setdefault(state["step"], []).append(weight)
        return by_step.values()

    def _moments(self, weights: list[nn.Parameter]) -> tuple[list[Tensor], list[Tensor]]:
        return [self.state[w]["exp_avg"] for w in weights], [self.state[w]["exp_avg_sq"] for w in weights]

    def _observe(self, group: dict[str, Any], weights: list[nn.Parameter]) -> Tensor:
        """Takes the gradients into the moments; returns each tensor's RMS. -> [len(weights)]"""
        grads, (means, squares) = [weight.grad for weight in weights], self._moments(weights)
        beta1, beta2 = (_debiased(beta, self.state[weights[0]]["step"]) for beta in group["betas"])
        sums: list[list[Tensor]] = [[] for _ in weights]
        # the dtype's smallest number: in float16 the square of eps is 0
        floor = max(group["eps"] ** 2, torch.finfo(weights[0].dtype).tiny)
        for places, (g, v, u) in _pieces(grads, means, squares):
            torch._foreach_lerp_(v, g, 1 - beta1)
            ratios = torch._foreach_mul(g, g)
            torch._foreach_lerp_(u, ratios, 1 - beta2)
            torch._foreach_div_(ratios, torch._foreach_clamp_min(u, floor))
            for place, part in zip(places, _sums(ratios), strict=True):
                sums[place].append(part)
        totals = torch.stack([parts[0] if len(parts) == 1 else torch.stack(parts).sum() for parts in sums])
        counts = torch.tensor([max(weight.numel(), 1) for weight in weights], dtype=totals.dtype)
        return (totals / counts.to(totals.device, non_blocking=True)).sqrt()

    def _move(self, group: dict[str, Any], weights: list[nn.Parameter], rms: list[float]) -> None:
        """Steps, and decays, each tensor with a learning rate of its own."""
        lr, eps = group["lr"], group["eps"]
        rates = [lr / max(1.0, size) for size in rms]
        for places, (w, v, u) in _pieces(weights, *self._moments(weights)):
            if group["weight_decay"]:
                decayed = [rates[place] if group["clip_decay"] else lr for place in places]
                torch._foreach_mul_(w, [1 - rate * group["weight_decay"] for rate in decayed])
            roots = torch._foreach_sqrt(u)
            torch._foreach_add_(roots, eps)
            torch._foreach_addcdiv_(w, v, roots, [-rates[place] for place in places])


def _debiased(beta: float, step: int) -> float:
    """The decay at ``step``, from 1, that makes a running mean from 0 an unbiased one: 0 at the first."""
    return beta * (1 - beta ** (step - 1)) / (1 - beta**step)


def _sums(tensors: list[Tensor]) -> list[Tensor]:
    """The sum of each tensor, none of whose elements is negative; bf16 numbers need float32 to be added up."""
    wide = torch.promote_types(tensors[0].dtype, torch.float32)
    if tensors[0].device.type == "cpu":
        return [tensor.sum(dtype=wide) for tensor in tensors]  # a third of the norm's time
    return list(torch._foreach_norm(tensors, 1, dtype=wide))


def _pieces(*lists: list[Tensor]) -> Iterator[tuple[list[int], list[list[Tensor]]]]:
    """Corresponding tensors of the lists, or parts of them, with the places of the whole tensors.

    On a GPU all at once, for the fewest kernels. On a CPU few enough to stay in a cache from one operation to the
    next; larger tensors are cut along their first dimension.
    """
    first = lists[0]
    if first[0].device.type != "cpu":
        yield list(range(len(first))), list(lists)
        return
    room = _PIECE * torch.get_num_threads()
    begun, held = 0, 0
    for place, tensor in enumerate(first):
        size = tensor.numel()
        if place > begun and held + size > room:
            yield list(range(begun, place)), [tensors[begun:place] for tensors in lists]
            begun, held = place, 0
        held += size
        if size > room:  # it is alone, as nothing fits beside it
            rows = max(1, room * tensor.shape[0] // size)
            for cut in zip(*(tensors[place].split(rows) for tensors in lists), strict=True):
                yield [place], [[part] for part in cut]
            begun, held = place + 1, 0
    if begun < len(first):
        yield list(range(begun, len(first))), [tensors[begun:] for tensors in lists]
