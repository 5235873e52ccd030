# SPDX-License-Identifier: Apache-2.0
"""Is a stored figure still what this code would give? Three training steps and one probe tell within seconds.

A text hash of the library would cry wolf at every comment. A fingerprint is behaviour: the losses of the first three
steps and a probe's figure after them. Where they moved, so did the numerics, and the figures must be cooked again.
"""

import json
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recipes_lib import recipes
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

Fingerprint = dict[str, Any]
"""``{"losses": [a, b, c], "knn": accuracy}``."""


def fingerprint(recipe: str, preset: str, overrides: Mapping[str, Any]) -> Fingerprint:
    """Trains ``preset`` with ``overrides`` for three steps in a folder of its own and probes the result."""
    found = recipes.named(recipe)
    if isinstance(found, Job):  # one that does not train has its own idea of a short run
        return found.fingerprint(override(found.presets[preset], overrides))
    config = override(found.presets[preset], {**overrides, **_SHORT})
    config.validate()
    with tempfile.TemporaryDirectory() as place:
        try:
            result = found.run(config, Path(place) / "run")
        except Interrupted:  # its advice names a folder that is gone
            raise Interrupted("Stopped while a fingerprint was taken. Nothing was changed: start again.") from None
        lines = (result.folder / "metrics.jsonl").read_text().splitlines()
        return {"losses": [json.loads(line)["loss"] for line in lines], "knn": result.report["scores"]["knn"]["method"]}


def compare(stored: Mapping[str, Any], fresh: Mapping[str, Any]) -> list[str]:
    """A line for each part of ``fresh`` that differs from ``stored``; empty where the stored figures still stand."""
    lines = []
    if len(stored["losses"]) != len(fresh["losses"]):
        lines.append(f"{len(stored['losses'])} losses are stored, {len(fresh['losses'])} were made")
    for step, (before, now) in enumerate(zip(stored["losses"], fresh["losses"], strict=False)):
        if not math.isclose(before, now, rel_tol=TOLERANCE, abs_tol=ABSOLUTE):
            lines.append(f"the loss of step {step} was {before:.6g} and is {now:.6g}")
    if not abs(stored["knn"] - fresh["knn"]) <= PROBE_TOLERANCE:
        lines.append(f"the k-NN score after {STEPS} steps was {stored['knn']:.4g} and is {fresh['knn']:.4g}")
    return lines
