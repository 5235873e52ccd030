# SPDX-License-Identifier: Apache-2.0
"""Two gloo processes train, and what they sent, wrote and kept is what a plan for two had said."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from recipes_lib import recipes
from recipes_lib.config import override
from recipes_lib.data.loader import Batch
from recipes_lib.distributed.local import run_ranks
from recipes_lib.launch import plan, trace
from recipes_lib.pretraining import engine

pytestmark = pytest.mark.distributed

SMALL = {
    "data.name": "digits",
    "data.image_size": 16,
    "data.train_size": 64,
    "data.test_size": 20,
    "views.image_size": 16,
    "model.arch": "vit_nano",
    "model.stem": "patch",
    "model.patch_size": 8,
    "train.batch_size": 8,
    "train.steps": 5,
    "train.checkpoint_every": 2,
    "eval.probes": [],
    "eval.baselines": "none",
}
MSN = {
    **SMALL,
    "views.local_views": 1,
    "views.local_size": 16,
    "model.hidden": 32,
    "model.dim": 16,
    "model.prototypes": 8,
}
NET = {**SMALL, "model.arch": "convnet", "model.stem": "imagenet", "sync.workers": 0}
RUNS = {
    "ddp": ("local_sgd", {**NET, "sync.name": "ddp"}),
    "local_sgd": ("local_sgd", {**NET, "sync.name": "local_sgd", "sync.period": 2}),
    "averaged": (
        "local_sgd",
        {**NET, "sync.name": "post_local_sgd", "sync.start": 1, "sync.period": 2, "sync.buffers": "average"},
    ),
    "slowmo": ("msn", {**MSN, "sync.name": "slowmo", "sync.start": 2, "sync.period": 3}),
    "fsdp": ("local_sgd", {**SMALL, "sync.workers": 0, "sync.name": "fsdp", "train.accumulate": 2}),
}


def config_of(run: str) -> tuple[str, Any]:
    name, changes = RUNS[run]
    return name, override(recipes.named(name).presets["toy"], changes)


def train_and_count(place: str) -> list[int]:
    """Runs everything; returns the operations and the bytes of a step of PAWS, whose loss and batch norms gather."""
    for run in RUNS:
        name, config = config_of(run)
        recipes.named(name).run(config, Path(place) / run)
    config = recipes.named("paws").presets["toy"]
    method = engine.build(recipes.named("paws"), config, 10)
    images = torch.zeros(32, 3, 16, 16, dtype=torch.uint8)
    rows = Batch(torch.arange(20), 0, images[:20], None, torch.arange(20) % 10)
    found = trace.count(method, method.views(Batch(torch.arange(32), 0, images, None, None, rows), 0), precision="fp32")
    return [found.flops, found.activations]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def counted(place) -> list[list[int]]:
    return run_ranks(train_and_count, 2, str(place))


@pytest.mark.parametrize("run", RUNS)
def test_bytes_sent_and_written_are_the_planned_ones(run, place, counted):
    name, config = config_of(run)
    planned = plan.plan(name, config, world=2)
    sent = json.loads((place / run / "report.json").read_text())["sync"]
    assert (sent["bytes"], sent["rounds"]) == (planned.wire_bytes_total, planned.averagings)
    files = sorted((place / run / "checkpoints" / "step-000004").glob("*.safetensors"))
    assert sum(map(tensor_bytes, files)) == planned.checkpoint_bytes


def tensor_bytes(path: Path) -> int:
    """Of the tensors in a file, its header left out."""
    with safe_open(path, "pt") as file:
        return sum(file.get_tensor(name).nbytes for name in file.keys())  # noqa: SIM118


def test_what_gathers_is_planned_with_the_other_ranks_rows(counted):
    config = override(recipes.named("paws").presets["toy"], {"train.batch_size": 64})
    planned = plan.plan("paws", config, world=2)
    assert [[2 * flops, kept] for flops, kept in counted] == [
        [planned.flops_per_step, planned.memory["activations"]]
    ] * 2
    assert (
        planned.memory["activations"]
        > plan.plan("paws", override(config, {"train.batch_size": 32}), world=1).memory["activations"]
    )
