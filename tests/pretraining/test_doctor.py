# SPDX-License-Identifier: Apache-2.0
"""A run folder is looked at; the healthy one gives no alarm, and each fault of its files is found.

Faults that need a training of their own are those of the troubleshooting chapter, and are found in its tests.
"""

import json
import re
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from recipes_lib import recipes
from recipes_lib.config import override
from recipes_lib.data.images import ImageFiles, ImageSet
from recipes_lib.data.load import Splits
from recipes_lib.errors import RunError
from recipes_lib.pretraining import doctor
from recipes_lib.recipes.families import recipe as families
from recipes_lib.recipes.troubleshooting import pathologies
from recipes_lib.training import folder as run_folder

SMALL = {**pathologies.SMALL, "eval.watch": []}


def trained(where: Path, preset: str, **changes: object) -> Path:
    """A run of a preset of the families on small digits, with ``group__field`` set to other values."""
    changed = {name.replace("__", "."): value for name, value in changes.items()}
    return families.RECIPE.run(override(families.PRESETS[preset], SMALL | changed), where / "run").folder


def found(run: Path) -> dict[str, str]:
    return {finding.check: finding.status for finding in doctor.diagnose(families.RECIPE, run)}


def alarms(run: Path) -> list[str]:
    return [check for check, status in found(run).items() if status == "found"]


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("healthy"), "byol_toy")


@pytest.fixture
def copy(healthy: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(healthy, tmp_path / "copy"))


def test_a_healthy_run_gives_no_alarm_every_check_is_made_and_nothing_is_written(healthy):
    before = {path: path.stat().st_mtime_ns for path in healthy.rglob("*")}
    began = time.process_time()
    findings = doctor.diagnose(families.RECIPE, healthy)
    assert time.process_time() - began < 20
    assert [finding.line for finding in findings if finding.status != "healthy"] == []
    assert [finding.check for finding in findings] == [*doctor.FROM_LOG, *doctor.FROM_WEIGHTS]
    assert {path: path.stat().st_mtime_ns for path in healthy.rglob("*")} == before


def test_a_teacher_too_slow_for_the_run_is_found_and_one_that_copies_the_student(tmp_path, copy):
    config = (copy / "config.yaml").read_text()
    for ema, told in (("0.996", ["teacher"]), ("0.0", ["teacher"]), ("0.9", [])):
        (copy / "config.yaml").write_text(re.sub(r"  ema: [\d.]+\n", f"  ema: {ema}\n", config))
        assert alarms(copy) == told


def test_a_teacher_that_stands_still_is_found(copy):
    weights = load_file(copy / "model.safetensors")
    fresh = families.build(families.PRESETS["byol_toy"], 1).state_dict()
    assert set(fresh) == set(weights)
    config, _ = doctor.engine.reopen(families.RECIPE, copy)
    start = doctor.engine.build(families.RECIPE, config, 1).state_dict()
    save_file(weights | {k: v for k, v in start.items() if k.startswith("teacher.")}, copy / "model.safetensors")
    assert "teacher" in alarms(copy)


def test_a_run_that_ended_in_its_warm_up_or_learned_nothing_is_found(tmp_path):
    run = trained(tmp_path, "simclr_toy", train__steps=20, optim__warmup_steps=30)
    assert alarms(run) == ["learning_rate"]
    assert [found(run)[check] for check in ("full_collapse", "lying_loss")] == ["unknown"] * 2  # too short to tell


def test_weights_that_are_nan_are_found(copy):
    weights = load_file(copy / "model.safetensors")
    weights["predictor.layers.0.weight" if "predictor.layers.0.weight" in weights else next(iter(weights))] *= torch.nan
    save_file(weights, copy / "model.safetensors")
    assert alarms(copy) == ["divergence"]
    assert found(copy)["full_collapse"] == "unknown"


def test_a_spike_in_the_log_is_found(copy):
    lines = (copy / "metrics.jsonl").read_text().splitlines()
    row = json.loads(lines[120])
    lines[120] = json.dumps(row | {"grad_norm": 100 * row["grad_norm"]})
    (copy / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 15']) + "\n")  # and a line was cut off
    assert alarms(copy) == ["gradient_spikes"]


def test_waiting_for_images_is_found(copy):
    (copy / "timing.jsonl").write_text('{"step": 1, "steps": 2, "seconds": 4.0, "data_seconds": 3.0}\n')
    assert alarms(copy) == ["slow_input"]
    (copy / "timing.jsonl").unlink()
    assert found(copy)["slow_input"] == "unknown"


def test_test_images_that_were_trained_on_are_found(tmp_path):
    draw = np.random.default_rng(0)
    train, labels = draw.integers(0, 256, (80, 16, 16, 3), dtype=np.uint8), np.arange(80) % 4
    test = np.concatenate([train[:5], draw.integers(0, 256, (35, 16, 16, 3), dtype=np.uint8)])
    np.savez(tmp_path / "leaky.npz", x_train=train, y_train=labels, x_test=test, y_test=labels[:40])
    how = {"data__name": "npz", "data__root": tmp_path / "leaky.npz", "train__batch_size": 16}
    run = trained(tmp_path, "simclr_toy", train__steps=3, optim__warmup_steps=1, **how)
    assert alarms(run) == ["leaky_labels"]
    (tmp_path / "leaky.npz").unlink()
    findings = {finding.check: finding for finding in doctor.diagnose(families.RECIPE, run)}
    assert findings["leaky_labels"].status == findings["lying_loss"].status == "unknown"
    assert "the images cannot be read" in findings["leaky_labels"].text


def test_images_are_compared_in_memory_and_on_disk_and_those_without_labels_leak_none(tmp_path):
    pixels = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = ImageSet(pixels, torch.arange(6) % 2, ("a", "b"))
    apart, same = images.select(torch.arange(4)), images.select(torch.tensor([1, 5]))
    assert doctor._leak(Splits(apart, same)).number == 0.5
    assert doctor._leak(Splits(apart, replace(same, labels=None))).status == "unknown"
    for number, content in enumerate([b"first", b"other", b"third", b"other"]):
        (tmp_path / f"{number}.png").write_bytes(content)
    files = [ImageFiles(tmp_path, np.array(names), torch.zeros(2, dtype=torch.long), ("a",)) for names in (
        ["0.png", "1.png"], ["2.png", "3.png"])]  # fmt: skip
    assert doctor._leak(Splits(*files)).number == 0.5
    assert doctor._leak(Splits(files[0], images)).status == "unknown"


def test_an_unfinished_run_is_looked_at_with_its_newest_checkpoint(copy):
    for name in ("model.safetensors", "report.json"):
        (copy / name).unlink()
    (copy / "state.json").write_text('{"status": "interrupted", "step": 150}\n')
    assert "found" not in found(copy).values()
    shutil.rmtree(copy / "checkpoints")
    (copy / "state.json").write_text('{"status": "interrupted", "step": 0}\n')
    without = found(copy)
    assert {without[check] for check in doctor.FROM_WEIGHTS} == {"unknown"}
    assert {without[check] for check in doctor.FROM_LOG} == {"healthy"}


def test_a_job_is_told_what_can_be_checked(tmp_path):
    job = recipes.named("sieve")
    run = run_folder.RunFolder.create_or_continue(tmp_path / "run", "sieve", job.presets["toy"])
    run.set_state("failed", 0)
    run.unlock()
    findings = doctor.diagnose(job, tmp_path / "run")
    assert [finding.check for finding in findings] == [*doctor.FROM_LOG, *doctor.FROM_WEIGHTS]
    assert [finding.status for finding in findings] == ["found", *["unknown"] * 9]
    assert "recipe sieve trains no backbone of its own" in findings[1].text


def test_what_is_no_run_folder_is_refused(tmp_path):
    with pytest.raises(RunError, match="is not a run folder"):
        doctor.diagnose(families.RECIPE, tmp_path)
