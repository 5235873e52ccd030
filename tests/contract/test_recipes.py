# SPDX-License-Identifier: Apache-2.0
"""What holds of every recipe on the menu, whatever its method."""

import pytest
import torch

from recipes_lib import recipes
from recipes_lib.config import override
from recipes_lib.data.loader import StepBatches
from recipes_lib.pretraining import engine
from recipes_lib.pretraining.recipe import Job, Recipe

CPU = torch.device("cpu")
TRAINED = [name for name in recipes.MENU if name not in ("sieve", "imagenet_x")]  # these score and analyse


@pytest.fixture(scope="module", params=TRAINED)
def recipe(request):
    return recipes.named(request.param)


@pytest.fixture(scope="module")
def toy(recipe):
    """The recipe's ``toy`` on fewer images, with its method and two batches, as a run would have them."""
    changes = {"data.train_size": 192, "data.test_size": 8, "train.batch_size": 32, "train.steps": 2, "eval.probes": []}
    config = override(recipe.presets["toy"], changes)
    config.validate()
    splits = recipe.hide_labels(config, recipe.load(config, pytest.fail))
    method = engine.build(recipe, config, steps=2)
    batches = StepBatches(splits.train, seed=0, batch_size=32, encode=method.encode_texts)
    if recipe.support:
        batches.support = recipe.support(config, splits.train, rank=0, world_size=1)
    return config, method, list(batches.stream(0, 2, workers=0, device=CPU))


@pytest.mark.parametrize("name", recipes.MENU)
def test_the_menu_lists_the_presets_that_the_module_has_in_their_order(name):
    recipe = recipes.named(name)
    assert recipes.MENU[name].presets == tuple(recipe.presets)
    assert recipes.MENU[name].presets[:2] == ("toy", "simmer")
    assert isinstance(recipe, Recipe if name in TRAINED else Job)
    assert callable(recipe.run)
    assert all(isinstance(config, recipe.config) for config in recipe.presets.values())


def test_two_steps_give_finite_losses_and_the_same_figures(toy):
    _, method, batches = toy
    outputs = [method(method.views(batch, step)) for step, batch in enumerate(batches)]
    assert outputs[0].keys() == outputs[1].keys()
    for output in outputs:
        assert output["loss"].isfinite()
        assert output["loss"].requires_grad
        assert not any(value.requires_grad for name, value in output.items() if name != "loss")


def test_every_trainable_parameter_is_given_to_the_optimiser_once_and_gets_a_gradient(toy):
    _, method, batches = toy
    method.zero_grad()
    method(method.views(batches[0], 0))["loss"].backward()
    trainable = {name: p for name, p in method.named_parameters() if p.requires_grad}
    assert [name for name, p in trainable.items() if p.grad is None] == []
    given = [id(p) for group in method.param_groups() for p in group["params"]]
    assert sorted(given) == sorted(map(id, trainable.values()))
    assert {id(p) for p in method.clipped_parameters()} <= set(given)


def test_a_state_travels_into_a_fresh_method_and_gives_the_same_features(recipe, toy):
    config, method, _ = toy
    fresh = engine.build(recipe, override(config, {"train.seed": 1}), steps=2)
    fresh.load_state_dict(method.state_dict())
    side = config.data.image_size
    images = torch.rand(4, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(fresh.backbone.eval()(images), method.backbone.eval()(images))


def test_the_largest_preset_can_be_built_on_the_meta_device(recipe):
    with torch.device("meta"):
        method = recipe.method(list(recipe.presets.values())[-1], 1000)
    assert sum(p.numel() for p in method.backbone.parameters()) > 1e7
