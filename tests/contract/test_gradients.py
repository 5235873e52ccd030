# SPDX-License-Identifier: Apache-2.0
"""Nothing that a run calls trained keeps its first weights: each trainable parameter has a gradient after one step."""

from dataclasses import fields
from itertools import product
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import torch

from recipes_lib import recipes
from recipes_lib.config import override
from recipes_lib.data.loader import StepBatches
from recipes_lib.distributed import collectives, slowmo
from recipes_lib.distributed.local import run_ranks
from recipes_lib.optim import build as optim
from recipes_lib.pretraining import engine
from recipes_lib.pretraining.recipe import Job
from recipes_lib.recipes.families import recipe as families

TRAINED = [name for name in recipes.MENU if not isinstance(recipes.named(name), Job)]
SMALL = {
    "data.train_size": 64,
    "data.test_size": 8,
    "train.batch_size": 16,
    "train.steps": 1,
    "eval.probes": [],
    "eval.baselines": "none",
    "sync.name": "ddp",
}
OWN = {"local_sgd": {"sync.workers": 0}}  # the toy simulates its workers
VIT = {"model.arch": "vit_pico", "model.stem": "patch", "model.patch_size": 8, "model.pre_norm": True}
SWITCHES = {"predictor": {"model.predictor": True}, "pre_norm": VIT}
"""Switches of the ``model`` group that add parameters, and how to turn each on."""
WHITENED = {"model.dim": 8, "loss.whitening_size": 16}
IN_PRESETS = {
    "families": [
        *((f"{name}_toy", WHITENED if name == "w_mse" else {}) for name in families.METHODS),
        ("ibot_toy", {}),
        ("simclr_toy", {"model.last_norm": True}),
        ("moco_v3_toy", {"model.predictor_last_norm": True}),
        ("simclr_toy", VIT),
        ("simclr_toy", {**VIT, "model.pre_norm": False, "model.freeze_patch": True}),
    ],
    "convit": [
        ("toy", {}),
        ("toy", {"model.local_init": False}),
        ("toy", {"model.gpsa_layers": 0}),
        ("toy", {**VIT, "model.patch_size": 4, "model.locality_strength": 1.0}),
    ],
    "tcnn": [
        ("toy", {}),
        ("simmer", {}),
        ("finetune", {}),
        ("finetune", {"model.gate": "linear", "model.gate_logit": 10.0}),
    ],
}
"""Recipes each of whose objectives needs other fields: the presets that have them, and the switches turned on."""
SWITCHED_IN_PRESETS = {
    "families": {"last_norm", "predictor_last_norm", "freeze_patch"},
    "convit": {"local_init"},
}


def choices(name: str) -> list[tuple[str, dict[str, Any]]]:
    """Preset and changes for every objective of the recipe, as it is and with each switch of its network turned on."""
    if name in IN_PRESETS:
        return IN_PRESETS[name]
    config = recipes.named(name).presets["toy"]
    kind = get_type_hints(type(config.loss)).get("objective") if hasattr(config, "loss") else None
    objectives = [{"loss.objective": value} for value in get_args(kind)] if get_origin(kind) is Literal else [{}]
    networks = [{}, *(changes for switch, changes in SWITCHES.items() if hasattr(config.model, switch))]
    return [("toy", OWN.get(name, {}) | objective | network) for objective, network in product(objectives, networks)]


CASES = [(name, preset, changes) for name in TRAINED for preset, changes in choices(name)]


def without_gradient(name: str, preset: str, changes: dict[str, Any]) -> list[str]:
    """The trainable parameters that one step of the preset leaves without gradient, on the ranks there are."""
    recipe = recipes.named(name)
    config = override(recipe.presets[preset], {**SMALL, **changes})
    config.validate()
    splits = recipe.hide_labels(config, recipe.load(config, print))
    method = engine.build(recipe, config, steps=1)
    place = {"rank": collectives.rank(), "world_size": collectives.world_size()}
    batches = StepBatches(splits.train, seed=0, batch_size=16, encode=method.encode_texts, **place)
    if recipe.support:
        batches.support = recipe.support(config, splits.train, **place)
    optimizer = optim.build(config.optim, method.param_groups())
    strategy = slowmo.build(config.sync)
    model = strategy.wrap(method, optimizer)
    (batch,) = batches.stream(0, 1, workers=0, device=torch.device("cpu"))
    with strategy.hold(0, last=True):
        model(method.views(batch, 0))["loss"].backward()
    return [key for key, p in method.named_parameters() if p.requires_grad and p.grad is None]


def every_case() -> list[str]:
    """The cases with such parameters, in words."""
    found = [(*case, without_gradient(*case)) for case in CASES]
    return [f"{name} {preset} {changes}: {missing}" for name, preset, changes, missing in found if missing]


def test_the_cases_hold_every_recipe_and_every_objective():
    assert {name for name, _, _ in CASES} == set(TRAINED)
    objectives = {(name, changes.get("loss.objective")) for name, _, changes in CASES}
    assert {("paws", "simclr"), ("pmsn", "swav"), ("pmsn", "vicreg"), ("clip", "siglip")} <= objectives


@pytest.mark.parametrize("name", TRAINED)
def test_every_switch_of_the_model_group_is_among_the_cases(name):
    model = recipes.named(name).presets["toy"].model
    switches = {field.name for field in fields(model) if isinstance(getattr(model, field.name), bool)}
    known = set(SWITCHES) | SWITCHED_IN_PRESETS.get(name, set())
    assert switches - {"layer_scale"} <= known  # starts at zero: gradients are there, and zero for a step


@pytest.mark.parametrize(("name", "preset", "changes"), CASES, ids=lambda value: str(value).replace(" ", ""))
def test_every_trainable_parameter_has_a_gradient_after_a_step_of_one_process(name, preset, changes):
    assert without_gradient(name, preset, changes) == []


@pytest.mark.distributed
def test_every_trainable_parameter_has_a_gradient_after_a_step_of_two_processes():
    assert run_ranks(every_case, 2, max_seconds=300.0) == [[], []]
