# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

from recipes_lib.config import override
from recipes_lib.pretraining import engine
from recipes_lib.pretraining.recipe import Recipe
from recipes_lib.recipes.evaluation import zoo
from recipes_lib.recipes.evaluation.claims import ACROSS, RATES, VARIED
from recipes_lib.recipes.evaluation.ranking import ACCURACIES, LABEL_FREE
from recipes_lib.recipes.families import recipe as families


@pytest.fixture
def told(monkeypatch):
    """What is trained, without training it: the configs, and those with which each network was measured."""
    trained, measured = [], []

    def build(config, path=None):
        trained.append(config)
        return engine.build(families.RECIPE, config, 1)

    def note(config, method):
        measured.append((config, method.config, method))
        return {"knn": len(measured)}

    monkeypatch.setattr(zoo, "train", build)
    monkeypatch.setattr(zoo, "measure", note)
    return trained, measured


@pytest.mark.parametrize("method", VARIED)
def test_the_nine_runs_of_a_method_vary_two_settings_and_their_losses_are_computed_with_the_presets(told, method, tiny):
    rows = zoo.within(method, seed=3)
    trained, measured = told
    field, values = VARIED[method]
    name = field.partition(".")[2]
    assert len(rows) == len(trained) == 9
    assert {(c.optim.lr, getattr(c.loss, name)) for c in trained} == {(r, v) for r in RATES for v in values}
    assert {c.train.seed for c in trained} == {3}
    preset = families.PRESETS[f"{method}_toy"]
    assert preset.optim.lr in RATES
    assert getattr(preset.loss, name) in values
    assert all(own.loss == preset.loss for _, own, _ in measured)


def test_all_methods_and_the_untrained_network_with_both_statistics_are_compared(told, tiny):
    rows = zoo.across(seed=1)
    assert list(rows) == [*ACROSS, "untrained", "initial"]
    made = {name: method for name, (_, _, method) in zip(rows, told[1], strict=True)}
    for part in ("untrained", "initial"):
        norm = made[part].backbone.layers[0][1]
        assert bool((norm.running_mean == 0).all()) == (part == "initial")
    first, other = (made[part].backbone.layers[0][0].weight for part in ("untrained", "initial"))
    assert torch.equal(first, other)


def test_the_untrained_network_has_statistics_of_training_images_and_no_other_weights(tiny):
    config = zoo.trained_config("simclr", 0)
    new, ready = engine.build(families.RECIPE, config, 1).backbone, zoo.untrained(config).backbone
    assert not ready.training
    assert all(torch.equal(*pair) for pair in zip(new.parameters(), ready.parameters(), strict=True))
    assert new.layers[0][1].running_mean.count_nonzero() == 0
    assert ready.layers[0][1].running_mean.count_nonzero() > 0


def test_a_network_is_measured_with_every_metric_and_its_k_nn_is_that_of_its_report(tiny, tmp_path):
    config = override(zoo.trained_config("vicreg", 0), {"eval.probes": ["knn"]})
    report = families.RECIPE.run(config, tmp_path / "run").report
    found = zoo.measure(config, zoo.train(config, tmp_path / "run"))
    assert set(found) == {*LABEL_FREE, *ACCURACIES, "knn", "loss"}
    assert all(math.isfinite(value) for value in found.values())
    assert found["knn"] == report["scores"]["knn"]["method"]
    assert found["loss"] == pytest.approx(report["diagnostics"]["held_out_loss"], rel=1e-5)


def test_a_finished_network_is_not_trained_again(tiny, tmp_path, monkeypatch):
    config = zoo.trained_config("simclr", 0)
    first = zoo.train(config, tmp_path / "run")
    monkeypatch.setattr(Recipe, "run", lambda *_: pytest.fail("it was trained again"))
    again = zoo.train(config, tmp_path / "run")
    assert torch.equal(first.backbone.layers[0][0].weight, again.backbone.layers[0][0].weight)


@pytest.mark.parametrize("method", ACROSS)
def test_the_methods_of_the_zoo_share_network_images_and_steps(method):
    config, first = zoo.trained_config(method, 1), zoo.trained_config("simclr", 1)
    config.validate()
    assert (config.model.arch, config.data, config.train.steps) == (first.model.arch, first.data, first.train.steps)
