# SPDX-License-Identifier: Apache-2.0
"""Measures what AdamW does when gradients outgrow its second moment u, and how well three cures work.

A small network learns a noiseless function from fresh examples while its loss is multiplied by a factor that jumps up.
In the long run Adam's steps do not depend on this factor. Right after a jump, however, the second moment u is out of
date: it is too small, and steps are too long. The recorded loss is the one without the factor, so any rise in it comes
from the optimiser. The jump is artificial: the study shows what an outdated u does, not how often real training has
one.

The three cures are clipping of the gradient norm, a lower beta2, and StableAdamW. All are tuned with the same number of
runs (:func:`pilot`) and chosen by the same rule (:func:`best`). Adam ignores a factor that is common to all gradients,
but clipping scales each step differently: with a threshold below the norms before the jump, u sees gradients of the
same norm before and after it.

Symbols: g: gradient; u: Adam's running mean of g^2 (bias-corrected); RMS: sqrt(mean(g^2 / u)), about 1 if u is up to
date.

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
"""Adam's epsilon. It is far below the smallest gradients, because otherwise it, not u, would set the size of steps."""


@dataclass(frozen=True)
class Arm:
    """An optimiser without weight decay, with beta1 0.9."""

    name: Literal["adamw", "stable_adamw"]
    beta2: float = 0.999
    clip: float | None = None
    """Largest norm of the gradient of all weights together; ``None``: no clipping."""


RATES = (0.0025, 0.005, 0.01, 0.02, 0.04)
"""Learning rates that every arm tries in the pilot."""
_BETAS = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999)
_NORMS = (1.0, 0.1, 0.01, 0.001, 3e-4, 1e-4, 3e-5)
GRIDS = {
    "clip": {f"{norm:g}": Arm("adamw", clip=norm) for norm in _NORMS},
    "beta2": {f"{beta2:g}": Arm("adamw", beta2=beta2) for beta2 in _BETAS},
    "stable": {f"{beta2:g}": Arm("stable_adamw", beta2=beta2) for beta2 in _BETAS},
}
"""Seven values of each cure's one setting, which the pilot tries with every learning rate. Gradients have norms of
0.0001 to 0.0005 before the jump and of 0.04 to 0.5 after it. So a threshold of 1 never clips, and thresholds down to
0.001 leave a large jump. With a threshold below the smallest norm every step is clipped, and for Adam all such
thresholds are equal."""
PILOT = 100
"""Offset of the pilot's seeds, so that the claims use none of them."""
TUNED = {
    "adamw": (GRIDS["beta2"]["0.999"], 0.005),
    "stable_999": (GRIDS["stable"]["0.999"], 0.005),
    "clip": (GRIDS["clip"]["0.0001"], 0.005),
    "beta2": (GRIDS["beta2"]["0.9"], 0.01),
    "stable": (GRIDS["stable"]["0.8"], 0.005),
}
"""Arms of the claims with the learning rates that :func:`best` chooses from the pilot: from 5 for the first two arms,
and together with the cure's setting from 5 x 7 = 35 pairs for the others. A test compares them with the stored
pilot."""
SWEEP = {
    **{f"beta2_{name}": Arm("adamw", beta2=beta2) for name, beta2 in (("9", 0.9), ("95", 0.95), ("99", 0.99))},
    "adamw": Arm("adamw"),
    "clip": TUNED["clip"][0],
    "stable_adamw": Arm("stable_adamw"),
}
"""Arms of the runs with several jumps."""

CHANGE, STEPS, BEFORE = 150, 230, 0.001
"""The run with one jump: step of the jump, number of steps, and factor before the jump; the factor after it is 1."""
AFTER = 29
"""Number of steps after a jump in which the peak of the loss is searched."""

JUMPS, JUMP, GAP = 5, 30.0, 160
"""The runs with several jumps: number of jumps, ratio of each, and mean gap; gaps are 0.5 to 1.5 times ``GAP`` steps
long. After the last jump the factor is 1."""
LONG = int(1.5 * GAP * JUMPS) + 100
LONG_LR = 0.01
DEVIATIONS = 6.0
"""Standard deviations that make a loss spike. The default, 3.2, is too low here: the mean loss of only 64 fresh
examples varies by as much without any jump."""


@dataclass(frozen=True)
class Series:
    """One value per step."""

    losses: list[float]
    """Losses before the step, without the factor, on examples that are new to the network."""
    rms: list[float]
    """RMS of the first layer's weight, where g is the gradient of this step and u already includes it."""


def measure(seed: int) -> dict[str, Any]:
    """All metrics of one seed: ``one_jump`` by tuned arm, ``several_jumps`` by arm of the sweep."""
    torch.set_num_threads(1)
    one = {name: one_jump(arm, rate, seed) for name, (arm, rate) in TUNED.items()}
    return {"one_jump": one, "several_jumps": {arm: several_jumps(SWEEP[arm], seed) for arm in SWEEP}}


def pilot(seed: int) -> dict[str, Any]:
    """The peak loss after one jump with seed ``PILOT + seed``, by cure, its setting (``knob``) and learning rate."""
    torch.set_num_threads(1)

    def peaks(arm: Arm) -> dict[str, float]:
        return {f"{rate:g}": one_jump(arm, rate, PILOT + seed)["peak"] for rate in RATES}

    return {cure: {knob: peaks(arm) for knob, arm in grid.items()} for cure, grid in GRIDS.items()}


def best(pilots: Sequence[Mapping[str, Any]], cure: str, knobs: Collection[str] | None = None) -> tuple[str, str]:
    """The setting (``knob``) and learning rate of a cure with the lowest peak, averaged over the pilot's seeds.

    ``pilots``: the result of :func:`pilot` for each seed. ``knobs``: the settings to choose from; ``None``: all.
    """
    settings = [(knob, f"{rate:g}") for knob in GRIDS[cure] if knobs is None or knob in knobs for rate in RATES]
    return min(settings, key=lambda setting: _mean([found[cure][setting[0]][setting[1]] for found in pilots]))


def fingerprint() -> dict[str, Any]:
    """Three losses after an early jump, and AdamW's RMS there, which change if the numerics change."""
    stable, plain = (train(SWEEP[arm], 0.01, [BEFORE] * 5 + [1.0] * 4, 0) for arm in ("stable_adamw", "adamw"))
    return {"losses": stable.losses[-3:], "rms": plain.rms[-1]}


def one_jump(arm: Arm, lr: float, seed: int) -> dict[str, float]:
    """Trains through one jump and summarises the losses.

    ``before``: mean loss of the 30 steps before the jump. ``peak``: largest loss of the ``AFTER`` steps after the first
    step with the new factor. ``end``: mean loss of the last 20 steps. ``rms``: largest RMS from the jump on.
    """
    series = train(arm, lr, [BEFORE] * CHANGE + [1.0] * (STEPS - CHANGE), seed)
    return {
        "before": _mean(series.losses[CHANGE - 30 : CHANGE]),
        "peak": max(series.losses[CHANGE + 1 : CHANGE + 1 + AFTER]),
        "end": _mean(series.losses[-20:]),
        "rms": max(series.rms[CHANGE:]),
    }


def several_jumps(arm: Arm, seed: int) -> dict[str, float]:
    """Trains through several jumps, and counts spikes and the loss spikes that come 1 to 8 steps after an RMS spike.

    ``spikes``, ``rms_spikes``, ``followed``: numbers of loss spikes, of RMS spikes, and of loss spikes that follow one.
    ``fraction`` (0 if there are no loss spikes), ``chance`` and ``p_value`` are those of :func:`spikes.followed`.
    ``peak``: largest loss after the first jump. ``end``: mean loss of the last 20 steps.

    The design was fixed with AdamW on seed 100, before any other arm ran. Tasks without a factor had no loss spike that
    followed an RMS spike: digits, in one batch and in mini-batches; this function; inputs whose scale is a random walk;
    rare tokens; addition modulo 23. Neither had a factor that is a random walk, at two speeds, or switches up and down:
    u remembers a thousand steps, so after the first rise it is large enough for the next. So here the factor only
    rises. Jumps by 10 gave spikes too, but without a lag: AdamW's RMS reached 2.3 no earlier than the loss rose. Jumps
    by 30 give a lag of one or two steps. Learning rates of 0.01 and 0.02 gave equally many spikes.
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
    """The steps at which the factor jumps, in order."""
    generator = randomness.generator(seed, 0, "jumps")
    return torch.randint(GAP // 2, GAP * 3 // 2 + 1, (JUMPS,), generator=generator).cumsum(0).tolist()


def train(arm: Arm, lr: float, scales: Sequence[float], seed: int) -> Series:
    """Trains for ``len(scales)`` steps, with the loss of step t multiplied by ``scales[t]``.

    All arms of one seed see the same examples. The network has layers of 32-64-64-1 units and GELU. The target is
    tanh(3 x.w) with Gaussian x and |w| = 1.
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
    """StableAdamW's RMS of the last step, for AdamW too: sqrt(mean(g^2 / max(u, eps^2))) with bias-corrected u."""
    if isinstance(optimizer, StableAdamW):
        return optimizer.rms()[weight]
    state, group = optimizer.state[weight], optimizer.param_groups[0]
    second = state["exp_avg_sq"] / (1 - group["betas"][1] ** state["step"])
    return (weight.grad.square() / second.clamp_min(group["eps"] ** 2)).mean().sqrt()


def _network(seed: int) -> nn.Sequential:
    """The network, with torch's default initial weights drawn from a generator of our own."""
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
