# SPDX-License-Identifier: Apache-2.0
"""Schedules of learning rate, weight decay and EMA momentum, as pure functions of the step.

MSN's code plans its schedules for ``stretch`` = 1.25 times the length of the run, so the run stops before they reach
their final values. ``stretch`` = 1 gives the plain schedules of most papers.
"""

import math
from collections.abc import Sequence


def warmup_cosine(
    step: float, *, start: float, peak: float, final: float, warmup_steps: float, total_steps: int, stretch: float = 1.0
) -> float:
    """A linear rise from ``start`` to ``peak`` over ``warmup_steps``, then half a cosine period down to ``final``.

    It reaches ``final`` at step ``stretch * total_steps`` and stays there.
    """
    if step < warmup_steps:
        return start + (peak - start) * step / warmup_steps
    return cosine(
        step - warmup_steps, start=peak, final=final, total_steps=stretch * total_steps - warmup_steps, stretch=1.0
    )


def warmup_drops(step: float, *, start: float, peak: float, warmup_steps: float, drops: Sequence[float]) -> float:
    """A linear rise from ``start`` to ``peak`` over ``warmup_steps``, then ``peak`` divided by 10 at each of ``drops``.

    ``drops`` are step numbers: the value is ``peak / 10`` from the first on, ``peak / 100`` from the second on.
    """
    if step < warmup_steps:
        return start + (peak - start) * step / warmup_steps
    return peak * 0.1 ** sum(step >= drop for drop in drops)


def cosine(step: float, start: float, final: float, total_steps: float, *, stretch: float = 1.0) -> float:
    """Half a cosine period from ``start`` at step 0 to ``final`` at step ``stretch * total_steps``, where it stays."""
    return final + (start - final) / 2 * (1 + math.cos(math.pi * _progress(step, stretch * total_steps)))


def linear(step: float, start: float, final: float, total_steps: float, *, stretch: float = 1.0) -> float:
    """A straight line from ``start`` at step 0 to ``final`` at ``stretch * total_steps``, where it stays."""
    return start + (final - start) * _progress(step, stretch * total_steps)


def _progress(step: float, end: float) -> float:
    """The share of the schedule that is done at ``step``, in [0, 1]; 1 if ``end`` is 0 (the whole run is warm-up)."""
    return min(step / end, 1.0) if end > 0 else 1.0
