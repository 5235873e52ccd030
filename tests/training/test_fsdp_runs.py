# SPDX-License-Identifier: Apache-2.0
"""Runs whose ranks keep shares: they end as DDP's do, and any number of processes goes on from their checkpoints."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from recipes_lib import recipes
from recipes_lib.config import override
from recipes_lib.distributed import collectives
from recipes_lib.distributed.local import run_ranks
from recipes_lib.training import checkpoint

pytestmark = pytest.mark.distributed

STEPS = 4
SMALL = {
    "data.train_size": 32,
    "data.test_size": 20,
    "train.batch_size": 8,
    "train.steps": STEPS,
    "train.checkpoint_every": 2,
    "train.device": "cpu",
    "train.threads": 1,
    "eval.probes": [],
    "eval.baselines": "none",
}
OWN = {
    "msn": {  # its encoder computes twice a step, and its teacher follows in after_step
        "views.local_views": 1,
        "views.local_size": 8,
        "views.mask_ratio": 0.25,
        "model.hidden": 32,
        "model.dim": 16,
        "model.prototypes": 8,
    },
    "clip": {"model.arch": "vit_pico", "model.stem": "patch", "model.patch_size": 8, "model.dim": 16,
             "model.text_width": 32, "model.text_layers": 2},  # a temperature that is a scalar
}  # fmt: skip


def config(name: str, sync: str) -> object:
    return override(recipes.named(name).presets["toy"], SMALL | OWN[name] | {"sync.name": sync})


def train(name: str, sync: str, folder: Path) -> None:
    recipes.named(name).run(config(name, sync), folder)


def unfinished(whole: Path, folder: Path) -> Path:
    """The run as it was with two of its four steps done."""
    if collectives.is_main():
        shutil.copytree(whole, folder)
        shutil.rmtree(folder / "checkpoints" / f"step-{STEPS:06d}")
        (folder / "model.safetensors").unlink()
        (folder / "state.json").write_text('{"status": "running", "step": 2}\n')
    collectives.barrier()
    return folder


def everything(folder: str) -> int:
    for name in OWN:
        for sync in ("ddp", "fsdp"):
            train(name, sync, Path(folder, name, sync))
        train(name, "fsdp", unfinished(Path(folder, name, "fsdp"), Path(folder, name, "resumed")))
    return collectives.rank()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fsdp")
    assert run_ranks(everything, 2, str(folder), max_seconds=280.0) == [0, 1]
    return folder


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder: Path, file: str = "model.safetensors") -> dict[str, torch.Tensor]:
    return checkpoint.read_weights(folder / file)


@pytest.mark.parametrize("name", OWN)
def test_losses_and_norms_are_those_of_ddp(runs, name):
    ours, theirs = lines(runs / name / "fsdp"), lines(runs / name / "ddp")
    assert len(ours) == STEPS
    for key in ("loss", "grad_norm"):
        assert [line[key] for line in ours] == pytest.approx([line[key] for line in theirs], rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("name", OWN)
def test_files_are_whole_as_ddps_are(runs, name):
    last = f"checkpoints/step-{STEPS:06d}"
    for file in ("model.safetensors", f"{last}/model.safetensors", f"{last}/optimizer.safetensors"):
        ours, theirs = (weights(runs / name / sync, file) for sync in ("fsdp", "ddp"))
        assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in theirs.items()}
    assert sorted(path.name for path in (runs / name / "fsdp" / last).iterdir()) == sorted(
        path.name for path in (runs / name / "ddp" / last).iterdir()
    )
    ends = weights(runs / name / "fsdp"), weights(runs / name / "fsdp", f"{last}/model.safetensors")
    assert [key for key, value in ends[0].items() if not torch.equal(value, ends[1][key])] == []


@pytest.mark.parametrize("name", OWN)
def test_an_interrupted_run_ends_with_the_same_bits(runs, name):
    ours, control = (weights(runs / name / run) for run in ("resumed", "fsdp"))
    assert [key for key, value in control.items() if not torch.equal(ours[key], value)] == []
    assert lines(runs / name / "resumed") == lines(runs / name / "fsdp")


@pytest.mark.parametrize("name", OWN)
def test_one_process_goes_on_from_the_shares_of_two(runs, name, tmp_path):
    again = unfinished(runs / name / "fsdp", tmp_path / "run")
    train(name, "fsdp", again)
    found, control = lines(again), lines(runs / name / "fsdp")
    assert [line["step"] for line in found] == list(range(STEPS))
    assert [line["loss"] for line in found] == pytest.approx([line["loss"] for line in control], rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("name", OWN)
def test_the_report_counts_more_bytes_than_ddps(runs, name):
    ours, theirs = (json.loads((runs / name / sync / "report.json").read_text())["sync"] for sync in ("fsdp", "ddp"))
    assert (ours["name"], ours["rounds"]) == ("fsdp", STEPS)
    assert ours["bytes"] > theirs["bytes"]
