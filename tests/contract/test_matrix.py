# SPDX-License-Identifier: Apache-2.0
"""Ingredients compose: every recipe that trains takes every way to agree, every linear layer and every optimiser."""

import importlib.util
import json
import shutil
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch

from recipes_lib import recipes
from recipes_lib.config import override
from recipes_lib.distributed import collectives
from recipes_lib.distributed.local import run_ranks
from recipes_lib.pretraining.recipe import Recipe
from recipes_lib.training import checkpoint

pytestmark = pytest.mark.distributed

LINEARS = ("full", "switchback")
EIGHT_BIT = ("adamw8bit",) if importlib.util.find_spec("bitsandbytes") else ()
CHOICES = [
    *product(("ddp", "local_sgd", "slowmo"), LINEARS, ("adamw", "stable_adamw")),
    *product(("ddp", "slowmo"), ("full",), EIGHT_BIT),
    *product(("fsdp",), LINEARS, ("adamw",)),  # the others need whole tensors: refused there
]
SMALL = {
    "data.train_size": 32,
    "data.test_size": 20,
    "train.batch_size": 8,
    "train.steps": 3,
    "train.checkpoint_every": 2,
    "train.keep_checkpoints": 2,
    "train.device": "cpu",
    "train.threads": 1,
    "eval.probes": [],
    "eval.baselines": "none",
    "sync.period": 2,
}
VIT = {"model.arch": "vit_pico", "model.stem": "patch", "model.patch_size": 8}
DIGITS = {"data.name": "digits", "data.train_size": 64}
MSN = {**DIGITS, "model.hidden": 32, "model.dim": 16, "model.prototypes": 8}
CLIP = {**VIT, "model.dim": 16, "model.text_width": 32, "model.text_layers": 1}
OWN = {
    "families": {**DIGITS, **VIT, "model.hidden": 32, "model.dim": 16},
    "msn": MSN,
    "pmsn": {**MSN, "data.tail": 0.0},
    "paws": {
        **DIGITS,
        **VIT,
        "data.labels_per_class": 2,
        "data.support_images": 1,
        "model.hidden": 32,
        "model.dim": 16,
    },
    "local_sgd": {**DIGITS, **VIT, "data.image_size": 16, "views.image_size": 16, "sync.workers": 0},
    "convit": {"model.arch": "convit_pico", "model.patch_size": 2},
    "tcnn": {},
    "clip": CLIP,
    "switchback": CLIP,
}


WITHOUT_BLOCKS = {"tcnn"}
"""Recipes whose networks have no transformer's blocks, whose linear layers switchback would convert."""


def choices(name: str) -> list[tuple[str, str, str]]:
    """The combinations that a recipe allows."""
    return [choice for choice in CHOICES if choice[1] == "full" or name not in WITHOUT_BLOCKS]


def combination(name: str, choice: tuple[str, str, str]) -> str:
    """How a combination is called in test ids and folders: ``msn slowmo switchback adamw``."""
    return " ".join((name, *choice))


def trained() -> list[str]:
    """The recipes that train a method."""
    return [name for name in recipes.MENU if isinstance(recipes.named(name), Recipe)]


def test_every_recipe_that_trains_is_in_the_matrix():
    assert set(trained()) == set(OWN)


def run_all(place: str) -> dict[str, str]:
    """Three steps of every combination, then the last of them again from the checkpoint before it: what went wrong."""
    faults = {}
    for name in OWN:
        recipe = recipes.named(name)
        images = recipe.load(override(recipe.presets["toy"], {**SMALL, **OWN[name]}), print)
        recipe = replace(recipe, load=lambda config, warn, images=images: images)  # the same in every combination
        for choice in choices(name):
            try:
                fault = fault_of(recipe, choice, Path(place))
            except Exception as error:  # of this combination: the others have their own tests
                fault = f"{type(error).__name__}: {error}"
            if fault:
                faults[combination(name, choice)] = fault
    return faults


def fault_of(recipe: Recipe, choice: tuple[str, str, str], place: Path) -> str:
    """What is wrong with a run of one combination that was stopped and went on; empty where nothing is."""
    changes = dict(zip(("sync.name", "model.linear", "optim.name"), choice, strict=True))
    config = override(recipe.presets["toy"], {**SMALL, **OWN[recipe.name], **changes})
    whole, again = (place / f"{combination(recipe.name, choice)} {part}" for part in ("whole", "again"))
    recipe.run(config, whole)
    collectives.from_main(lambda: unfinished(whole, again))
    recipe.run(config, again)
    weights, control = (checkpoint.read_weights(folder / "model.safetensors") for folder in (again, whole))
    other = [key for key in control if not torch.equal(weights[key], control[key])]
    if other or lines(again) != lines(whole):
        return f"resumed, it differs in {other[:3] or 'its metrics'}"
    return "" if len(lines(whole)) == 3 else f"it logged {len(lines(whole))} of 3 steps"


def unfinished(whole: Path, folder: Path) -> None:
    """The run as it was before its last step."""
    shutil.copytree(whole, folder)
    shutil.rmtree(folder / "checkpoints" / "step-000003")
    (folder / "model.safetensors").unlink()
    (folder / "report.json").unlink()
    (folder / "state.json").write_text('{"status": "running", "step": 2}\n')


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """What went wrong on each of two ranks, by combination. They run all combinations, once."""
    return run_ranks(run_all, 2, str(tmp_path_factory.mktemp("matrix")), max_seconds=900.0)


@pytest.mark.parametrize("wanted", [combination(name, choice) for name in OWN for choice in choices(name)])
def test_a_combination_runs_on_two_ranks_and_goes_on_bit_for_bit(wanted, faults):
    assert [of_rank.get(wanted, "") for of_rank in faults] == ["", ""]
