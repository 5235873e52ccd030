# SPDX-License-Identifier: Apache-2.0
"""BARACK on images: both steps, every arm, resume, two processes, and every bad input of a config."""

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from recipes_lib.config import from_dict, override, to_dict
from recipes_lib.distributed.local import run_ranks
from recipes_lib.errors import ConfigError, DataError, Diverged, Interrupted
from recipes_lib.pretraining import engine, runs
from recipes_lib.recipes.barack import recipe as barack
from recipes_lib.recipes.barack.arms import Assignment, Points
from recipes_lib.recipes.barack.settings import ARMS, PREDICTING
from recipes_lib.training import checkpoint, log

TINY = override(
    barack.PRESETS["toy"],
    {
        "data.image_size": 8,
        "data.train_size": 96,
        "data.test_size": 48,
        "data.fits": 0.8,
        "views.image_size": 8,
        "groups.share": 0.3,
        "groups.steps": 3,
        "train.batch_size": 16,
        "train.steps": 4,
        "train.checkpoint_every": 2,
        "eval.baselines": "none",
    },
)


def run(folder: Path, **changes: object) -> dict:
    named = {name.replace("__", "."): value for name, value in changes.items()}
    return barack.RECIPE.run(override(TINY, named), folder).report


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", barack.PRESETS)
def test_a_preset_is_valid_once_it_has_data_and_survives_yaml(name):
    config = barack.PRESETS[name]
    if config.data.name != "pantry":
        config = override(config, {"data.root": "somewhere"})
    config.validate()
    assert from_dict(barack.Config, to_dict(config)) == config


def test_the_papers_presets_have_the_values_of_the_published_sample_commands():
    birds, faces = barack.PRESETS["waterbirds"], barack.PRESETS["celeba"]
    for config, lr, epochs in ((birds, 1e-3, 300.0), (faces, 1e-4, 50.0)):
        assert (config.optim.lr, config.optim.lr_final, config.optim.weight_decay) == (lr, lr, 1e-4)
        assert (config.train.epochs, config.train.batch_size, config.model.arch) == (epochs, 128, "resnet50")
        assert (config.loss.eta, config.loss.adjustment, config.loss.sampling) == (0.01, 0.0, "balanced")
    for name, lr, decay, epochs, upweight in (
        ("waterbirds_jtt", 1e-5, 1.0, 60.0, 100.0),
        ("celeba_jtt", 1e-5, 0.1, 1.0, 50.0),
    ):
        config = barack.PRESETS[name]
        assert (config.optim.lr, config.optim.weight_decay) == (lr, decay)
        assert (config.groups.epochs, config.groups.upweight) == (epochs, upweight)


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_runs_and_reports_the_worst_group(arm, tmp_path):
    report = run(tmp_path / "run", groups__arm=arm, eval__baselines="all" if arm == "lff" else "none")
    assert set(report["scores"]["worst_group"]) == {"method"} | ({"random_init"} if arm == "lff" else set())
    table = dict(report["groups"])
    average = table.pop("average")
    assert list(table) == ["bottle, wood", "bottle, tiles", "jar, wood", "jar, tiles"]
    assert report["scores"]["worst_group"]["method"] == min(row["accuracy"] for row in table.values())
    sizes = torch.tensor([row["train"] for row in table.values()]).double()
    assert int(sizes.sum()) == 96
    weighted = sum(row["accuracy"] * row["train"] for row in table.values()) / 96
    assert average == pytest.approx(weighted)
    assert ("recall_worst" in report["diagnostics"]) == (arm in (*PREDICTING, "george", "oracle"))
    assert ("q_max" in lines(tmp_path / "run")[0]) == (arm in barack.ROBUST)
    assert (tmp_path / "run" / "groups").exists() == (arm in (*PREDICTING, "jtt", "george"))


def test_q_is_saved_and_a_resumed_run_ends_with_the_same_bits(tmp_path):
    run(tmp_path / "run", loss__eta=0.5)
    saved = checkpoint.read_weights(tmp_path / "run" / "model.safetensors")
    assert saved["q"].std() > 0
    stopped = Path(shutil.copytree(tmp_path / "run", tmp_path / "stopped"))
    shutil.rmtree(stopped / "checkpoints" / "step-000004")
    for name in ("model.safetensors", "report.json"):
        (stopped / name).unlink()
    (stopped / "state.json").write_text('{"status": "interrupted", "step": 2}\n')
    before = (stopped / "groups" / "found.safetensors").stat().st_mtime_ns
    runs.resume(barack.RECIPE, stopped)
    assert (stopped / "model.safetensors").read_bytes() == (tmp_path / "run" / "model.safetensors").read_bytes()
    assert (stopped / "groups" / "found.safetensors").stat().st_mtime_ns == before  # the first step is not repeated


def test_a_run_that_was_stopped_in_the_first_step_goes_on_there(tmp_path, monkeypatch):
    run(tmp_path / "whole")
    write = log.RunLog.step

    def write_then_stop(self: log.RunLog, step: int, metrics: dict) -> None:
        write(self, step, metrics)
        if step == 0:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as stopping:
        stopping.setattr(log.RunLog, "step", write_then_stop)
        with pytest.raises(
            Interrupted, match=r"^Finding groups was interrupted; its steps are kept. Go on: recipes resume"
        ):
            run(tmp_path / "run")
    assert json.loads((tmp_path / "run" / "state.json").read_text())["status"] == "interrupted"
    assert not (tmp_path / "run" / "groups" / "found.safetensors").exists()
    runs.resume(barack.RECIPE, tmp_path / "run")
    whole, resumed = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "run"))
    assert whole == resumed


def test_a_run_is_evaluated_and_exported(tmp_path):
    report = run(tmp_path / "run")
    found = runs.evaluate(barack.RECIPE, tmp_path / "run", ("worst_group", "accuracy", "knn"))
    assert found["scores"]["worst_group"] == report["scores"]["worst_group"]
    assert found["groups"] == report["groups"]
    assert "recall_worst" not in found["diagnostics"]
    assert runs.export(barack.RECIPE, tmp_path / "run", "timm", tmp_path / "out").is_dir()


@pytest.mark.parametrize("arm", ["barack", "george"])
def test_image_files_in_the_layout_of_waterbirds_are_trained_on(arm, tmp_path):
    lines = ["img_filename,y,place,split"]
    for number in range(48):
        y, place, split = number % 2, number // 2 % 2, 0 if number < 32 else number % 4 // 2 + 1
        Image.new("RGB", (12, 10), (250 * y, 250 * place, number)).save(tmp_path / f"{number}.png")
        lines.append(f"{number}.png,{y},{'' if 4 <= number < 8 else place},{split}")  # four without an attribute
    (tmp_path / "metadata.csv").write_text("\n".join(lines) + "\n")
    changes = {"data__name": "waterbirds", "data__root": str(tmp_path), "data__fits": 0.95}
    report = run(tmp_path / "run", **changes, groups__arm=arm, train__batch_size=8)
    assert list(report["groups"])[1:] == ["landbird, land", "landbird, water", "waterbird, land", "waterbird, water"]
    assert sum(row["train"] for name, row in report["groups"].items() if name != "average") == 28


def method(**changes: object) -> barack.GroupClassifier:
    named = {name.replace("__", "."): value for name, value in changes.items()}
    return engine.build(barack.RECIPE, override(TINY, named), steps=4)


def test_absent_groups_get_no_weight_and_groups_come_by_the_image_s_number():
    found = method()
    points = Points(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 0]), torch.ones(3).bool(), 2, 2)
    found.use(Assignment(torch.tensor([0, 1, 2])), points, torch.device("cpu"))
    assert found.q.tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0])
    batch = barack.Batch(
        torch.tensor([2, 4]), 0, torch.zeros(2, 3, 8, 8, dtype=torch.uint8), None, torch.tensor([1, 0])
    )
    assert found.views(batch, 0)["groups"].tolist() == [2, 1]  # the second copy of image 1


def test_weights_of_a_checkpoint_that_are_no_distribution_are_refused():
    found = method()
    found.q.mul_(3)
    batch = barack.Batch(torch.tensor([0]), 0, torch.zeros(1, 3, 8, 8, dtype=torch.uint8), None, torch.tensor([1]))
    with pytest.raises(ConfigError, match=r"The checkpoint cannot be used: q = .* sums to 3"):
        found.views(batch, 0)


def test_a_loss_that_is_not_finite_names_the_group_and_the_step(tmp_path):
    with pytest.raises(Diverged, match=r"at step 1: the loss of group [0-3] is (nan|inf)"):
        run(tmp_path / "run", groups__arm="oracle", optim__lr=1e30, optim__lr_start=1e30)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"groups.share": 0.0}, r"groups\.share = 0\.0 is not allowed: use a value in \(0, 1\]"),
        ({"groups.share": 1.0}, r"leaves no group to predict: use --groups\.arm oracle"),
        ({"loss.eta": -0.1}, r"loss\.eta = -0\.1"),
        ({"loss.adjustment": -1.0}, r"loss\.adjustment = -1"),
        ({"loss.focus": 0.0}, r"loss\.focus = 0"),
        ({"model.attributes": 1}, r"model\.attributes = 1 is not allowed: use a value of at least 2"),
        ({"model.classes": 1}, r"model\.classes = 1"),
        ({"data.fits": 1.0}, r"data\.fits = 1.0 is not allowed"),
        ({"data.tail": 1.0}, r"data\.tail = 1.0"),
        ({"data.scored": "val"}, r"data\.scored = val"),
        ({"groups.soft": True, "groups.arm": "jtt"}, r"groups\.soft = True"),
        ({"groups.flips": 0.1, "groups.arm": "erm"}, r"groups\.flips = 0\.1"),
        ({"groups.steps": 0}, r"groups\.steps = 0"),
        ({"groups.steps": None}, r"groups\.epochs = None is not allowed: use a value above 0, or give groups\.steps"),
        ({"groups.upweight": 0.5}, r"groups\.upweight = 0\.5"),
        (
            {"model.classes": 20, "loss.sampling": "uniform"},
            r"train\.batch_size = 16 is below the number of groups, 40.*--loss\.sampling balanced",
        ),
    ],
)
def test_a_bad_config_is_told_in_one_line(changes, said):
    with pytest.raises(ConfigError, match=said):
        override(TINY, changes).validate()


@pytest.mark.parametrize("arm", ["barack", "subset"])
def test_labels_drawn_at_random_that_miss_a_group_are_refused_before_training(arm, tmp_path):
    with pytest.raises(DataError, match=r"No point with a group label is in: .*can never be predicted"):
        run(tmp_path / "run", groups__arm=arm, groups__by_group=False, groups__share=0.02)
    assert not (tmp_path / "run").exists()


def train_here(folder: str, arm: str) -> list[str]:
    changes = {"groups.arm": arm, "groups.soft": arm == "barack", "optim.lr": 0.01, "optim.lr_start": 0.01}
    changes |= {"loss.sampling": "uniform", "loss.eta": 0.3, "loss.adjustment": 1.0}
    return [str(barack.RECIPE.run(override(TINY, changes), Path(folder)).folder)]


@pytest.mark.distributed
@pytest.mark.parametrize("arm", ["barack", "jtt"])
def test_two_processes_end_with_the_weights_and_the_losses_of_one(arm, tmp_path):
    train_here(str(tmp_path / "one"), arm)
    run_ranks(train_here, 2, str(tmp_path / "two"), arm)
    one, two = (checkpoint.read_weights(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    start = engine.build(barack.RECIPE, override(TINY, {"groups.arm": arm}), steps=4).state_dict()
    moved = torch.cat([(one[key].double() - start[key]).flatten() for key in one])
    apart = torch.cat([(one[key].double() - two[key]).flatten() for key in one])
    assert apart.norm() <= 0.01 * moved.norm()
    torch.testing.assert_close(two["q"], one["q"], atol=1e-5, rtol=0)
    for place in ("", "groups"):
        losses = [[line["loss"] for line in lines(tmp_path / name / place)] for name in ("one", "two")]
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_uniform_run_of_soft_groups_has_no_weights_of_sampling():
    find = replace(TINY.groups, soft=True)
    points = Points(torch.tensor([0, 1]), torch.tensor([0, 1]), torch.tensor([True, False]), 2, 2)
    found = barack.finding.arms.from_predictions(torch.full((2, 2), 0.5), points, find, TINY.loss)
    assert found.groups.tolist() == [[1, 0, 0, 0], [0, 0, 0.5, 0.5]]
