# SPDX-License-Identifier: Apache-2.0
"""LeJEPA as a method: its directions, its terms, its resume, and two processes that equal one."""

import shutil
from pathlib import Path

import pytest
import torch

from recipes_lib.config import override
from recipes_lib.data.loader import Batch
from recipes_lib.distributed.local import run_ranks
from recipes_lib.pretraining import engine, runs
from recipes_lib.recipes.families import recipe
from recipes_lib.training import checkpoint

TINY = override(
    recipe.PRESETS["lejepa_toy"],
    {
        "data.train_size": 96,
        "data.test_size": 8,
        "model.hidden": 32,
        "model.dim": 16,
        "loss.slices": 24,
        "views.local_views": 2,
        "views.local_size": 16,
        "train.batch_size": 32,
        "train.steps": 4,
        "train.checkpoint_every": 2,
        "train.device": "cpu",
        "eval.probes": [],
        "eval.baselines": "none",
    },
)


def method(config=TINY):
    return engine.build(recipe.RECIPE, config, steps=4)


def batch(size: int = 32) -> Batch:
    images = torch.randint(0, 256, (size, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return Batch(torch.arange(size), 0, images, None, None)


def test_directions_change_with_the_step_and_the_seed_and_with_nothing_else():
    model = method()
    first, again, next_step = (model.views(batch(size), step)["directions"] for size, step in ((32, 3), (8, 3), (8, 4)))
    assert first.shape == (16, 24)
    assert torch.equal(first, again)
    assert not torch.equal(first, next_step)
    other = method(override(TINY, {"train.seed": 1}))
    assert not torch.equal(first, other.views(batch(), 3)["directions"])


def test_every_view_enters_the_loss():
    """A change of one small view changes the loss: public ports gave SIGReg the small or the large views only."""
    model = method(override(TINY, {"loss.sigreg_weight": 1.0})).eval()  # eval: batch norms do not couple the views
    views = model.views(batch(), 0)
    views["large"].requires_grad_()
    views["small"].requires_grad_()
    model(views)["loss"].backward()
    for name in ("large", "small"):
        per_view = views[name].grad.unflatten(0, (2, 32)).abs().sum(dim=(2, 3, 4))
        assert (per_view > 0).all(), name


def test_a_step_reports_both_terms_and_the_spread_and_reaches_every_parameter():
    model = method()
    parts = model(model.views(batch(), 0))
    assert parts.keys() == {"loss", "prediction", "sigreg", "std"}
    torch.testing.assert_close(parts["loss"], 0.95 * parts["prediction"] + 0.05 * parts["sigreg"])
    parts["loss"].backward()
    assert all(p.grad is not None for p in model.parameters())


def test_a_run_that_stopped_goes_on_to_the_same_bits(tmp_path):
    whole = engine.pretrain(recipe.RECIPE, TINY, tmp_path / "whole").folder
    folder = tmp_path / "stopped"
    shutil.copytree(whole, folder)
    shutil.rmtree(folder / "checkpoints" / "step-000004")
    for file in ("model.safetensors", "report.json"):
        (folder / file).unlink()
    (folder / "state.json").write_text('{"status": "interrupted", "step": 2}\n')
    runs.resume(recipe.RECIPE, folder)
    for file in ("model.safetensors", "metrics.jsonl"):
        assert (folder / file).read_bytes() == (whole / file).read_bytes(), file


def test_the_paper_presets_have_the_released_values():
    example, large = recipe.PRESETS["lejepa_vits8_imagenette"], recipe.PRESETS["lejepa_vitl14_imagenet"]
    assert (example.loss.sigreg_weight, example.loss.slices, example.loss.knots) == (0.02, 256, 17)
    assert (example.views.global_views, example.model.dim, example.train.batch_size) == (3, 16, 256)
    assert (example.optim.lr, example.optim.lr_final, example.train.epochs) == (2e-3, 1e-3, 800)
    assert (large.loss.sigreg_weight, large.loss.slices, large.loss.knots) == (0.05, 1024, 17)
    assert (large.views.global_views, large.views.local_views, large.views.local_size) == (1, 6, 98)
    assert (large.optim.lr, large.optim.weight_decay, large.train.epochs) == (5e-4, 0.05, 100)


def train(folder: str) -> str:
    given = override(TINY, {"optim.name": "sgd", "optim.lr": 1e-3})
    return str(engine.pretrain(recipe.RECIPE, given, Path(folder)).folder)


@pytest.mark.distributed
def test_two_processes_train_the_same_weights_as_one(tmp_path):
    alone = Path(train(str(tmp_path / "alone")))
    both = Path(run_ranks(train, 2, str(tmp_path / "both"))[0])
    begun = method().state_dict()
    one, two = (checkpoint.read_weights(folder / "model.safetensors") for folder in (alone, both))
    weights = [key for key in one if "running" not in key and "num_batches" not in key]
    way = sum((one[key] - begun[key]).double().square().sum() for key in weights) ** 0.5
    apart = sum((one[key] - two[key]).double().square().sum() for key in weights) ** 0.5
    assert way > 0
    assert apart < 1e-3 * way
