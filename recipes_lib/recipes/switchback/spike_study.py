# SPDX-License-Identifier: Apache-2.0
"""What AdamW does when gradients outgrow its second moment, and what clipping, a lower beta2 and StableAdamW do about it.

A small network learns a noiseless function from fresh examples while its loss is multiplied by a factor that jumps up.
Adam's steps do not depend on such a factor in the long run; right after a jump the second moment is stale, u is too
small, and steps are too long. The loss that is recorded is the one without the factor, so the jump itself cannot be
seen in it: whatever rises, rises through the optimiser. That is a cause made by hand. It says what a stale u does, and
nothing about how often real training has one.

Three cures are compared, each tuned by as many runs (:func:`pilot`) and chosen by one rule (:func:`best`): clipping of the
gradients' norm, a lower beta2, and StableAdamW. Adam ignores a factor that is common to all gradients, but clipping gives
each step a factor of its own: with a threshold below the norms before the jump, u meets the same sizes before and after it.

Source: the question is that of Wortsman et al., arXiv 2304.13013; both tasks are ours.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recipes_lib import randomness
from recipes_lib.optim import StableAdamW
from recipes_lib.recipes.switchback.spikes import followed, loss_spikes, rms_spikes

INSIDE, HIDDEN, BATCH = 32, 64, 64
EPS = 1e-12
"""Far below the smallest gradients, or it and not u would set the size of steps."""


@dataclass(frozen=True)
class Arm:
    """An optimiser without weight decay; its first beta is 0.9."""

    name: Literal["adamw", "stable_adamw"]
    beta2: float = 0.999
    clip: float | None = None
    """Largest norm of all gradients together."""


RATES = (0.0025, 0.005, 0.01, 0.02, 0.04)
"""Learning rates that every arm may try."""
_BETAS = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999)
_NORMS = (1.0, 0.1, 0.01, 0.001, 3e-4, 1e-4, 3e-5)
GRIDS = {
    "clip": {f"{norm:g}": Arm("adamw", clip=norm) for norm in _NORMS},
    "beta2": {f"{beta2:g}": Arm("adamw", beta2=beta2) for beta2 in _BETAS},
    "stable": {f"{beta2:g}": Arm("stable_adamw", beta2=beta2) for beta2 in _BETAS},
}
"""What may be tried beside the rate: seven values of each cure's one knob. Gradients have norms of 0.0001 to 0.0005 before
the jump and of 0.04 to 0.5 after it. So a threshold of 1 never acts, and those down to 0.001 leave a jump that is still
large; below the smallest norm every step is clipped, and to Adam all such thresholds are one."""
PILOT = 100
"""Added to a seed it gives the pilot's, which is none of the claims'."""
TUNED = {
    "adamw": (GRIDS["beta2"]["0.999"], 0.005),
    "stable_999": (GRIDS["stable"]["0.999"], 0.005),
    "clip": (GRIDS["clip"]["0.0001"], 0.005),
    "beta2": (GRIDS["beta2"]["0.9"], 0.01),
    "stable": (GRIDS["stable"]["0.8"], 0.005),
}
"""Arms of the claims, each at the learning rate that :func:`best` took from the pilot: of five for the first two, of 35
pairs with the knob for the others. A test holds them to the stored pilot."""
SWEEP = {
    **{f"beta2_{name}": Arm("adamw", beta2=beta2) for name, beta2 in (("9", 0.9), ("95", 0.95), ("99", 0.99))},
    "adamw": Arm("adamw"),
    "clip": TUNED["clip"][0],
    "stable_adamw": Arm("stable_adamw"),
}
"""Arms of the run with several jumps."""

CHANGE, STEPS, BEFORE = 150, 230, 0.001
"""One jump: at this step of so many, from this factor to 1."""
AFTER = 29
"""Steps after a change in which its peak is looked for."""

JUMPS, JUMP, GAP = 5, 30.0, 160
"""Several jumps, the last of them up to a factor of 1, with gaps of half to one and a half times ``GAP`` steps."""
LONG = int(1.5 * GAP * JUMPS) + 100
LONG_LR = 0.01
DEVIATIONS = 6.0
"""A loss of 64 fresh examples scatters so much that 3.2 deviations are found where nothing happens."""


@dataclass(frozen=True)
class Series:
    """One value per step."""

    losses: list[float]
    """Before the step, on examples that are new to the network; without the factor."""
    rms: list[float]
    """sqrt(mean(g^2 / u)) of the first layer's weight, of the step's own gradient, which u has already taken in."""


def measure(seed: int) -> dict[str, Any]:
    """All metrics of one seed: ``one_jump`` by tuned arm, ``several_jumps`` by arm of the sweep."""
    torch.set_num_threads(1)
    one = {name: one_jump(arm, rate, seed) for name, (arm, rate) in TUNED.items()}
    return {"one_jump": one, "several_jumps": {arm: several_jumps(SWEEP[arm], seed) for arm in SWEEP}}


def pilot(seed: int) -> dict[str, Any]:
    """Each cure's peak after one jump at each of its settings, on seed ``PILOT + seed``: ``found[cure][knob][rate]``."""
    torch.set_num_threads(1)

    def peaks(arm: Arm) -> dict[str, float]:
        return {f"{rate:g}": one_jump(arm, rate, PILOT + seed)["peak"] for rate in RATES}

    return {cure: {knob: peaks(arm) for knob, arm in grid.items()} for cure, grid in GRIDS.items()}


def best(pilots: Sequence[Mapping[str, Any]], cure: str, knobs: Collection[str] | None = None) -> tuple[str, str]:
    """The rule of choice: knob and rate of the least peak, averaged over the pilot's seeds.

    ``pilots``: what :func:`pilot` gave for each seed; ``knobs``: those that may be taken, all if None.
    """
    settings = [(knob, f"{rate:g}") for knob in GRIDS[cure] if knobs is None or knob in knobs for rate in RATES]
    return min(settings, key=lambda setting: _mean([found[cure][setting[0]][setting[1]] for found in pilots]))


def fingerprint() -> dict[str, Any]:
    """What tells that the numerics moved: three losses after an early jump, and AdamW's RMS there."""
    stable, plain = (train(SWEEP[arm], 0.01, [BEFORE] * 5 + [1.0] * 4, 0) for arm in ("stable_adamw", "adamw"))
    return {"losses": stable.losses[-3:], "rms": plain.rms[-1]}


def one_jump(arm: Arm, lr: float, seed: int) -> dict[str, float]:
    """``before``: mean loss of the 30 steps before the jump; ``peak``: largest loss of the ``AFTER`` steps after the
    first one with the new factor; ``end``: mean loss of the last 20; ``rms``: largest from the jump on.
    """
    series = train(arm, lr, [BEFORE] * CHANGE + [1.0] * (STEPS - CHANGE), seed)
    return {
        "before": _mean(series.losses[CHANGE - 30 : CHANGE]),
        "peak": max(series.losses[CHANGE + 1 : CHANGE + 1 + AFTER]),
        "end": _mean(series.losses[-20:]),
        "rms": max(series.rms[CHANGE:]),
    }


def several_jumps(arm: Arm, seed: int) -> dict[str, float]:
    """How many spikes there are, and how many loss spikes come 1-8 steps after an RMS spike.

    ``spikes``, ``rms_spikes``, ``followed``: numbers; ``fraction`` (0 where there are no spikes), ``chance`` and
    ``p_value`` as in :func:`spikes.followed`;
    ``peak``: largest loss after the first jump; ``end``: mean loss of the last 20 steps.

    The design was settled on seed 100 with AdamW, before any other was run. Tasks without a factor had no spikes with an
    RMS spike before them: digits, whole and in batches; this function; inputs whose scale walks at random; rare tokens;
    addition modulo 23. Nor had a factor that walks at random, at two speeds, or switches up and down: u remembers a
    thousand steps, so after the first rise it is large enough for the next ones. So here the factor only rises. Jumps
    of 10 gave spikes too, but AdamW's RMS reached 2.3 no earlier than the loss rose: no lag. Jumps of 30 give a lag of
    one or two steps. Learning rates of .01 and .02 gave as many.
    """
    times = jumps(seed)
    scales = [JUMP ** (sum(step >= time for time in times) - JUMPS) for step in range(LONG)]
    series = train(arm, LONG_LR, scales, seed)
    start = times[0] - GAP // 4
    losses = loss_spikes(series.losses, start=start, deviations=DEVIATIONS)
    sizes = rms_spikes(series.rms)
    found = followed(losses, sizes, LONG, start=start)
    return {
        "spikes": found.spikes,
        "rms_spikes": sum(step >= start for step in sizes),
        "followed": round(found.fraction * found.spikes) if found.spikes else 0,
        "fraction": found.fraction if found.spikes else 0.0,
        "chance": found.chance,
        "p_value": found.p_value,
        "peak": max(series.losses[times[0] :]),
        "end": _mean(series.losses[-20:]),
    }


def jumps(seed: int) -> list[int]:
    """The steps at which the factor jumps."""
    generator = randomness.generator(seed, 0, "jumps")
    return torch.randint(GAP // 2, GAP * 3 // 2 + 1, (JUMPS,), generator=generator).cumsum(0).tolist()


def train(arm: Arm, lr: float, scales: Sequence[float], seed: int) -> Series:
    """Trains for ``len(scales)`` steps with the loss multiplied by each in turn. Arms of one seed see the same examples.

    The network: 32-64-64-1, GELU. Its target: tanh(3 x.w), x Gaussian, |w| = 1.
    """
    network = _network(seed)
    weights = list(network.parameters())
    optimizer = _optimizer(arm, weights, lr)
    direction = F.normalize(torch.randn(INSIDE, generator=randomness.generator(seed, 0, "direction")), dim=0)
    losses, sizes = [], []
    for step, scale in enumerate(scales):
        x = torch.randn(BATCH, INSIDE, generator=randomness.generator(seed, step, "examples"))
        loss = F.mse_loss(network(x)[:, 0], torch.tanh(3 * x @ direction))
        optimizer.zero_grad()
        (scale * loss).backward()
        if arm.clip is not None:
            nn.utils.clip_grad_norm_(weights, arm.clip)
        optimizer.step()
        losses.append(loss.item())
        sizes.append(rms(optimizer, weights[0]).item())
    return Series(losses, sizes)


def rms(optimizer: torch.optim.Optimizer, weight: nn.Parameter) -> Tensor:
    """sqrt(mean(g^2 / max(u, eps^2))) of the step just made, u without bias; StableAdamW's own, computed for AdamW too."""
    if isinstance(optimizer, StableAdamW):
        return optimizer.rms()[weight]
    state, group = optimizer.state[weight], optimizer.param_groups[0]
    second = state["exp_avg_sq"] / (1 - group["betas"][1] ** state["step"])
    return (weight.grad.square() / second.clamp_min(group["eps"] ** 2)).mean().sqrt()


def _network(seed: int) -> nn.Sequential:
    """Weights as torch draws them, from a generator of our own."""
    sizes = [INSIDE, HIDDEN, HIDDEN, 1]
    layers: list[nn.Module] = []
    generator = randomness.generator(seed, 0, "network")
    for inside, outside in pairwise(sizes):
        layer = nn.Linear(inside, outside)
        for weight in layer.parameters():
            nn.init.uniform_(weight, -1 / math.sqrt(inside), 1 / math.sqrt(inside), generator=generator)
        layers += [layer, nn.GELU()]
    return nn.Sequential(*layers[:-1])


def _optimizer(arm: Arm, weights: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    same = {"lr": lr, "betas": (0.9, arm.beta2), "eps": EPS, "weight_decay": 0.0}
    match arm.name:
        case "adamw":
            return torch.optim.AdamW(weights, **same)
        case "stable_adamw":
            return StableAdamW(weights, **same)
    raise ValueError(f"there is no optimiser {arm.name!r}; there are adamw and stable_adamw")


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
