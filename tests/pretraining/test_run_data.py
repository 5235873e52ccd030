# SPDX-License-Identifier: Apache-2.0
"""A run knows the images and the classes that it learned from, and does not go on with others unasked."""

import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from recipes_lib.cli import main
from recipes_lib.config import override
from recipes_lib.errors import DataError, Interrupted, RunError
from recipes_lib.pretraining import engine, runs
from recipes_lib.recipes.local_sgd import recipe as local_sgd
from recipes_lib.training import log

ALL = slice(None)
CLASSES = {"above": (slice(0, 4), ALL), "below": (slice(4, 8), ALL), "left": (ALL, slice(0, 4))}
"""Which rows and columns of an image are light."""
CONFIG = override(
    local_sgd.PRESETS["toy"],
    {
        "data.name": "imagenet",
        "model.classes": 3,
        "sync.workers": 0,
        "sync.name": "ddp",
        "train.batch_size": 4,
        "train.steps": 6,
        "train.checkpoint_every": 2,
        "eval.baselines": "none",
    },
)


def draw(path: Path, light: tuple[slice, slice], number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 60, (8, 8, 3), dtype=np.uint8)
    pixels[light] += 180
    Image.fromarray(pixels).save(path)


@pytest.fixture
def tree(tmp_path) -> Path:
    """Eight training images and four test images of each of three classes."""
    for split, count in (("train", 8), ("val", 4)):
        for name, light in CLASSES.items():
            for number in range(count):
                draw(tmp_path / "images" / split / name / f"{number}.png", light, number)
    return tmp_path / "images"


def config_of(tree: Path, **changes: object) -> local_sgd.Config:
    return override(CONFIG, {"data.root": tree, **changes})


def stopped(config: local_sgd.Config, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trains into ``folder`` for three steps."""
    write = log.RunLog.step

    def step_then_ask(self: log.RunLog, number: int, metrics: dict) -> None:
        write(self, number, metrics)
        if number == 2:
            os.kill(os.getpid(), signal.SIGUSR2)  # submitit's

    with monkeypatch.context() as patch:
        patch.setattr(log.RunLog, "step", step_then_ask)
        with pytest.raises(Interrupted, match="after step 3 of 6"):
            local_sgd.RECIPE.run(config, folder)


def test_a_run_keeps_the_names_of_its_classes_and_the_number_of_its_images(tree, tmp_path):
    folder = local_sgd.RECIPE.run(config_of(tree), tmp_path / "run").folder
    kept = json.loads((folder / "data.json").read_text())
    assert kept["classes"] == ["above", "below", "left"]
    assert (kept["train"]["images"], kept["test"]["images"]) == (24, 12)


def test_classes_that_were_renamed_are_refused_by_name_and_never_scored_as_others(tree, tmp_path):
    folder = local_sgd.RECIPE.run(config_of(tree, **{"train.steps": 100}), tmp_path / "run").folder
    assert runs.evaluate(local_sgd.RECIPE, folder)["scores"]["accuracy"]["method"] == 1.0
    for split in ("train", "val"):
        (tree / split / "above").rename(tree / split / "z-above")
    with pytest.raises(
        DataError, match=r"classes that the run did not learn: 'z-above'\. It learned 'above', 'below', 'left'\."
    ):
        runs.evaluate(local_sgd.RECIPE, folder)


def test_columns_are_matched_by_the_names_of_the_classes(tree, tmp_path, capsys):
    folder = local_sgd.RECIPE.run(config_of(tree, **{"train.steps": 100}), tmp_path / "run").folder
    for split in ("train", "val"):
        shutil.rmtree(tree / split / "above")  # below and left, the run's 1 and 2, are 0 and 1 now
    assert runs.evaluate(local_sgd.RECIPE, folder)["scores"]["accuracy"]["method"] == 1.0
    assert "the run began with: there is a class 'above' no longer" in capsys.readouterr().err


def test_an_export_names_the_classes_that_were_learned_from(tree, tmp_path):
    from recipes_lib.models import exports, vit

    network = vit.VisionTransformer(vit.Shape(64, 1, 1), image_size=8, patch_size=4, stem="patch")
    exports.write(network, tmp_path / "out", "timm", classes=("above", "below"))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["trained_on"] == ["above", "below"]


@pytest.mark.parametrize("change", ["more", "other labels"])
def test_images_that_changed_since_a_run_began_are_refused_until_they_are_accepted(tree, tmp_path, monkeypatch, change):
    folder = tmp_path / "run"
    stopped(config_of(tree), folder, monkeypatch)
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != ".lock"}
    if change == "more":
        draw(tree / "train" / "above" / "new.png", CLASSES["above"], 99)
        told = "there were 24 training images, and there are 25"
    else:
        (tree / "train" / "above" / "7.png").rename(tree / "train" / "below" / "8.png")
        told = "the 24 training images have other names or labels than before"
    with pytest.raises(RunError, match=rf"changed since .*run began: {told}\. .* resume \S+ --data\.changed accept"):
        runs.resume(local_sgd.RECIPE, folder)
    after = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != ".lock"}
    after.pop("state.json")
    assert before.items() >= after.items()
    assert main(["resume", str(folder), "--data.changed", "accept"]) == 0
    assert engine.reopen(local_sgd.RECIPE, folder)[0].data.changed == "refuse"  # said for once
    report = json.loads((folder / "report.json").read_text())
    assert any(told in line for line in report["warnings"])


def test_a_damaged_image_can_be_left_out_when_a_run_goes_on_and_when_it_is_evaluated(tree, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    stopped(config_of(tree), folder, monkeypatch)
    (tree / "train" / "above" / "3.png").write_bytes(b"")
    (tree / "val" / "above" / "1.png").write_bytes(b"")
    assert main(["resume", str(folder)]) == 2
    assert main(["resume", str(folder), "--data.on-damage", "skip"]) == 0
    report = json.loads((folder / "report.json").read_text())
    assert sum("damaged and left out" in line for line in report["warnings"]) == 2
    assert engine.reopen(local_sgd.RECIPE, folder)[0].data.on_damage == "skip"


def test_evaluate_takes_what_to_do_about_damaged_images(tree, tmp_path):
    folder = local_sgd.RECIPE.run(config_of(tree), tmp_path / "run").folder
    (tree / "val" / "above" / "1.png").write_bytes(b"")
    assert main(["evaluate", str(folder)]) == 2
    assert main(["evaluate", str(folder), "--data.on-damage", "skip"]) == 0
    assert engine.reopen(local_sgd.RECIPE, folder)[0].data.on_damage == "stop"  # nothing is written
