# SPDX-License-Identifier: Apache-2.0
"""Learning rate, weight decay and EMA momentum as pure functions of the step.

The MSN code lays its schedules out over ``stretch`` = 1.25 times the run, so that they stop before their end values;
1 gives the plain schedules of most papers.
"""

import math
from collections.abc import Sequence


def warmup_cosine(
    step: float, *, start: float, peak: float, final: float, warmup_steps: float, total_steps: int, stretch: float = 1.0
) -> float:
    """Linear from ``start`` to ``peak`` over ``warmup_steps``, then half a cosine to ``final`` at ``stretch * total_steps``.

    Beyond its end it stays at ``final``.
    """
    if step < warmup_steps:
        return start + (peak - start) * step / warmup_steps
    return cosine(
        step - warmup_steps, start=peak, final=final, total_steps=stretch * total_steps - warmup_steps, stretch=1.0
    )


def warmup_drops(step: float, *, start: float, peak: float, warmup_steps: float, drops: Sequence[float]) -> float:
    """Linear from ``start`` to ``peak`` over ``warmup_steps``; then ``peak``, a tenth of it from the first of ``drops`` on,
    a hundredth from the second, and so on. ``drops`` are steps.
    """
    if step < warmup_steps:
        return start + (peak - start) * step / warmup_steps
    return peak * 0.1 ** sum(step >= drop for drop in drops)


def cosine(step: float, start: float, final: float, total_steps: float, *, stretch: float = 1.0) -> float:
    """Half a cosine from ``start`` at step 0 to ``final`` at ``stretch * total_steps``, where it stays."""
    return final + (start - final) / 2 * (1 + math.cos(math.pi * _progress(step, stretch * total_steps)))


def linear(step: float, start: float, final: float, total_steps: float, *, stretch: float = 1.0) -> float:
    """A straight line from ``start`` at step 0 to ``final`` at ``stretch * total_steps``, where it stays."""
    return start + (final - start) * _progress(step, stretch * total_steps)


def _progress(step: float, end: float) -> float:
    """Share of the way done, in [0, 1]; a way of no length (all of the run is warm-up) is done."""
    return min(step / end, 1.0) if end > 0 else 1.0
