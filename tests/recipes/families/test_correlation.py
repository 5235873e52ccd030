# SPDX-License-Identifier: Apache-2.0
"""Barlow Twins, VICReg, SwAV and W-MSE as methods: what they learn, store and resume; that two processes equal one."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from recipes_lib.config import override
from recipes_lib.data.loader import Batch
from recipes_lib.distributed.local import run_ranks
from recipes_lib.errors import ConfigError
from recipes_lib.optim import build as optim
from recipes_lib.pretraining import engine, runs
from recipes_lib.recipes.families import correlation, recipe
from recipes_lib.recipes.families.settings import Config
from recipes_lib.training import checkpoint

SHORT = {
    "data.train_size": 96,
    "data.test_size": 8,
    "model.hidden": 32,
    "model.dim": 16,
    "train.batch_size": 32,
    "train.steps": 4,
    "train.checkpoint_every": 2,
    "train.device": "cpu",
    "eval.probes": [],
    "eval.baselines": "none",
}
OWN = {
    "barlow_twins": {},
    "vicreg": {},
    "swav": {
        "model.prototypes": 8,
        "views.local_views": 1,
        "views.local_size": 16,
        "loss.freeze_prototypes": 0.25,
        "loss.queue": 32,
    },
    "w_mse": {"loss.whitening_size": 32, "views.global_views": 2},
}
PARTS = {
    "barlow_twins": {"invariance", "redundancy"},
    "vicreg": {"invariance", "variance", "covariance"},
    "swav": {"code_entropy", "entropy"},
    "w_mse": {"cosine"},
}


def config(name: str, **changes: object) -> Config:
    return override(recipe.PRESETS[f"{name}_toy"], SHORT | OWN[name] | changes)


def method(name: str, **changes: object) -> torch.nn.Module:
    return engine.build(recipe.RECIPE, config(name, **changes), steps=4)


def batch(size: int = 32) -> Batch:
    images = torch.randint(0, 256, (size, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return Batch(torch.arange(size), 0, images, None, None)


def test_each_method_of_the_family_is_tested_here():
    assert set(OWN) == set(correlation.METHODS)


@pytest.mark.parametrize("name", OWN)
def test_a_step_reports_the_parts_and_the_spread_and_reaches_every_parameter(name):
    model = method(name)
    parts = model(model.views(batch(), step=0))
    assert parts.keys() == {"loss", "std"} | PARTS[name]
    assert all(value.isfinite() for value in parts.values())
    parts["loss"].backward()
    given = [p for group in model.param_groups() for p in group["params"]]
    assert sorted(map(id, given)) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    assert all(p.grad is not None for p in given)


def test_the_learning_rate_of_barlow_twins_biases_is_the_papers_with_lars_and_that_of_weights_with_adamw():
    for name, wanted in (("lars", {True: 0.2, False: 0.0048}), ("adamw", {True: 0.2, False: 0.2})):
        config_ = config("barlow_twins", **{"optim.name": name, "optim.lr": 0.2, "optim.warmup_epochs": 0.0})
        optimizer = optim.build(config_.optim, engine.build(recipe.RECIPE, config_, 4).param_groups())
        optim.Schedule(config=config_.optim, steps=10**6, steps_per_epoch=10).apply(optimizer, 0)
        for group in optimizer.param_groups:
            assert group["lr"] == pytest.approx(wanted[group["decays"]], rel=1e-4)


def test_swavs_prototypes_do_not_decay_and_are_frozen_for_the_share_of_the_config():
    model = method("swav", **{"loss.freeze_prototypes": 0.3})
    group = next(each for each in model.param_groups() if each["params"][0] is model.prototypes.weight)
    assert (group["decays"], group["frozen"]) == (False, 0.3)


def test_swavs_queues_fill_with_the_large_views_and_are_used_from_their_start_on():
    changes = {"loss.queue": 64, "loss.queue_start": 0.75, "train.steps": 4}
    model, plain = method("swav", **changes), method("swav", **{"loss.queue": 0})
    plain.load_state_dict(model.state_dict(), strict=False)
    views = [model.views(replace(batch(), epoch=epoch), step=epoch) for epoch in range(4)]
    same = [torch.equal(model(each)["loss"], plain(each)["loss"]) for each in views]
    assert same == [True, True, True, False]
    for queue, view in zip(model.queues, model.embeddings(views[3]), strict=False):
        torch.testing.assert_close(queue.rows[:32], torch.nn.functional.normalize(view.detach(), dim=1))


def test_a_queue_that_is_not_yet_full_is_not_used():
    model = method("swav", **{"loss.queue": 96})
    assert model._earlier(2) is None
    assert model._earlier(3).shape == (2, 96, 16)


def test_the_paper_presets_have_the_released_values():
    barlow, vicreg, swav = (recipe.PRESETS[f"{name}_rn50_imagenet"] for name in ("barlow_twins", "vicreg", "swav"))
    for preset in (barlow, vicreg):
        assert (preset.optim.lr, preset.optim.lr_final, preset.optim.weight_decay) == (1.6, 0.0016, 1e-6)
        assert (preset.train.batch_size, preset.train.epochs, preset.model.dim) == (2048, 1000, 8192)
        assert (preset.views.blur, preset.views.second_blur, preset.views.second_solarize) == (1.0, 0.1, 0.2)
    assert (swav.optim.lr_start, swav.optim.lr, swav.optim.lr_final) == (0.3, 4.8, 0.0048)
    assert (swav.model.prototypes, swav.views.local_views, swav.train.batch_size) == (3000, 6, 4096)
    assert swav.loss.freeze_prototypes * swav.train.epochs == 1


@pytest.mark.parametrize(
    ("name", "field", "value", "words"),
    [
        ("w_mse", "loss.whitening_size", 24, "loss.whitening_size = 24 .*that divides a micro-batch of 32 images"),
        ("w_mse", "loss.whitening_size", 16, "loss.whitening_size = 16 .*above model.dim = 16"),
        ("swav", "loss.whiten", False, "loss.whiten = False has no use with loss.objective swav"),
        ("vicreg", "views.global_views", 2, "vicreg compares two views"),
    ],
)
def test_a_setting_that_does_not_fit_is_named(name, field, value, words):
    with pytest.raises(ConfigError, match=words):
        config(name, **{field: value}).validate()


@pytest.mark.parametrize("name", OWN)
def test_a_run_that_stopped_goes_on_to_the_same_bits(name, tmp_path):
    whole = engine.pretrain(recipe.RECIPE, config(name), tmp_path / "whole").folder
    folder = tmp_path / "stopped"
    shutil.copytree(whole, folder)
    shutil.rmtree(folder / "checkpoints" / "step-000004")
    for file in ("model.safetensors", "report.json"):
        (folder / file).unlink()
    (folder / "state.json").write_text('{"status": "interrupted", "step": 2}\n')
    runs.resume(recipe.RECIPE, folder)
    for file in ("model.safetensors", "metrics.jsonl"):
        assert (folder / file).read_bytes() == (whole / file).read_bytes(), file


def train(name: str, folder: str) -> str:
    # sgd: AdamW divides each gradient by its size, and so would turn the rounding of a small one into a whole step
    given = config(name, **{"optim.name": "sgd", "optim.lr": 1e-3})
    return str(engine.pretrain(recipe.RECIPE, given, Path(folder)).folder)


@pytest.mark.distributed
@pytest.mark.parametrize("name", OWN)
def test_two_processes_train_the_same_weights_as_one(name, tmp_path):
    alone = Path(train(name, str(tmp_path / "alone")))
    both = Path(run_ranks(train, 2, name, str(tmp_path / "both"))[0])
    begun = method(name).state_dict()
    one, two = (checkpoint.read_weights(folder / "model.safetensors") for folder in (alone, both))
    weights = [key for key in one if "running" not in key and "num_batches" not in key]
    way = sum((one[key] - begun[key]).double().square().sum() for key in weights) ** 0.5
    apart = sum((one[key] - two[key]).double().square().sum() for key in weights) ** 0.5
    assert way > 0
    assert apart < 1e-3 * way
