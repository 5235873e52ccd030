# SPDX-License-Identifier: Apache-2.0
"""The map of systems says of each method of the families what its code does."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from recipes_lib.config import override
from recipes_lib.data.images import ImageSet
from recipes_lib.data.loader import StepBatches
from recipes_lib.pretraining import engine
from recipes_lib.recipes import MENU
from recipes_lib.recipes.families import recipe
from recipes_lib.recipes.families.masked import BEiT
from recipes_lib.recipes.families.settings import MASKED, WITH_TEACHER
from recipes_lib.systems import SYSTEMS

BATCH = 8
SMALL = {
    "train.batch_size": BATCH,
    "model.hidden": 16,
    "model.dim": 4,
    "optim.warmup_epochs": 0.0,
}
OWN = {
    "nnclr": {"loss.queue": 16},
    "moco_v2": {"loss.queue": 16},
    "w_mse": {"loss.whitening_size": 8},
    "swav": {"model.prototypes": 8},
    "dino": {"model.prototypes": 8},
    "lejepa": {"loss.slices": 8},
    "beit": {"loss.codes": 4},
}
FAMILIES = list(recipe.METHODS)


def built(name: str) -> tuple[torch.nn.Module, StepBatches]:
    preset = recipe.PRESETS[f"{name}_toy"]
    read = {"model.hidden", "model.dim"} if name in (*MASKED, "rotation") else set()  # these have no projector
    config = override(preset, {key: value for key, value in SMALL.items() if key not in read} | OWN.get(name, {}))
    pixels = torch.randint(0, 256, (32, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = ImageSet(pixels, torch.zeros(32, dtype=torch.int64), ("any",))
    batches = StepBatches(images, seed=0, batch_size=BATCH)
    method = engine.build(recipe.RECIPE, config, steps=10)
    if isinstance(method, BEiT):
        method.fit_words(batches)
    return method, batches


def test_every_method_of_the_families_is_on_the_map_in_their_order():
    assert [name for name, system in SYSTEMS.items() if system.chapter == "families"] == FAMILIES


def test_every_system_has_a_chapter_and_a_paper_in_the_bibliography():
    keys = set(
        re.findall(r"^@\w+\{(\w+),", (Path(__file__).parents[1] / "book/references.bib").read_text(), re.MULTILINE)
    )
    assert {system.chapter for system in SYSTEMS.values()} <= set(MENU)
    assert {system.cite for system in SYSTEMS.values()} <= keys


@pytest.mark.parametrize("name", FAMILIES)
def test_a_teacher_is_what_follows_the_network_and_has_no_gradient(name):
    method, _ = built(name)
    still = [parameter for parameter in method.parameters() if not parameter.requires_grad]
    before = [parameter.clone() for parameter in still]
    with torch.no_grad():
        for parameter in method.parameters():
            if parameter.requires_grad:
                parameter.add_(1.0)
    method.after_step(0)
    followed = any(not torch.equal(now, then) for now, then in zip(still, before, strict=True))
    assert followed == SYSTEMS[name].teacher == (name in WITH_TEACHER)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_loss_is_coupled_to_the_batch_where_the_map_says_so(name):
    """If each image had its own term, changing the first image would matter equally whatever the last one is.

    Measured in evaluation mode, where batch norm couples nothing.
    """
    method, batches = built(name)
    method.eval().double()
    batch, state = batches[0], {key: value.clone() for key, value in method.state_dict().items()}

    @torch.no_grad()
    def loss_of(first: bool, last: bool) -> float:
        """The loss with the first image, the last image or both inverted."""
        images = batch.images.clone()
        for place in [0] * first + [-1] * last:
            images[place] = 255 - images[place]
        method.load_state_dict(state)  # a queue or a centre moves
        views = method.views(replace(batch, images=images), 0)
        doubled = {
            key: v.double() if isinstance(v, torch.Tensor) and v.is_floating_point() else v for key, v in views.items()
        }
        return method(doubled)["loss"].item()

    mixed = loss_of(True, True) - loss_of(True, False) - loss_of(False, True) + loss_of(False, False)
    assert (abs(mixed) > 1e-11) == SYSTEMS[name].batch_coupled


def test_a_predictor_is_there_where_the_map_says_so():
    having = {name for name in FAMILIES if any(part == "predictor" for part, _ in built(name)[0].named_children())}
    assert having == {name for name in FAMILIES if SYSTEMS[name].predictor}


def test_the_methods_that_hide_patches_are_those_of_the_settings():
    assert {name for name in FAMILIES if SYSTEMS[name].masking} == set(MASKED)
