# SPDX-License-Identifier: Apache-2.0
"""Loss spikes, spikes of an optimiser's RMS, and whether the first follow the second more often than by chance.

Pure functions of series with one value per step. Their constants are arguments: what counts as a spike is a convention.

Source: the question is that of Wortsman et al., "Stable and low-precision training for large-scale vision-language
models", NeurIPS 2023: loss spikes come 1-8 steps after the second moment underestimates the squared gradients.
Differs: the running mean is here one of ``history`` steps; chance rate and p-value are ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Following:
    """How often loss spikes follow RMS spikes."""

    spikes: int
    """Loss spikes looked at."""
    fraction: float
    """Share of the loss spikes with an RMS spike within the lag before them; NaN where there are none."""
    chance: float
    """Share of all steps with an RMS spike within the lag before them: what ``fraction`` is by chance."""
    p_value: float
    """Share of the circular shifts of the loss spikes, no shift included, that follow at least as often."""


def loss_spikes(
    losses: Sequence[float],
    *,
    start: int = 1000,
    deviations: float = 3.2,
    window: int = 10,
    at_least: int = 2,
    history: int = 100,
) -> list[int]:
    """First steps of the loss spikes.

    A step deviates where its loss is more than ``deviations`` standard deviations above the mean of the ``history``
    steps before it. Deviations up to ``window`` steps after the one before belong to one spike, which needs
    ``at_least`` of them. Steps before ``start``, and those with less history, are not judged.

    Raises: ``ValueError`` for losses that are not finite: cut the series where training diverged.
    """
    values = _series("losses", losses)
    if history < 2:
        raise ValueError(f"history = {history}: a standard deviation needs at least 2 steps")
    deviating = []
    for step in range(max(start, history), len(values)):
        below = values[step] - values[step - history : step]  # from the step itself: a constant series has exact zeros
        if below.mean() > deviations * below.std():
            deviating.append(step)
    return [spike[0] for spike in _merged(deviating, window) if len(spike) >= at_least]


def rms_spikes(rms: Sequence[float], *, threshold: float = 2.3, window: int = 10) -> list[int]:
    """First steps of the spikes of one tensor's RMS: at ``threshold`` or above, merged as in :func:`loss_spikes`.

    Raises: ``ValueError`` for values that are not finite.
    """
    return [spike[0] for spike in _merged(np.flatnonzero(_series("rms", rms) >= threshold).tolist(), window)]


def followed(
    loss_spikes: Sequence[int], rms_spikes: Sequence[int], steps: int, *, lag: tuple[int, int] = (1, 8), start: int = 0
) -> Following:
    """How often a loss spike comes ``lag[0]`` to ``lag[1]`` steps after an RMS spike.

    All is counted over the steps from ``start``, which is that of :func:`loss_spikes`, to ``steps``. The p-value shifts
    the loss spikes together, around those steps, by every number of steps: what comes in bursts stays in bursts.

    Raises: ``ValueError`` for a lag that is none, or a loss spike outside those steps.
    """
    low, high = lag
    if not 0 <= low <= high:
        raise ValueError(f"lag = {lag}: the first and last step after an RMS spike, 0 <= first <= last")
    outside = [step for step in loss_spikes if not start <= step < steps]
    if outside:
        raise ValueError(f"loss spike at step {outside[0]}, outside the steps from {start} to {steps}")
    after = np.zeros(steps + high + 1, dtype=bool)
    for step in rms_spikes:
        after[step + low : step + high + 1] = True
    after = after[start:steps]
    hits = np.zeros(len(after), dtype=np.int64)  # by shift
    for step in loss_spikes:
        hits += np.roll(after, start - step)
    if not len(loss_spikes):
        return Following(spikes=0, fraction=float("nan"), chance=float(after.mean()), p_value=1.0)
    return Following(
        spikes=len(loss_spikes),
        fraction=float(hits[0] / len(loss_spikes)),
        chance=float(after.mean()),
        p_value=float((hits >= hits[0]).mean()),
    )


def _series(name: str, values: Sequence[float]) -> np.ndarray:
    series = np.asarray(values, dtype=np.float64)
    bad = np.flatnonzero(~np.isfinite(series))
    if len(bad):
        raise ValueError(f"{name} has {series[bad[0]]} at step {bad[0]}: cut the series before it")
    return series


def _merged(steps: list[int], window: int) -> list[list[int]]:
    """Steps in order, in runs in which each is at most ``window`` after the one before."""
    runs: list[list[int]] = []
    for step in steps:
        if runs and step - runs[-1][-1] <= window:
            runs[-1].append(step)
        else:
            runs.append([step])
    return runs
