# SPDX-License-Identifier: Apache-2.0
"""``recipes doctor`` raises no false alarm: a short healthy run of every recipe on the menu."""

from pathlib import Path

import pytest

from recipes_lib import recipes
from recipes_lib.config import override
from recipes_lib.pretraining import doctor

JOBS = ("sieve", "imagenet_x")
SHORT = {
    "data.train_size": 600,
    "data.test_size": 60,
    "train.batch_size": 32,
    "train.steps": 60,
    "train.checkpoint_every": 30,
    "optim.warmup_steps": 5,
    "eval.probes": [],
    "eval.baselines": "none",
}
"""Long enough for the checks of the features (50 steps), and past its warm-up."""
OWN = {
    "msn": {"train.batch_size": 64, "model.prototypes": 64},  # not more prototypes than images
    "pmsn": {"train.batch_size": 64, "model.prototypes": 64},
}


@pytest.mark.parametrize("name", [name for name in recipes.MENU if name not in JOBS])
def test_a_short_healthy_run_gives_no_alarm(name: str, tmp_path: Path):
    recipe = recipes.named(name)
    run = recipe.run(override(recipe.presets["toy"], SHORT | OWN.get(name, {})), tmp_path / "run").folder
    findings = doctor.diagnose(recipe, run)
    assert [finding.line for finding in findings if finding.status == "found"] == []
    checked = {finding.check for finding in findings if finding.status == "healthy"}
    assert {"divergence", "gradient_spikes", "learning_rate", "slow_input", "full_collapse"} <= checked
