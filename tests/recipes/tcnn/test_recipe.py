# SPDX-License-Identifier: Apache-2.0
import json
import shutil

import pytest

from recipes_lib.config import override
from recipes_lib.data.load import load
from recipes_lib.errors import ConfigError
from recipes_lib.models.recast import recast_layers
from recipes_lib.pretraining import engine
from recipes_lib.pretraining.scoring import DATA_SEED
from recipes_lib.recipes.tcnn import recipe as tcnn
from recipes_lib.recipes.tcnn.study import CNN

TINY = {
    "data.train_size": 64,
    "data.test_size": 32,
    "train.steps": 3,
    "train.batch_size": 16,
    "eval.baselines": "none",
    "optim.warmup_steps": 1,
}


def tiny(preset: str, **changes: object) -> tcnn.Config:
    return override(tcnn.PRESETS[preset], {**TINY, **changes})


def test_a_run_reports_gates_distances_and_the_accuracy_without_each_layer_and_logs_the_gates(tmp_path):
    report = tcnn.RECIPE.run(tiny("toy"), tmp_path / "run").report
    assert list(report["diagnostics"]) == ["gate_1", "gate_2", "distance_1", "distance_2", "closed_1", "closed_2"]
    rows = [json.loads(row) for row in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["gate_1"] == pytest.approx(0.7310586, abs=1e-6)
    assert rows[-1]["gate_1"] != rows[0]["gate_1"]


def test_a_convnet_has_no_gates(tmp_path):
    report = tcnn.RECIPE.run(tiny("simmer"), tmp_path / "run").report
    assert report["diagnostics"] == {}
    assert "gate_1" not in (tmp_path / "run" / "metrics.jsonl").read_text()


def test_closing_a_layer_whose_gates_are_closed_changes_nothing():
    config = tiny("toy")
    method = engine.build(tcnn.RECIPE, config, steps=3)
    splits = load(config.data, DATA_SEED)
    layers = dict(recast_layers(method.backbone))
    for layer in layers.values():
        layer.gate.data.fill_(40.0)
    found = tcnn.diagnostics(method, None, splits)
    assert found["closed_1"] == found["closed_2"]
    assert all(layer.gate.eq(40).all() for layer in layers.values()), "the method itself is not changed"


def test_gates_have_a_rate_of_their_own_and_neither_they_nor_positions_decay():
    method = engine.build(tcnn.RECIPE, tiny("toy"), steps=3)
    groups = method.param_groups()
    layers = [layer for _, layer in recast_layers(method.backbone)]
    assert [group for group in groups if "lr_scale" in group] == [
        {"params": [layer.gate for layer in layers], "decays": False, "lr_scale": 10.0}
    ]
    decaying = {parameter for group in groups if group["decays"] for parameter in group["params"]}
    assert not decaying & {parameter for layer in layers for parameter in (layer.gate, layer.v_pos)}
    every = [parameter for group in groups for parameter in group["params"]]
    assert len(every) == len(set(every)) == len(list(method.parameters()))


def test_a_run_that_was_interrupted_goes_on_from_its_checkpoint_and_not_from_init(tmp_path):
    tcnn.RECIPE.run(tiny("simmer"), tmp_path / "cnn")
    config = tiny("finetune", **{"model.init": tmp_path / "cnn", "train.checkpoint_every": 1})
    whole = tcnn.RECIPE.run(config, tmp_path / "whole")
    tcnn.RECIPE.run(config, tmp_path / "part")
    for left in ("report.json", "model.safetensors"):
        (tmp_path / "part" / left).unlink()
    (tmp_path / "part" / "state.json").write_text('{"status": "interrupted", "step": 2}')
    newest = max((tmp_path / "part" / "checkpoints").iterdir())
    shutil.rmtree(newest) if newest.is_dir() else newest.unlink()
    (tmp_path / "cnn").rename(tmp_path / "moved")  # the start is not needed any more
    again = tcnn.RECIPE.run(config, tmp_path / "part")
    assert again.report["scores"] == whole.report["scores"]
    assert again.report["diagnostics"] == whole.report["diagnostics"]


def test_a_start_that_learned_nothing_is_cautioned():
    assert "model.init is not given" in tcnn.cautions(tcnn.PRESETS["finetune"])[0]
    linear = override(tcnn.PRESETS["finetune"], {"model.gate": "linear", "model.gate_logit": 10.0})
    assert len(tcnn.cautions(linear)) == 1
    started = override(tcnn.PRESETS["finetune"], {"model.init": "somewhere"})
    assert [*tcnn.cautions(started), *tcnn.cautions(tcnn.PRESETS["toy"]), *tcnn.cautions(tcnn.PRESETS["simmer"])] == []


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model.classes": 1}, r"model\.classes = 1 is not allowed"),
        ({"model.gate_lr_scale": 0.0}, r"model\.gate_lr_scale = 0\.0 is not allowed"),
        (
            {"model.arch": "convnet_small"},
            r"model\.gate = near is not allowed: use a value of linear with convnet_small",
        ),
        ({"model.gate_logit": 17.0}, r"model\.gate_logit = 17\.0 is not allowed"),
        ({"model.stem": "patch"}, r"model\.stem = patch is not allowed"),
    ],
    ids=str,
)
def test_bad_options_are_told_by_their_fields(changes, told):
    with pytest.raises(ConfigError, match=told):
        tiny("finetune", **changes).validate()


def test_a_vision_transformer_has_no_convolutions_to_recast():
    with pytest.raises(ConfigError, match=r"model\.arch"):
        override(tcnn.PRESETS["toy"], {"model.arch": "vit_pico"})


def test_only_the_architecture_differs_between_the_two_fine_tuned_arms():
    arms = [tiny("finetune"), tiny("finetune", **CNN)]
    first, second = (engine.build(tcnn.RECIPE, config, steps=3) for config in arms)
    assert {name for name, _ in second.named_parameters()} < {name for name, _ in first.named_parameters()}
    for group in ("data", "views", "loss", "optim", "train", "eval"):
        assert getattr(arms[0], group) == getattr(arms[1], group)
