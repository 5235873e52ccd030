# SPDX-License-Identifier: Apache-2.0
"""Rotation as a method: which way the images turn, what is counted, and what a network can and cannot tell."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from recipes_lib.config import override
from recipes_lib.data.loader import Batch
from recipes_lib.distributed.local import run_ranks
from recipes_lib.pretraining import engine
from recipes_lib.recipes.families import recipe, rotation
from recipes_lib.training import checkpoint

TINY = override(
    recipe.PRESETS["rotation_toy"],
    {
        "data.train_size": 64,
        "data.test_size": 16,
        "train.batch_size": 16,
        "train.steps": 4,
        "train.checkpoint_every": 4,
        "optim.name": "sgd",
        "optim.lr": 0.05,
        "eval.probes": [],
        "eval.baselines": "none",
    },
)


def built(config: recipe.Config = TINY) -> rotation.Rotation:
    return engine.build(recipe.RECIPE, config, steps=4).train()


def batch(size: int = 8) -> Batch:
    images = torch.randint(0, 256, (size, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return Batch(torch.arange(size), 0, images, None, None)


class Recorder(nn.Module):
    """A backbone that keeps its input; its features are the pixels of one corner."""

    num_features = 3

    def forward(self, images: Tensor) -> Tensor:
        self.seen = images
        return images[:, :, 0, 0]


def test_every_view_is_shown_in_four_rotations_in_the_order_of_the_answers():
    method = built()
    method.backbone, method.head = Recorder(), nn.Linear(3, 4)
    views = method.views(batch(), 0)
    method(views)
    turned = method.backbone.seen.unflatten(0, (4, 8))
    for quarters in range(4):
        want = np.rot90(views["large"].numpy(), quarters, axes=(2, 3))
        np.testing.assert_array_equal(turned[quarters].numpy(), want)


def test_one_view_of_an_image_is_cut_and_it_is_not_coloured():
    views = built().views(batch(), 0)
    assert views["large"].shape == (8, 3, 32, 32)
    assert TINY.views.jitter == TINY.views.grayscale == TINY.views.blur == 0


def test_a_head_that_says_nothing_costs_log_4_and_one_that_knows_costs_nothing():
    method = built()
    with torch.no_grad():
        method.head.weight.zero_()
        method.head.bias.zero_()
    parts = method(method.views(batch(), 0))
    assert parts["loss"].item() == pytest.approx(math.log(4), abs=1e-6)
    assert parts["rotation_accuracy"].item() == 0.25  # the first of four equal answers is right once
    method.backbone, method.head = Recorder(), nn.Linear(3, 4)
    with torch.no_grad():
        method.head.weight.copy_(100 * torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [-1, -1, -1]]))
        method.head.bias.zero_()
    images = torch.zeros(2, 3, 4, 4)  # the corner that comes to the top left tells how often the image was turned
    images[:, 0, 0, 0] = images[:, 1, 0, 3] = images[:, 2, 3, 3] = 1
    images[:, :, 3, 0] = -1
    parts = method({"large": images, "small": None, "step": 0})
    assert parts["rotation_accuracy"] == 1
    assert parts["loss"] < 1e-6


def test_the_gradient_reaches_backbone_and_head_and_only_the_loss_carries_a_graph():
    method = built()
    parts = method(method.views(batch(), 0))
    parts["loss"].backward()
    assert all(weight.grad is not None for weight in method.parameters())
    assert {name for name, value in parts.items() if value.requires_grad} == {"loss"}


def test_images_without_an_upright_teach_nothing():
    """A picture that looks the same from all sides: no network can do better than chance."""
    method = built()
    x = torch.linspace(-1, 1, 32)
    disc = ((x[:, None] ** 2 + x**2) < 0.5).float().expand(8, 3, 32, 32).contiguous()
    parts = method.eval()({"large": disc, "small": None, "step": 0})
    assert parts["rotation_accuracy"] == 0.25
    assert parts["loss"] >= math.log(4) - 1e-4


def test_the_paper_scale_preset_has_the_authors_optimiser():
    config = recipe.PRESETS["rotation_rn50_imagenet"]
    assert (config.optim.name, config.optim.lr, config.optim.lr_drops) == ("sgd", 0.1, (15.0, 30.0, 45.0))
    assert (config.optim.weight_decay, config.train.batch_size, config.train.epochs) == (5e-4, 192, 50.0)


def weights_of(folder: str) -> dict[str, Tensor]:
    recipe.RECIPE.run(TINY, Path(folder))
    return checkpoint.read_weights(Path(folder) / "model.safetensors")


@pytest.mark.distributed
def test_two_processes_end_with_the_weights_of_one(tmp_path):
    alone = weights_of(str(tmp_path / "one"))
    start = {name: weight.detach() for name, weight in built().named_parameters()}
    moved = torch.cat([(alone[name] - start[name]).flatten() for name in start])
    assert moved.norm() > 0.1
    for ours in run_ranks(weights_of, 2, str(tmp_path / "two")):
        apart = torch.cat([(ours[name] - alone[name]).flatten() for name in start])
        assert apart.norm() <= 0.02 * moved.norm()  # float32 sums over the batch come in another order on two ranks
