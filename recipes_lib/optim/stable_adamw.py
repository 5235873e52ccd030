# SPDX-License-Identifier: Apache-2.0
"""StableAdamW: AdamW with a smaller step for a tensor whose second moment lags behind its gradients."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from recipes_lib.distributed import fsdp
from recipes_lib.optim import layout

# g: gradient, v: running mean of g ("exp_avg"), u: running mean of g^2 ("exp_avg_sq"), eta: the clipped learning rate

_PIECE = 524_288
"""Elements per CPU thread that are processed at once: few enough that the gradient and u are still in the cache when
the fused kernel reads them after the RMS, and so many that the overhead of the calls does not matter."""
_ADAMW = {"amsgrad", "foreach", "capturable", "differentiable", "fused", "decoupled_weight_decay"}
_OPTIMI = {
    "beta1",
    "beta2",
    "step",
    "decouple_lr",
    "max_lr",
    "kahan_sum",
    "triton",
    "gradient_release",
    "setup",
    "foreach",
}
_OTHERS = _ADAMW | _OPTIMI
"""Keys of torch's and torch-optimi's parameter groups that are dropped after loading: they are no options here."""


class StableAdamW(torch.optim.Optimizer):
    r"""AdamW with AdaFactor's update clipping: a tensor whose squared gradients exceed :math:`u` gets a smaller step.

    .. math::
        v \leftarrow \hat\beta_1 v + (1 - \hat\beta_1) g, \qquad
        u \leftarrow \hat\beta_2 u + (1 - \hat\beta_2) g^2, \qquad
        \hat\beta = \beta \frac{1 - \beta^{t-1}}{1 - \beta^t}

    .. math::
        \mathrm{RMS} = \sqrt{\mathrm{mean}(g^2 / \max(u, \epsilon^2))}, \qquad
        \eta = \frac{\gamma}{\max(1, \mathrm{RMS})}, \qquad
        \theta \leftarrow (1 - \eta \lambda) \theta - \eta \frac{v}{\sqrt{u} + \epsilon}

    for each tensor with weights :math:`\theta` and gradient :math:`g`, at its step :math:`t` from 1, with learning rate
    :math:`\gamma` and weight decay :math:`\lambda`. While RMS is at most 1 this is AdamW, whose bias correction is
    contained in :math:`\hat\beta`. RMS never exceeds :math:`1 / \sqrt{1 - \hat\beta_2}`.

    ``clip_decay``: the weight decay uses the clipped rate :math:`\eta`, as written above. With ``False`` it uses
    :math:`\gamma`: a tensor whose step is shortened decays as fast as the others.
    ``maximize``: the steps go up the gradient.
    ``kahan``: a parameter in bfloat16 or float16 keeps what its last update lost to rounding (``kahan_comp`` in the
    state) and adds it to the next one. Without it, steps below half of the last bit of a weight are lost altogether.
    It takes one more tensor of the parameter's size and does nothing for other dtypes.

    The learning rate may be a tensor of one element. Each rank must hold whole tensors: the RMS of a part is not that
    of the tensor. If gradients are averaged over ranks, as by DDP, all ranks get the same RMS. The step is that of
    torch's fused AdamW kernel, called with each tensor's own rate (so there is no option ``fused`` or ``foreach``). On
    a GPU each step waits once for the device, so it cannot be captured in a CUDA graph (no option ``capturable``).
    Squares are added up in float32 at least. If a square overflows, the RMS uses the largest finite number instead, and
    the element's :math:`u` becomes infinite: from then on it does not move, as under torch's AdamW. In float16
    :math:`u` stays at the largest finite number instead.

    ``load_state_dict`` also accepts the state of torch's Adam and AdamW (their running means lack the bias correction
    that ours contain, so it is applied at loading) and of torch-optimi's StableAdamW.

    Raises: ``ValueError`` for a hyper-parameter that is not allowed, for parameters that are not real floating-point
    numbers, are sharded (``DTensor``) or have gaps in memory, for sparse gradients, and for a state without running
    means or step.

    Source: Wortsman et al., "Stable and low-precision training for large-scale vision-language models", NeurIPS 2023.
    Differs: the authors' public code, which their runs used, decays with :math:`\gamma` (``clip_decay=False``);
    torch-optimi and pytorch_optimizer decay with :math:`\eta`, as here by default.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor,
        *,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        clip_decay: bool = True,
        maximize: bool = False,
        kahan: bool = False,
    ) -> None:
        self._last: list[tuple[_Bunch, Tensor]] = []
        self._scratch = _Scratch()
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "clip_decay": clip_decay,
            "maximize": maximize,
            "kahan": kahan,
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
        self._last, self._scratch = [], _Scratch()  # neither is part of the state
        for group in self.param_groups:
            self._take_over(group)
        layout.match_state(self)

    def _take_over(self, group: dict[str, Any]) -> None:
        """Converts a loaded group and its state, saved by an older version, torch's AdamW or torch-optimi, to ours."""
        if "beta1" in group:
            group["betas"], group["kahan"] = (group["beta1"], group["beta2"]), bool(group["kahan_sum"])
        others = {key: group.pop(key) for key in _OTHERS & group.keys()}
        for key, value in self.defaults.items():
            group.setdefault(key, value)
        for weight in group["params"]:
            if old := self.state.get(weight):
                self.state[weight] = _state_from(old, others, group["betas"])

    def rms(self) -> dict[Tensor, Tensor]:
        """The RMS of each parameter that the last step updated: scalars on its device, without waiting for a GPU."""
        return {
            weight: rms
            for bunch, sizes in self._last
            for weight, rms in zip(bunch.weights, sizes.unbind(), strict=True)
        }

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]  # torch overloads it
        """Updates all parameters that have a gradient; ``closure`` recomputes the loss, as in torch's optimisers."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        layout.match_gradients(self)
        self._last, waiting = [], []
        for group in self.param_groups:
            for bunch in self._bunches(group):
                sizes = (
                    _rms_on_cpu(bunch, self._scratch) if bunch.weights[0].device.type == "cpu" else _rms_at_once(bunch)
                )
                self._last.append((bunch, sizes))
                if sizes.device.type == "cpu":
                    self._move(group, bunch, sizes.tolist())
                else:
                    waiting.append((group, bunch, sizes))
        for group, bunch, sizes in waiting:  # reading the first waits for the device; the others are ready by then
            self._move(group, bunch, sizes.tolist())
        return loss

    def _bunches(self, group: dict[str, Any]) -> Iterator["_Bunch"]:
        """Counts the step of each parameter that has a gradient, and yields them grouped by device, dtype and step.

        On a CPU each bunch is small, so that what the RMS has read is still in the cache when the step is taken.
        """
        found: dict[tuple[Any, ...], list[tuple[Tensor, ...]]] = {}
        for weight in group["params"]:
            g = weight.grad
            if g is None:
                continue
            if g.layout != torch.strided:
                raise ValueError(
                    f"StableAdamW takes dense gradients only; one of shape {tuple(weight.shape)} has layout "
                    f"{g.layout}. Give that parameter to torch.optim.SparseAdam."
                )
            state = self.state[weight]
            if not state:
                state |= {"step": 0, "exp_avg": torch.zeros_like(weight), "exp_avg_sq": torch.zeros_like(weight)}
            state["step"] += 1
            key = (weight.device, weight.dtype, state["step"])
            found.setdefault(key, []).append((weight, g, state["exp_avg"], state["exp_avg_sq"]))
        for (device, _, step), rows in found.items():
            beta1, beta2 = (_debiased(beta, step) for beta in group["betas"])
            for run in _runs(rows) if device.type == "cpu" else [rows]:
                # the kernel's own bias correction vanishes at step infinity: our betas contain the correction already
                never = [torch.full((), math.inf, device=device)] * len(run)
                weights, grads, means, squares = map(list, zip(*run, strict=True))
                bunch = _Bunch(weights, grads, means, squares, never, beta1, beta2, group["eps"])
                if not beta2:
                    torch._foreach_zero_(bunch.squares)  # beta2 = 0 ignores them, but 0 times infinity would be NaN
                yield bunch

    def _move(self, group: dict[str, Any], bunch: "_Bunch", rms: list[float]) -> None:
        """Updates and decays each tensor with its own clipped learning rate; tensors of equal rate share one call."""
        lr = float(group["lr"])
        shared: dict[float, list[int]] = {}
        for place, size in enumerate(rms):
            shared.setdefault(lr / max(1.0, min(size, _LARGEST)), []).append(place)
        with_remainders = group["kahan"] and bunch.weights[0].dtype in (torch.bfloat16, torch.float16)
        for rate, places in shared.items():
            some = bunch if len(shared) == 1 else bunch.part(places)
            decay = group["weight_decay"] * (1.0 if group["clip_decay"] or not rate else lr / rate)
            if with_remainders:
                self._move_with_remainders(some, rate, decay, group["maximize"])
            else:
                some.step(some.weights, rate, decay, group["maximize"])

    def _move_with_remainders(self, bunch: "_Bunch", rate: float, decay: float, maximize: bool) -> None:
        """Updates by Kahan summation: adds the step to the remainder and the remainder to the weight.

        What rounding keeps from the weight is the new remainder.
        """
        states = [self.state[weight] for weight in bunch.weights]
        remainders = [s.setdefault("kahan_comp", torch.zeros_like(s["exp_avg"])) for s in states]
        if decay:
            torch._foreach_mul_(bunch.weights, 1 - rate * decay)
        bunch.step(remainders, rate, 0.0, maximize)
        before = [weight.clone() for weight in bunch.weights]
        torch._foreach_add_(bunch.weights, remainders)
        torch._foreach_sub_(before, bunch.weights)
        torch._foreach_add_(remainders, before)


class _Bunch(NamedTuple):
    """Parameters of one group, device, dtype and step, with all that their update needs.

    Each list has an entry per parameter. The betas contain the bias correction.
    """

    weights: list[Tensor]
    grads: list[Tensor]
    means: list[Tensor]
    squares: list[Tensor]
    steps: list[Tensor]
    beta1: float
    beta2: float
    eps: float

    def part(self, places: list[int]) -> "_Bunch":
        """The bunch of only those parameters that stand at ``places``."""
        weights, grads, means, squares, steps = ([some[place] for place in places] for some in self[:5])
        return _Bunch(weights, grads, means, squares, steps, self.beta1, self.beta2, self.eps)

    def step(self, moved: list[Tensor], rate: float, decay: float, maximize: bool) -> None:
        """Calls torch's fused AdamW kernel, which updates the tensors ``moved`` and the running means in place."""
        torch._fused_adamw_(
            moved,
            self.grads,
            self.means,
            self.squares,
            [],
            self.steps,
            lr=rate,
            beta1=self.beta1,
            beta2=self.beta2,
            weight_decay=decay,
            eps=self.eps,
            amsgrad=False,
            maximize=maximize,
        )
        if moved[0].dtype == torch.float16:
            torch._foreach_clamp_max_(self.squares, torch.finfo(torch.float16).max)


_LARGEST = torch.finfo(torch.float32).max


def _check(group: dict[str, Any]) -> None:
    """Raises ``ValueError`` if a group has a hyper-parameter out of range or a parameter that we do not take."""
    lr, betas, eps, weight_decay = (group[name] for name in ("lr", "betas", "eps", "weight_decay"))
    if isinstance(lr, Tensor) and lr.numel() != 1:
        raise ValueError(f"StableAdamW lr has shape {tuple(lr.shape)}: use a number or a tensor of one element")
    for name, value, allowed in (
        ("lr", lr, lr >= 0),
        ("betas", betas, len(betas) == 2 and all(0 <= beta < 1 for beta in betas)),
        ("eps", eps, eps > 0),
        ("weight_decay", weight_decay, weight_decay >= 0),
    ):
        if not allowed:
            raise ValueError(f"StableAdamW {name} = {value} is not allowed")
    for weight in group["params"]:
        what = f"StableAdamW got a parameter of shape {tuple(weight.shape)}"
        if fsdp.is_sharded(weight):
            raise ValueError(
                f"{what} of which each rank has a share, and it measures whole ones. Use torch.optim.AdamW."
            )
        if not weight.is_floating_point():
            raise ValueError(f"{what} and {weight.dtype}; it takes floating-point numbers. View complex ones as real.")
        if torch.empty_like(weight, device="meta").stride() != weight.stride():
            raise ValueError(f"{what} with gaps or repetitions in memory. Make it of a .contiguous() tensor.")


def _state_from(old: dict[str, Any], others: dict[str, Any], betas: tuple[float, float]) -> dict[str, Any]:
    """The state of a parameter, converted from ``old``: our own, or that of an optimiser whose group had ``others``."""
    step = old.get("step", others.get("step"))
    if step is None or not all(isinstance(old.get(key), Tensor) for key in ("exp_avg", "exp_avg_sq")):
        raise ValueError(
            f"StableAdamW cannot go on from a state of {', '.join(map(str, old))}: it needs step, exp_avg and exp_avg_sq, "
            "as it saves them itself, and torch's AdamW does. Start it anew."
        )
    state = {key: old[key] for key in ("exp_avg", "exp_avg_sq", "kahan_comp") if isinstance(old.get(key), Tensor)}
    state["step"] = int(step)
    if "amsgrad" in others and state["step"]:  # torch's Adam: its means lack the bias correction; ours contain it
        for key, beta in zip(("exp_avg", "exp_avg_sq"), betas, strict=True):
            state[key] = state[key] / (1 - beta ** state["step"])
    return state


def _debiased(beta: float, step: int) -> float:
    """The decay at ``step`` (from 1) for which a running mean that starts at 0 is unbiased; it is 0 at step 1."""
    return beta * (1 - beta ** (step - 1)) / (1 - beta**step)


def _room() -> int:
    """The number of elements that all CPU threads together process at once."""
    return _PIECE * torch.get_num_threads()


def _runs(rows: Sequence[tuple[Tensor, ...]]) -> Iterator[list[tuple[Tensor, ...]]]:
    """Splits ``rows``, in order, into lists whose first tensors have at most ``_room()`` elements together.

    A larger tensor is a list of its own.
    """
    run: list[tuple[Tensor, ...]] = []
    held, room = 0, _room()
    for row in rows:
        size = row[0].numel()
        if run and held + size > room:
            yield run
            run, held = [], 0
        run.append(row)
        held += size
    if run:
        yield run


class _Scratch(dict[tuple[torch.dtype, int], Tensor]):
    """A buffer per (dtype, number of elements) that every step reuses: fresh memory costs more than the arithmetic."""

    def __missing__(self, key: tuple[torch.dtype, int]) -> Tensor:
        self.clear()
        self[key] = torch.empty(key[1], dtype=key[0])
        return self[key]


def _rms_on_cpu(bunch: _Bunch, scratch: _Scratch) -> Tensor:
    """The RMS of each tensor, with the u that the coming step will store, tensor by tensor.  -> [len(weights)]"""
    wide, floor = _wide(bunch)
    room, beta2 = _room(), bunch.beta2
    memory = scratch[wide, room]
    # dividing u by beta2 saves one operation, unless beta2 is too small to divide by
    factor = beta2 if beta2 > 0.1 else 1.0
    ratio, floor, most = (1 - beta2) / factor, floor / factor, torch.finfo(wide).max

    def total(g: Tensor, u: Tensor, size: int) -> float:
        if size > room:
            return sum(total(*pieces, len(pieces[0])) for pieces in zip(g.split(room), u.split(room), strict=True))
        if g.dtype != wide:
            g, u = g.to(wide), u.to(wide)
        x = memory[:size]
        if factor == beta2:
            torch.addcmul(u, g, g, value=ratio, out=x)
        else:
            torch.mul(u, beta2, out=x).addcmul_(g, g, value=ratio)
        return torch.dot(g, torch.div(g, x.clamp_(floor, most), out=x)).item()

    roots = []
    for g, u in zip(bunch.grads, bunch.squares, strict=True):
        size = g.numel()
        roots.append(math.sqrt(total(_flat(g), _flat(u), size) / factor / max(size, 1)))
    return torch.tensor(roots, dtype=wide)


def _rms_at_once(bunch: _Bunch) -> Tensor:
    """The RMS of each tensor, all tensors together, which takes the fewest kernels.  -> [len(weights)]"""
    wide, floor = _wide(bunch)
    grads, squares = ([x.to(wide) for x in some] for some in (bunch.grads, bunch.squares))
    means = torch._foreach_mul(squares, bunch.beta2)
    torch._foreach_addcmul_(means, grads, grads, 1 - bunch.beta2)
    torch._foreach_clamp_min_(means, floor)
    torch._foreach_clamp_max_(means, torch.finfo(wide).max)
    ratios = torch._foreach_div(grads, means)
    torch._foreach_mul_(ratios, grads)
    totals = torch.stack(torch._foreach_norm(ratios, 1))  # no ratio is negative, so the 1-norm is the sum
    sizes = torch.tensor([max(g.numel(), 1) for g in grads], dtype=wide)
    return (totals / sizes.to(totals.device, non_blocking=True)).sqrt()


def _wide(bunch: _Bunch) -> tuple[torch.dtype, float]:
    """The dtype in which squares are added up, and the lower bound of u in it, eps^2, which must not be 0."""
    wide = torch.promote_types(bunch.weights[0].dtype, torch.float32)
    return wide, max(bunch.eps**2, torch.finfo(wide).tiny)


def _flat(x: Tensor) -> Tensor:
    """The elements of ``x`` in the order of memory, where it has neither gaps nor repetitions.  [...] -> [x.numel()]"""
    return x.view(-1) if x.is_contiguous() else x.as_strided((x.numel(),), (1,))
