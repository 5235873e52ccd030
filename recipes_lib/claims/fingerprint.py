# SPDX-License-Identifier: Apache-2.0
"""Fingerprints: checks within seconds whether stored metrics are still what this code would give.

A fingerprint is the losses of the first three training steps and a probe's accuracy after them. If these have changed,
the numerics have changed, and all runs must be repeated. A hash of the source text would change with every comment.
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
"""Largest allowed relative difference of a loss. Between two processors with the same torch, losses of these three
steps differed by up to 1e-4 in float32, because AdamW's first steps follow the sign of even the smallest gradients; by
up to 3.5e-4 for the CLIP models of ImageNet-X; and by up to 8e-4 with 8-bit layers, where a last bit decides on an
integer."""
ABSOLUTE = 3e-4
"""Largest allowed absolute difference of a loss, for small losses: PAWS's with five labels are 0.01 to 0.1, and
differed by 2.5e-4 between the processors."""
PROBE_TOLERANCE = 0.03
"""Largest allowed difference of a probe's accuracy; on 500 images it was up to 0.026 between the two processors."""
_SHORT = {
    "train.steps": STEPS,
    "train.checkpoint_every": STEPS,
    "train.tensorboard": False,
    "eval.probes": ["knn"],
    "eval.baselines": "none",
}

Fingerprint = Mapping[str, float | Sequence[float]]
"""Quantities by name: a list for a series such as ``losses``, a number for a single value such as an accuracy.
The fingerprint of a training arm is ``{"losses": [a, b, c], "knn": accuracy}``."""


def fingerprint(arm: Arm) -> Fingerprint:
    """Trains ``arm`` for three steps in a temporary folder and probes the result; a job has its own ``fingerprint``."""
    recipe = recipes.named(arm.recipe)
    if isinstance(recipe, Job):
        return recipe.fingerprint(override(recipe.presets[arm.preset], arm.changes))
    config = override(recipe.presets[arm.preset], {**arm.changes, **_SHORT})
    config.validate()
    with tempfile.TemporaryDirectory() as place:
        try:
            result = recipe.run(config, Path(place) / "run")
        except Interrupted:  # the original error advises to resume in the temporary folder, which is gone
            raise Interrupted("Stopped while a fingerprint was taken. Nothing was changed: start again.") from None
        lines = (result.folder / "metrics.jsonl").read_text().splitlines()
        return {"losses": [json.loads(line)["loss"] for line in lines], "knn": result.report["scores"]["knn"]["method"]}


def takers(chapter: Chapter) -> dict[str, Callable[[], Fingerprint]]:
    """Functions that compute the fingerprints of the arms and measurements, by name. None of them is called here."""

    def taker(of: str | Arm) -> Callable[[], Fingerprint]:
        return (lambda: fingerprint(of)) if isinstance(of, Arm) else function(of)

    marked = {name: measurement.fingerprint for name, measurement in chapter.measurements.items()}
    return {name: taker(of) for name, of in {**chapter.arms, **marked}.items() if of is not None}


def function(name: str) -> Callable[..., Any]:
    """Imports the function that ``"module:function"`` names."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def compare(stored: Fingerprint, fresh: Fingerprint) -> list[str]:
    """One line per quantity of ``fresh`` that differs from ``stored``; empty if the stored fingerprint is still valid.

    The values of a series (losses, error ratios, variances) may differ by ``TOLERANCE`` of their size, or by
    ``ABSOLUTE``; a single number (an accuracy, a score) may differ by ``PROBE_TOLERANCE``.
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
