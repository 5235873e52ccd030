# SPDX-License-Identifier: Apache-2.0
"""Ingredients compose: every recipe that trains takes every way to agree, every linear layer and every optimiser."""

import importlib.util
import json
import shutil
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
    "clip": CLIP,
    "switchback": CLIP,
}


def trained() -> list[str]:
    """The recipes that train a method."""
    return [name for name in recipes.MENU if isinstance(recipes.named(name), Recipe)]


def test_every_recipe_that_trains_is_in_the_matrix():
    assert set(trained()) == set(OWN)


def run_all(place: str) -> dict[str, str]:
    """Three steps of every combination, then the last of them again from the checkpoint before it: what went wrong."""
    faults = {}
    for name, (sync, linear, optimizer) in product(OWN, CHOICES):
        combination = f"{name} {sync} {linear} {optimizer}"
        changes = {"sync.name": sync, "model.linear": linear, "optim.name": optimizer}
        recipe = recipes.named(name)
        config = override(recipe.presets["toy"], {**SMALL, **OWN[name], **changes})
        whole, again = (Path(place) / f"{combination} {part}" for part in ("whole", "again"))
        recipe.run(config, whole)
        collectives.from_main(lambda whole=whole, again=again: unfinished(whole, again))
        recipe.run(config, again)
        weights, control = (checkpoint.read_weights(folder / "model.safetensors") for folder in (again, whole))
        other = [key for key in control if not torch.equal(weights[key], control[key])]
        if other or lines(again) != lines(whole) or len(lines(whole)) != 3:
            faults[combination] = f"resumed, it differs in {other[:3]}"
    return faults


def unfinished(whole: Path, folder: Path) -> None:
    """The run as it was before its last step."""
    shutil.copytree(whole, folder)
    shutil.rmtree(folder / "checkpoints" / "step-000003")
    (folder / "model.safetensors").unlink()
    (folder / "report.json").unlink()
    (folder / "state.json").write_text('{"status": "running", "step": 2}\n')


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_every_combination_runs_on_two_ranks_and_goes_on_bit_for_bit(tmp_path):
    assert run_ranks(run_all, 2, str(tmp_path), max_seconds=900.0) == [{}, {}]
