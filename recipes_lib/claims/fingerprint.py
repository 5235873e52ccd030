# SPDX-License-Identifier: Apache-2.0
"""Are stored metrics still what this code would give? Three training steps and one probe tell within seconds.

A text hash of the library would cry wolf at every comment. A fingerprint is behaviour: the losses of the first three
steps and a probe's accuracy after them. Where they moved, so did the numerics, and all must be run again.
"""

import importlib
import json
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from recipes_lib import recipes
from recipes_lib.claim import Arm, Chapter
from recipes_lib.config import override
from recipes_lib.errors import Interrupted
from recipes_lib.pretraining.recipe import Job

STEPS = 3
TOLERANCE = 1e-3
"""Largest relative difference of a loss. Between the processor that stored them and another, under the same torch, losses
of these three steps differed by up to 1e-4 in float32, where AdamW's first steps follow the sign of gradients however small they are, by up
to 3.5e-4 for the CLIPs of ImageNet-X and by up to 8e-4 with 8-bit layers, where a last bit decides on an integer."""
ABSOLUTE = 3e-4
"""Differences below this do not count: PAWS's losses with five labels are tenths to hundredths, and differed by 2.5e-4."""
PROBE_TOLERANCE = 0.03
"""Largest difference of the probe's accuracy; between the two processors it was up to .026 of 500 images."""
_SHORT = {
    "train.steps": STEPS,
    "train.checkpoint_every": STEPS,
    "train.tensorboard": False,
    "eval.probes": ["knn"],
    "eval.baselines": "none",
}

Fingerprint = Mapping[str, float | Sequence[float]]
"""Quantities by name: a series such as ``losses`` as a list, what is judged once, such as an accuracy, as a number.
That of a training arm is ``{"losses": [a, b, c], "knn": accuracy}``."""


def fingerprint(arm: Arm) -> Fingerprint:
    """Runs ``arm`` for three steps in a folder of its own and probes the result; a job says itself what is short."""
    recipe = recipes.named(arm.recipe)
    if isinstance(recipe, Job):
        return recipe.fingerprint(override(recipe.presets[arm.preset], arm.changes))
    config = override(recipe.presets[arm.preset], {**arm.changes, **_SHORT})
    config.validate()
    with tempfile.TemporaryDirectory() as place:
        try:
            result = recipe.run(config, Path(place) / "run")
        except Interrupted:  # its advice names a folder that is gone
            raise Interrupted("Stopped while a fingerprint was taken. Nothing was changed: start again.") from None
        lines = (result.folder / "metrics.jsonl").read_text().splitlines()
        return {"losses": [json.loads(line)["loss"] for line in lines], "knn": result.report["scores"]["knn"]["method"]}


def takers(chapter: Chapter) -> dict[str, Callable[[], Fingerprint]]:
    """What takes the fingerprint of each arm and measurement that has one, by its name; nothing is run yet."""

    def taker(of: str | Arm) -> Callable[[], Fingerprint]:
        return (lambda: fingerprint(of)) if isinstance(of, Arm) else function(of)

    marked = {name: measurement.fingerprint for name, measurement in chapter.measurements.items()}
    return {name: taker(of) for name, of in {**chapter.arms, **marked}.items() if of is not None}


def function(name: str) -> Callable[..., Any]:
    """The function that ``"module:function"`` names."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def compare(stored: Fingerprint, fresh: Fingerprint) -> list[str]:
    """A line for each quantity of ``fresh`` that differs from ``stored``; empty where what was stored still stands.

    The values of a series (losses, error ratios, variances) may differ by ``TOLERANCE`` of their size, or by
    ``ABSOLUTE``; a single number (an accuracy, a score) by ``PROBE_TOLERANCE``.
    """
    lines = [f"{name} is stored and was not made" for name in stored if name not in fresh]
    lines += [f"{name} was made and is not stored" for name in fresh if name not in stored]
    for name in (name for name in stored if name in fresh):
        before, now = stored[name], fresh[name]
        if isinstance(before, Sequence) and isinstance(now, Sequence):
            lines += _compare_series(name, before, now)
        elif not abs(before - now) <= PROBE_TOLERANCE:
            lines.append(f"{name} was {before:.4g} and is {now:.4g}")
    return lines


def _compare_series(name: str, stored: Sequence[float], fresh: Sequence[float]) -> list[str]:
    lines = [] if len(stored) == len(fresh) else [f"{len(stored)} {name} are stored, {len(fresh)} were made"]
    return lines + [
        f"{name}[{place}] was {before:.6g} and is {now:.6g}"
        for place, (before, now) in enumerate(zip(stored, fresh, strict=False))
        if not math.isclose(before, now, rel_tol=TOLERANCE, abs_tol=ABSOLUTE)
    ]
