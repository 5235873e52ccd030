# SPDX-License-Identifier: Apache-2.0
"""Finds spikes of the loss and of an optimiser's RMS, and tests whether the first follow the second beyond chance.

All functions are pure and take series with one value per step. Thresholds are arguments, because what counts as a spike
is a convention.

Source: the question is that of Wortsman et al., "Stable and low-precision training for large-scale vision-language
models", NeurIPS 2023: loss spikes come 1-8 steps after the second moment underestimates the squared gradients.
Differs: the running mean is over ``history`` steps; the chance rate and the p-value are our additions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Following:
    """How often loss spikes follow RMS spikes."""

    spikes: int
    """Number of loss spikes."""
    fraction: float
    """Share of the loss spikes with an RMS spike within the lag before them; NaN if there are no loss spikes."""
    chance: float
    """Share of all steps with an RMS spike within the lag before them: the expected ``fraction`` of random steps."""
    p_value: float
    """Share of all circular shifts of the loss spikes, shift 0 included, whose ``fraction`` is at least as large."""


def loss_spikes(
    losses: Sequence[float],
    *,
    start: int = 1000,
    deviations: float = 3.2,
    window: int = 10,
    at_least: int = 2,
    history: int = 100,
) -> list[int]:
    """The first step of each loss spike.

    A step deviates if its loss is more than ``deviations`` standard deviations above the mean of the ``history`` steps
    before it. Deviating steps at most ``window`` steps apart belong to one spike, which needs ``at_least`` of them.
    Steps before ``start``, and those with fewer than ``history`` steps before them, are not judged.

    Raises: ``ValueError`` for losses that are not finite; cut the series where training diverged.
    """
    values = _series("losses", losses)
    if history < 2:
        raise ValueError(f"history = {history}: a standard deviation needs at least 2 steps")
    deviating = []
    for step in range(max(start, history), len(values)):
        below = values[step] - values[step - history : step]  # differences: exactly 0 for a constant series
        if below.mean() > deviations * below.std():
            deviating.append(step)
    return [spike[0] for spike in _merged(deviating, window) if len(spike) >= at_least]


def rms_spikes(rms: Sequence[float], *, threshold: float = 2.3, window: int = 10) -> list[int]:
    """The first step of each spike of one tensor's RMS: steps at or above ``threshold``, as in :func:`loss_spikes`.

    Raises: ``ValueError`` for values that are not finite.
    """
    return [spike[0] for spike in _merged(np.flatnonzero(_series("rms", rms) >= threshold).tolist(), window)]


def followed(
    loss_spikes: Sequence[int], rms_spikes: Sequence[int], steps: int, *, lag: tuple[int, int] = (1, 8), start: int = 0
) -> Following:
    """Counts how often a loss spike comes ``lag[0]`` to ``lag[1]`` steps after an RMS spike.

    Only steps from ``start`` (that of :func:`loss_spikes`) to ``steps`` count. For the p-value, all loss spikes are
    shifted together by every number of steps, around the end of this range, so spikes that come in bursts stay
    together.

    Raises: ``ValueError`` for a lag that is not 0 <= first <= last, or a loss spike outside the range.
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
    hits = np.zeros(len(after), dtype=np.int64)  # hits[s]: loss spikes that follow an RMS spike after a shift by s
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
    """Groups sorted ``steps`` into runs in which each step is at most ``window`` after the one before."""
    runs: list[list[int]] = []
    for step in steps:
        if runs and step - runs[-1][-1] <= window:
            runs[-1].append(step)
        else:
            runs.append([step])
    return runs
