# SPDX-License-Identifier: Apache-2.0
import shlex

import pytest

from recipes_lib.cli import flags
from recipes_lib.config import override
from recipes_lib.errors import ConfigError, Interrupted
from recipes_lib.recipes.families import recipe as families
from recipes_lib.recipes.knobs import recipe as knobs
from recipes_lib.recipes.knobs.claims import BATCH, CHAPTER, SIZES, STEPS

TINY = {
    "train.steps": 2,
    "train.batch_size": 32,
    "data.train_size": 128,
    "data.test_size": 64,
    "eval.baselines": "none",
}


def tiny(**changes):
    return override(knobs.PRESETS["toy"], TINY | changes)


def test_a_run_trains_one_method_and_reports_the_accuracy_at_each_of_its_layers(tmp_path):
    result = knobs.RECIPE.run(tiny(), tmp_path / "run")
    report = result.report
    assert list(report["diagnostics"]) == ["features", "hidden_1", "embedding"]
    assert report["scores"]["knn"]["method"] == report["diagnostics"]["features"]
    assert (report["recipe"], report["steps"], report["seed"]) == ("knobs", 2, 0)
    assert (result.folder / "trained" / "model.safetensors").is_file()


def test_a_run_that_was_stopped_after_its_training_does_not_train_again(tmp_path, monkeypatch):
    def stop(path):
        raise Interrupted("stopped")

    accuracies = knobs.study.accuracies
    monkeypatch.setattr(knobs.study, "accuracies", stop)
    with pytest.raises(Interrupted):
        knobs.RECIPE.run(tiny(), tmp_path / "run")
    monkeypatch.setattr(knobs.study, "accuracies", accuracies)
    trained = (tmp_path / "run" / "trained" / "metrics.jsonl").stat().st_mtime_ns
    assert list(knobs.RECIPE.run(tiny(), tmp_path / "run").report["diagnostics"]) == [
        "features",
        "hidden_1",
        "embedding",
    ]
    assert (tmp_path / "run" / "trained" / "metrics.jsonl").stat().st_mtime_ns == trained


def test_a_method_without_a_projector_is_refused_before_there_is_a_folder(tmp_path):
    with pytest.raises(ConfigError, match="has no projector to probe"):
        knobs.RECIPE.run(override(families.PRESETS["mae_toy"], {"train.steps": 2}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_fingerprint_is_the_same_twice_and_another_rate_has_another():
    assert knobs.fingerprint(tiny()) == knobs.fingerprint(tiny())
    assert knobs.fingerprint(tiny()) != knobs.fingerprint(tiny(**{"optim.lr": 0.5}))


@pytest.mark.parametrize("name", CHAPTER.arms)
def test_an_arm_is_a_config_that_the_families_allow(name):
    arm = CHAPTER.arms[name]
    assert arm.recipe == "families"
    override(families.PRESETS[arm.preset], arm.changes).validate()


def test_arms_of_other_batch_sizes_see_as_many_images_and_two_rules_meet_at_the_size_in_use():
    changes = {name: arm.changes for name, arm in CHAPTER.arms.items() if name.startswith("batch_")}
    assert {c["train.steps"] * c["train.batch_size"] for c in changes.values()} == {STEPS * BATCH}
    for size in SIZES:
        linear, root = (changes[f"batch_{size}_{rule}"]["optim.lr"] for rule in ("linear", "root"))
        assert linear / 3e-3 == pytest.approx((root / 3e-3) ** 2) == pytest.approx(size / BATCH)


def test_every_full_scale_command_is_one_that_can_start():
    for claim in CHAPTER.claims:
        for command in filter(None, (claim.full_scale, claim.full_scale_control)):
            words = shlex.split(command)
            name, *given = words[words.index("run") + 1 :]
            own, rest = flags.split(given)
            assert name == "families"
            flags.parse(families.PRESETS[own["preset"]], rest, prog="recipes run", about="").validate()
