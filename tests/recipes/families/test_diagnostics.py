# SPDX-License-Identifier: Apache-2.0
"""The numbers beside the scores: spread, rank and the loss on test images."""

import math

import pytest
import torch

from recipes_lib.config import override
from recipes_lib.data.images import ImageSet
from recipes_lib.data.load import Splits
from recipes_lib.evaluation.features import Features
from recipes_lib.pretraining import engine
from recipes_lib.recipes.families import recipe
from recipes_lib.recipes.families.diagnostics import diagnostics, held_out_loss

CONFIG = override(
    recipe.PRESETS["nnclr_toy"],
    {"model.hidden": 16, "model.dim": 4, "loss.queue": 16, "train.batch_size": 8, "views.image_size": 16},
)


def images(count: int) -> ImageSet:
    pixels = torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return ImageSet(pixels, torch.zeros(count, dtype=torch.int64), ("any",))


def features(rows: torch.Tensor, embedding: torch.Tensor | None) -> tuple[Features, Features]:
    return (Features(rows, rows, embedding),) * 2


def test_the_loss_on_test_images_leaves_the_method_as_it_was():
    method = engine.build(recipe.RECIPE, CONFIG, steps=10).eval()
    before = {key: value.clone() for key, value in method.state_dict().items()}
    loss = held_out_loss(method, images(32))
    assert math.isfinite(loss)
    assert not method.training
    assert all(torch.equal(value, before[key]) for key, value in method.state_dict().items())
    assert held_out_loss(method, images(32)) == loss


def test_the_loss_is_the_mean_over_the_first_batches():
    method = engine.build(recipe.RECIPE, override(CONFIG, {"loss.objective": "simclr"} | SIMCLR), steps=10)
    four, one = images(64), images(64)
    assert held_out_loss(method, four.select(torch.arange(32))) == held_out_loss(method, four)
    assert held_out_loss(method, one.select(torch.arange(8))) != held_out_loss(method, four)


SIMCLR = {"loss.queue": 0, "model.predictor_layers": 0, "model.predictor_hidden": 4096}


def test_embeddings_are_described_if_there_are_any_and_features_in_any_case():
    method = engine.build(recipe.RECIPE, CONFIG, steps=10)
    spread = torch.cat([torch.eye(4), -torch.eye(4)])
    same = torch.ones(8, 4)
    images_of = Splits(images(4), images(4))  # fewer than a batch: there is no loss
    found = diagnostics(method, features(spread, same), images_of)
    assert found["std"] == found["raw_std"] == 0
    assert found["rank"] == pytest.approx(1, abs=1e-4)
    assert found["rank_features"] == pytest.approx(4, abs=1e-4)
    assert "held_out_loss" not in found
    alone = diagnostics(method, features(spread, None), images_of)
    assert alone["rank"] == found["rank_features"]
    assert alone["std"] == pytest.approx(1, abs=0.1)
    assert "held_out_loss" in diagnostics(method, features(spread, None), Splits(images(8), images(8)))


def test_features_that_are_all_zero_have_rank_one():
    method = engine.build(recipe.RECIPE, CONFIG, steps=10)
    assert diagnostics(method, features(torch.zeros(8, 4), None), Splits(images(4), images(4)))["rank"] == 1
