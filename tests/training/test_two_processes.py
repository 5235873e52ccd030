# SPDX-License-Identifier: Apache-2.0
"""Two processes train the same thing as one: the same images, views, masks and batch statistics, summed in another order."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from recipes_lib.config import override
from recipes_lib.distributed.batch_norm import CrossRankBatchNorm
from recipes_lib.distributed.local import run_ranks
from recipes_lib.recipes import msn, pretraining
from recipes_lib.training import checkpoint

TOLERANCE = 0.02
"""Largest distance between the two runs' weights, as a share of the way that training went."""


def _config() -> msn.Config:
    return override(
        msn.PRESETS["toy"],
        {
            "data.train_size": 64,
            "data.test_size": 16,
            "model.hidden": 32,
            "model.dim": 16,
            "model.prototypes": 8,
            "views.mask_ratio": 0.25,
            "views.local_views": 1,
            "views.local_size": 8,
            "train.batch_size": 32,
            "train.steps": 4,
            "train.checkpoint_every": 4,
            "eval.probes": [],
            "eval.baselines": "none",
        },
    )


def train_here(folder: str) -> list[str]:
    return [str(msn.run(_config(), Path(folder)).folder)]


@pytest.mark.distributed
def test_two_processes_end_with_the_weights_of_one(tmp_path):
    alone = Path(train_here(str(tmp_path / "one"))[0])
    both = run_ranks(train_here, 2, str(tmp_path / "two"))
    assert both == [[str(tmp_path / "two")]] * 2
    ours, control = (checkpoint.read_weights(folder / "model.safetensors") for folder in (tmp_path / "two", alone))
    start = _initial()
    moved = torch.cat([(control[name] - start[name]).flatten() for name in start])
    apart = torch.cat([(ours[name] - control[name]).flatten() for name in start])
    # float32 sums over the batch come in another order on two ranks, and AdamW divides each gradient by its own
    # size, which raises the rounding of small ones
    assert apart.norm() <= TOLERANCE * moved.norm()
    losses = [[line["loss"] for line in _lines(folder)] for folder in (tmp_path / "two", alone)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_the_comparison_can_tell_other_views_apart(tmp_path):
    start = _initial()
    paths = [
        msn.run(override(_config(), {"views.noise": noise}), tmp_path / str(noise)).folder for noise in (0.1, 0.11)
    ]
    first, second = (checkpoint.read_weights(path / "model.safetensors") for path in paths)
    moved = torch.cat([(first[name] - start[name]).flatten() for name in start])
    apart = torch.cat([(first[name] - second[name]).flatten() for name in start])
    assert apart.norm() > 3 * TOLERANCE * moved.norm()


def _initial() -> dict[str, torch.Tensor]:
    """The anchor's weights before training, less the biases that a batch norm follows: their gradient is nothing but
    rounding, which AdamW blows up to full steps in random directions, and which the batch norm takes away again."""
    method = pretraining.build(msn, _config(), steps=4)
    idle = [
        f"anchor.head.{name}.bias"
        for (name, layer), (_, following) in pairwise(method.anchor.head.named_modules())
        if isinstance(layer, torch.nn.Linear) and isinstance(following, CrossRankBatchNorm)
    ]
    return {name: p.detach() for name, p in method.anchor.named_parameters(prefix="anchor") if name not in idle}


def _lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
