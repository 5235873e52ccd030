# SPDX-License-Identifier: Apache-2.0
"""``recipes doctor`` raises no false alarm: a short healthy run of every recipe on the menu."""

from pathlib import Path

import pytest

from recipes_lib import recipes
from recipes_lib.config import override
from recipes_lib.pretraining import doctor
from recipes_lib.pretraining.recipe import Job
from recipes_lib.training.folder import RunFolder

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


def short_run(name: str, folder: Path) -> Path:
    """A short run of the recipe's toy; of a job, which trains no backbone, a folder that says it is done."""
    recipe = recipes.named(name)
    if not isinstance(recipe, Job):
        return recipe.run(override(recipe.presets["toy"], SHORT), folder).folder
    run = RunFolder.create_or_continue(folder, name, recipe.presets["toy"])
    run.set_state("done", 0)
    run.unlock()
    return folder


@pytest.mark.parametrize("name", recipes.MENU)
def test_a_short_healthy_run_gives_no_alarm(name: str, tmp_path: Path):
    findings = doctor.diagnose(recipes.named(name), short_run(name, tmp_path / "run"))
    assert [finding.line for finding in findings if finding.status == "found"] == []
    checked = {finding.check for finding in findings if finding.status == "healthy"}
    if isinstance(recipes.named(name), Job):
        assert checked == {"divergence"}
    else:
        assert {"divergence", "gradient_spikes", "learning_rate", "slow_input", "full_collapse"} <= checked
