# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace

import pytest
import torch

from recipes_lib.recipes.tcnn import recipe, study
from tests.recipes.tcnn.test_recipe import tiny


@pytest.fixture(scope="module")
def cnn(tmp_path_factory):
    return recipe.RECIPE.run(tiny("simmer"), tmp_path_factory.mktemp("study") / "cnn").folder


def test_the_conversion_is_exact_with_a_closed_gate_and_not_with_convits_start(cnn):
    exact, near, opened = (study.conversion(cnn, **gate) for gate in study.GATES.values())
    assert exact["change"] < 1e-5
    assert exact["agreement"] == 1.0
    assert exact["change"] < near["change"] < opened["change"]


def test_blanked_rows_are_every_fourth_from_the_first(cnn, monkeypatch):
    seen = []

    def accuracy(method, config, images):
        seen.append(images.images)
        return 0.5

    monkeypatch.setattr(study.class_scores, "accuracy", accuracy)
    assert study.without_rows(cnn) == 0.5
    blank = seen[0].amax(dim=(0, 1, 3)) == 0
    assert torch.nonzero(blank)[:, 0].tolist() == list(range(0, 32, 4))


@pytest.mark.parametrize("measure", [study.fine_tuning, study.starts, study.local_task, study.gate_starts])
def test_a_study_trains_all_its_arms_alike_on_a_few_images(measure, monkeypatch):
    configs = {}

    def short(config, out):
        configs[out.name] = config
        return recipe.RECIPE.run(
            study.override(config, {"data.train_size": 64, "data.test_size": 32, "train.steps": 2}), out
        )

    monkeypatch.setattr(study, "_train", short)
    found = measure(7)
    assert set(found) == set(configs)
    assert {config.train.seed for config in configs.values()} == {7}
    assert all("accuracy" in numbers for numbers in found.values())
    if measure is study.starts:
        assert {name: config.train.steps for name, config in configs.items()} == {
            "half": 200,
            "from_half": 450,
            "hybrid": 650,
            "cnn_all": 650,
        }
    elif measure is study.gate_starts:
        assert [config.model.gate_logit for config in configs.values()] == [10.0, 4.0, 10.0, 16.0, 10.0]
        assert len({config.optim for config in configs.values()}) == 1
    else:
        assert configs["cnn"].train == configs["tcnn"].train
        assert replace(configs["cnn"].optim, lr=0.01) == configs["tcnn"].optim
        assert configs["cnn"].data == configs["tcnn"].data == configs["base"].data
    if measure is study.fine_tuning:
        assert {"noise", "rows", "corruptions"} <= set(found["tcnn"]) & set(found["cnn"])
        assert found["base"]["exact"]["change"] < 1e-5


def test_the_lengths_are_those_of_the_presets():
    assert recipe.PRESETS["finetune"].train.steps == study.STEPS["finetune"]
    assert recipe.PRESETS["simmer"].train.steps == study.STEPS["cnn"]
    assert study.STEPS["all"] == study.STEPS["cnn"] + study.STEPS["finetune"]
