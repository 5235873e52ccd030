# SPDX-License-Identifier: Apache-2.0
"""Two processes train the same thing as one: the same images, views, masks, supports and batch statistics, summed in
another order."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from recipes_lib import recipes
from recipes_lib.config import override
from recipes_lib.distributed.batch_norm import CrossRankBatchNorm
from recipes_lib.distributed.local import run_ranks
from recipes_lib.pretraining import engine
from recipes_lib.training import checkpoint

TOLERANCE = 0.02
"""Largest distance between the two runs' weights, as a share of the way that training went."""


SHARED = {
    "data.train_size": 64,
    "data.test_size": 16,
    "model.hidden": 32,
    "model.dim": 16,
    "views.local_views": 1,
    "views.local_size": 8,
    "train.batch_size": 32,
    "train.steps": 4,
    "train.checkpoint_every": 4,
    "eval.probes": [],
    "eval.baselines": "none",
}
OWN = {
    # sgd: AdamW divides each gradient by its own size, which on some processors raised the rounding of small ones to .026
    "msn": {"model.prototypes": 8, "views.mask_ratio": 0.25, "optim.name": "sgd", "optim.lr": 0.01},
    # 10 classes x 3 copies x 2 views; the second process has the second half of the second copies
    "paws": {
        "data.name": "digits",
        "data.labels_per_class": 1,
        "data.support_images": 3,
        "data.support_views": 2,
        "data.replacement": True,
        "optim.name": "sgd",  # the sharpening of PAWS would raise once more what AdamW has raised
        "optim.lr": 2e-3,
        "model.predictor": True,
        "model.dim": 64,  # a predictor of 16 has 4 hidden units, and their ReLUs leave some embedding no direction
    },
}


def _config(name: str, **changes: float) -> object:
    return override(recipes.named(name).presets["toy"], SHARED | OWN[name] | changes)


def train_here(name: str, folder: str) -> list[str]:
    return [str(recipes.named(name).run(_config(name), Path(folder)).folder)]


@pytest.mark.distributed
@pytest.mark.parametrize("name", OWN)
def test_two_processes_end_with_the_weights_of_one(name, tmp_path):
    alone = Path(train_here(name, str(tmp_path / "one"))[0])
    both = run_ranks(train_here, 2, name, str(tmp_path / "two"))
    assert both == [[str(tmp_path / "two")]] * 2
    ours, control = (checkpoint.read_weights(folder / "model.safetensors") for folder in (tmp_path / "two", alone))
    start = _initial(name)
    moved = torch.cat([(control[key] - start[key]).flatten() for key in start])
    apart = torch.cat([(ours[key] - control[key]).flatten() for key in start])
    # float32 sums over the batch come in another order on two ranks
    assert apart.norm() <= TOLERANCE * moved.norm()
    losses = [[line["loss"] for line in _lines(folder)] for folder in (tmp_path / "two", alone)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4, abs=1e-4)  # PAWS's loss passes through 0


@pytest.mark.parametrize("name", OWN)
def test_the_comparison_can_tell_other_views_apart(name, tmp_path):
    start = _initial(name)
    configs = [_config(name, **{"views.noise": noise}) for noise in (0.1, 0.11)]
    paths = [recipes.named(name).run(config, tmp_path / str(n)).folder for n, config in enumerate(configs)]
    first, second = (checkpoint.read_weights(path / "model.safetensors") for path in paths)
    moved = torch.cat([(first[key] - start[key]).flatten() for key in start])
    apart = torch.cat([(first[key] - second[key]).flatten() for key in start])
    assert apart.norm() > 3 * TOLERANCE * moved.norm()


def _initial(name: str) -> dict[str, torch.Tensor]:
    """The trained weights before training, less the biases that a batch norm follows: their gradient is nothing but
    rounding, which AdamW blows up to full steps in random directions, and which the batch norm takes away again."""
    method = engine.build(recipes.named(name), _config(name), steps=4)
    layers = [(key, layer) for key, layer in method.named_modules() if not list(layer.children())]
    idle = {
        f"{key}.bias"
        for (key, layer), (_, following) in pairwise(layers)
        if isinstance(layer, torch.nn.Linear) and isinstance(following, CrossRankBatchNorm)
    }
    return {key: p.detach() for key, p in method.named_parameters() if p.requires_grad and key not in idle}


def _lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
