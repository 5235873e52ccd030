# SPDX-License-Identifier: Apache-2.0
import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from recipes_lib.config import override
from recipes_lib.data.load import load
from recipes_lib.errors import ConfigError
from recipes_lib.models.convit import ConViT
from recipes_lib.models.vit import VisionTransformer
from recipes_lib.pretraining import engine
from recipes_lib.pretraining.scoring import DATA_SEED
from recipes_lib.recipes.convit import recipe as convit

TINY = override(
    convit.PRESETS["toy"],
    {"data.train_size": 64, "data.test_size": 32, "train.steps": 3, "train.batch_size": 16, "eval.baselines": "none"},
)


def method(changes: dict | None = None) -> convit.ConViTClassifier:
    return engine.build(convit.RECIPE, override(TINY, changes or {}), steps=3)


def test_a_run_reports_accuracy_gates_and_distances_and_logs_the_gates(tmp_path):
    result = convit.RECIPE.run(override(TINY, {"eval.baselines": "all"}), tmp_path / "run")
    assert set(result.report["scores"]["accuracy"]) == {"method", "random_init"}
    assert list(result.report["diagnostics"]) == ["distance_1", "distance_2", "distance_3", "gate_1", "gate_2"]
    rows = [json.loads(row) for row in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["gate_1"] == pytest.approx(0.7310586, abs=1e-6)
    assert rows[-1]["gate_1"] != rows[0]["gate_1"]


def test_without_gpsa_there_are_distances_alone_and_a_convnet_has_neither(tmp_path):
    plain = convit.RECIPE.run(override(TINY, {"model.gpsa_layers": 0}), tmp_path / "plain").report
    assert list(plain["diagnostics"]) == ["distance_1", "distance_2", "distance_3"]
    net = {"model.arch": "convnet", "model.stem": "cifar", "model.patch_size": 16, "model.locality_strength": 1.0}
    assert convit.RECIPE.run(override(TINY, net), tmp_path / "net").report["diagnostics"] == {}


def test_a_new_convit_attends_nearby_and_a_plain_transformer_everywhere():
    splits = load(TINY.data, DATA_SEED)
    local = convit.diagnostics(method(), None, splits)
    plain = convit.diagnostics(method({"model.gpsa_layers": 0}), None, splits)
    assert local["distance_1"] < 0.6 * plain["distance_1"]
    assert local["gate_1"] == pytest.approx(0.7310586, abs=1e-6)


def test_weights_decay_and_biases_norms_gates_tokens_and_positions_do_not():
    model = method({"model.gate_lr_scale": 30.0})
    names = {parameter: name for name, parameter in model.named_parameters()}
    decays = {names[parameter]: group["decays"] for group in model.param_groups() for parameter in group["params"]}
    assert set(decays) == set(names.values())
    assert all(decays[name] for name in decays if name.endswith(("qk.weight", "pos_proj.weight", "fc1.weight")))
    spared = ("bias", "gating_param", "pos_embed", "cls_token", "norm1.weight")
    assert not any(decays[name] for name in decays if name.endswith(spared))
    scales = {
        names[parameter]: group.get("lr_scale") for group in model.param_groups() for parameter in group["params"]
    }
    assert {name for name, scale in scales.items() if scale == 30.0} == {name for name in scales if "gating" in name}


@pytest.mark.parametrize(
    ("fixed", "kept"), [("gate", ("gating_param",)), ("attention", ("gating_param", "qk.weight", "pos_proj.weight"))]
)
def test_the_ablations_leave_out_what_they_name(fixed, kept):
    model = method({"model.fixed": fixed, "model.gate_init": 0.0})
    still = {name.partition("attn.")[2] for name, p in model.named_parameters() if not p.requires_grad}
    assert still == set(kept)
    assert model.backbone.blocks[0].attn.gate.eq(0.5).all()


def test_random_positions_and_no_gpsa_are_arms_of_the_same_size():
    def count(changes: dict) -> int:
        return sum(parameter.numel() for parameter in method(changes).parameters())

    positions = 2 * 9 * (3 + 1)  # two blocks, nine heads, v_pos and gate
    assert count({}) == count({"model.local_init": False}) == count({"model.gpsa_layers": 0}) + positions


def test_the_papers_presets_have_its_networks_and_rates():
    presets = convit.PRESETS
    assert [presets[f"{name}_imagenet"].model.arch for name in ("tiny", "base_plus")] == [
        "convit_tiny",
        "convit_base_plus",
    ]
    assert presets["small_plus_imagenet"].optim.lr == 4e-4
    assert presets["small_plus_imagenet"].train.batch_size == 512
    small, share = presets["small_imagenet"], presets["small_imagenet_10"]
    assert (share.data.share, share.train.epochs) == (0.1, pytest.approx(3000))
    assert replace(share, data=small.data, train=small.train) == small
    assert presets["deit_small_imagenet"].model.arch == "vit_small"


@pytest.mark.parametrize(("preset", "kind"), [("laptop", ConViT), ("deit_small_imagenet", VisionTransformer)])
def test_presets_build_their_network(preset, kind):
    with torch.device("meta"):
        model = convit.ConViTClassifier(convit.PRESETS[preset], 10)
    assert isinstance(model.backbone, kind)
    assert isinstance(model.head, nn.Linear)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model.classes": 1}, "model.classes = 1"),
        ({"model.gate_lr_scale": 0.0}, "model.gate_lr_scale = 0.0"),
        ({"model.arch": "vit_pico", "model.locality_strength": 1.0, "model.fixed": "gate"}, "model.fixed = gate"),
        ({"model.patch_size": 3}, "model.patch_size = 3 does not divide"),
        ({"model.gpsa_layers": 3}, "model.gpsa_layers = 3 has no class token"),
        ({"data.share": 0.0}, "data.share = 0.0"),
        ({"data.repeats": 0}, "data.repeats = 0"),
    ],
)
def test_faults_are_named(changes, said):
    with pytest.raises(ConfigError) as caught:
        override(TINY, changes).validate()
    assert said in str(caught.value)
