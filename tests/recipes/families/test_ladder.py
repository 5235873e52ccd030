# SPDX-License-Identifier: Apache-2.0
"""The small presets of a method: what they share, and what a method changes."""

from dataclasses import replace

import pytest
import torch

from recipes_lib.config import override
from recipes_lib.recipes.families import ladder, recipe
from recipes_lib.recipes.families.settings import LossConfig, ModelConfig


def test_a_method_has_a_toy_a_simmer_and_a_laptop():
    presets = ladder.small(LossConfig(objective="dcl"))
    assert list(presets) == ["dcl_toy", "dcl_simmer", "dcl_laptop"]
    toy, simmer, laptop = presets.values()
    assert (toy.train.steps, simmer.train.steps, laptop.train.steps) == (300, 1000, 6000)
    assert replace(simmer, train=toy.train) == toy  # it is the toy, for longer
    assert (toy.data, toy.views, toy.model, toy.optim) == (ladder.DATA, ladder.VIEWS, ladder.CONVNET, ladder.ADAMW)
    assert (laptop.data.name, laptop.model.arch, laptop.model.stem) == ("cifar10", "resnet18", "cifar")
    assert {preset.loss for preset in presets.values()} == {LossConfig(objective="dcl")}


def test_options_that_go_by_a_name_of_their_own_have_presets_of_that_name():
    assert list(ladder.small(LossConfig(objective="dino"), name="ibot")) == ["ibot_toy", "ibot_simmer", "ibot_laptop"]


def test_what_a_method_changes_is_in_all_three():
    optim = replace(ladder.ADAMW, lr=0.01)
    presets = ladder.small(
        LossConfig(objective="mae"), views=ladder.ONE_VIEW, model=ladder.VIT, optim=optim, toy_steps=7, simmer_steps=9
    )
    toy, simmer, laptop = presets.values()
    assert (toy.train.steps, simmer.train.steps) == (7, 9)
    assert {preset.optim.lr for preset in presets.values()} == {0.01}
    assert {preset.views for preset in presets.values()} == {ladder.ONE_VIEW}
    assert (laptop.model.arch, laptop.model.patch_size) == ("vit_nano", 4)


def test_the_network_for_cifar10_may_be_given():
    given = ModelConfig(arch="resnet18", stem="cifar")
    toy, _, laptop = ladder.small(LossConfig(objective="rotation"), laptop_model=given).values()
    assert laptop.model == given
    assert toy.model == ladder.CONVNET


@pytest.mark.parametrize("name", recipe.PRESETS)
def test_every_preset_is_valid(name):
    preset = recipe.PRESETS[name]
    override(preset, {} if preset.data.name == "pantry" else {"data.root": "images"}).validate()


@pytest.mark.parametrize("name", [name for name in recipe.PRESETS if name.endswith("imagenet")])
def test_the_network_of_every_papers_run_can_be_built(name):
    with torch.device("meta"):
        method = recipe.build(recipe.PRESETS[name], steps=10)
    assert sum(weight.numel() for weight in method.backbone.parameters()) > 20_000_000
