# SPDX-License-Identifier: Apache-2.0
"""Runs of simulated workers: they end where as many processes end, and go on bit for bit where they were stopped."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from torch import Tensor

from recipes_lib.config import override
from recipes_lib.distributed.local import run_ranks
from recipes_lib.errors import Diverged, Interrupted
from recipes_lib.pretraining import engine
from recipes_lib.recipes.local_sgd import recipe as local_sgd
from recipes_lib.training import checkpoint, log

STEPS = 11  # rounds of 4: the last one is incomplete
BASE = override(
    local_sgd.PRESETS["toy"],
    {
        "data.train_size": 96,
        "data.test_size": 32,
        "model.width": 16,
        "optim.clip": 0.5,
        "optim.weight_decay": 0.01,
        "sync.workers": 2,
        "sync.period": 4,
        "train.batch_size": 16,
        "train.steps": STEPS,
        "train.checkpoint_every": 3,
        "eval.baselines": "none",
    },
)
SLOWMO = override(BASE, {"sync.name": "slowmo", "sync.momentum": 0.6})
ARMS = {
    "ddp": {"sync.name": "ddp"},
    "local": {"sync.buffers": "reset"},
    "post": {"sync.name": "post_local_sgd", "sync.start": 5, "sync.buffers": "average"},
    "slowmo": {"sync.name": "slowmo", "sync.momentum": 0.6},
    "adamw": {"optim.name": "adamw", "optim.lr": 0.01},
}


def train(place: str, workers: int) -> int:
    """Every arm, by simulated workers or by the processes that this is one of."""
    for name, changes in ARMS.items():
        local_sgd.RECIPE.run(override(BASE, {**changes, "sync.workers": workers}), Path(place) / name)
    return 0


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder: Path) -> dict[str, Tensor]:
    return checkpoint.read_weights(folder / "model.safetensors")


def same_bits(one: Path, other: Path) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The arms' run folders, by two simulated workers and by two processes."""
    simulated, real = tmp_path_factory.mktemp("simulated"), tmp_path_factory.mktemp("real")
    train(str(simulated), workers=2)
    run_ranks(train, 2, str(real), 0, max_seconds=300.0)
    return simulated, real


@pytest.mark.distributed
@pytest.mark.parametrize("name", ARMS)
def test_two_simulated_workers_end_where_two_processes_end(places, name):
    ours, theirs = (place / name for place in places)
    mine, his = weights(ours), weights(theirs)
    assert mine.keys() == his.keys()
    assert max((mine[key] - his[key]).abs().max().item() for key in mine) <= 1e-5
    start = engine.build(local_sgd.RECIPE, BASE, steps=1).state_dict()
    assert max((mine[key] - start[key]).abs().max().item() for key in mine) > 1e-2  # it did not stay where it was


@pytest.mark.distributed
@pytest.mark.parametrize("name", ARMS)
def test_every_line_has_the_figures_that_processes_log(places, name):
    ours, theirs = (lines(place / name) for place in places)
    assert [line["step"] for line in ours] == list(range(STEPS))
    for mine, his in zip(ours, theirs, strict=True):
        assert set(mine) == {*his, "drift"}
        assert mine == {**mine, **{key: pytest.approx(value, rel=1e-3, abs=1e-5) for key, value in his.items()}}
    sent = [json.loads((place / name / "report.json").read_text())["sync"] for place in places]
    assert sent[0] == sent[1]


def test_drift_is_nothing_where_a_round_ends_and_something_between(tmp_path):
    local_sgd.RECIPE.run(BASE, tmp_path / "run")
    drift = [line["drift"] for line in lines(tmp_path / "run")]
    assert [step for step, value in enumerate(drift) if value < 1e-6] == [3, 7, 10]


def stopping(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """The process is asked to end after ``step``."""
    write = log.RunLog.step

    def step_then_ask(self: log.RunLog, number: int, metrics: dict) -> None:
        write(self, number, metrics)
        if number == step:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(log.RunLog, "step", step_then_ask)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    local_sgd.RECIPE.run(SLOWMO, folder)
    return folder


def test_a_signal_inside_a_round_leaves_a_run_that_goes_on_bit_for_bit(whole, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    stopping(monkeypatch, 6)  # within the second round, whose start and slow momentum are not zero
    # the loop asks for signals before it writes the step's line, so this one is answered after the next
    with pytest.raises(Interrupted, match=rf"after step 8 of {STEPS}. Go on: recipes resume") as stopped:
        local_sgd.RECIPE.run(SLOWMO, folder)
    assert stopped.value.exit_code == 3
    assert json.loads((folder / "state.json").read_text()) == {"status": "interrupted", "step": 8}
    monkeypatch.undo()
    local_sgd.RECIPE.run(SLOWMO, folder)
    assert same_bits(folder, whole)
    assert lines(folder) == lines(whole)


@pytest.mark.parametrize("buffers", ["maintain", "reset", "average"])
def test_killed_between_checkpoints_it_goes_on_from_the_last_one(whole, tmp_path, buffers):
    config = override(SLOWMO, {"sync.buffers": buffers})
    straight, folder = tmp_path / "straight", tmp_path / "run"
    local_sgd.RECIPE.run(config, straight)
    shutil.copytree(straight, folder)  # as a kill after step 9's checkpoint leaves it, some lines ahead
    shutil.rmtree(folder / "checkpoints" / f"step-{STEPS:06d}")
    (folder / "model.safetensors").unlink()
    (folder / "state.json").write_text('{"status": "running", "step": 9}\n')
    local_sgd.RECIPE.run(config, folder)
    assert same_bits(folder, straight)
    assert lines(folder) == lines(straight)
    assert same_bits(straight, whole) == (buffers == "maintain")


def test_a_checkpoint_is_evaluated_as_the_workers_mean(whole, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    shutil.rmtree(folder / "checkpoints" / f"step-{STEPS:06d}")
    (folder / "model.safetensors").unlink()
    stacked = checkpoint.read_weights(folder / "checkpoints" / "step-000009" / "workers.safetensors")
    _, method = engine.reopen(local_sgd.RECIPE, folder)
    for name, parameter in method.named_parameters():
        workers = stacked[f"weights/{name}"]
        assert len(workers) == 2
        assert not torch.equal(workers[0], workers[1])
        assert torch.equal(parameter, workers.mean(0))


def test_a_checkpoint_without_its_workers_is_passed_over(whole, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    (folder / "checkpoints" / f"step-{STEPS:06d}" / "workers.safetensors").unlink()
    (folder / "state.json").write_text('{"status": "running", "step": 11}\n')
    local_sgd.RECIPE.run(SLOWMO, folder)
    assert f"step-{STEPS:06d} (workers.safetensors: No such file" in capsys.readouterr().err
    assert same_bits(folder, whole)


def test_a_loss_that_is_not_finite_stops_with_step_checkpoint_and_advice(tmp_path):
    wild = override(BASE, {"optim.lr": 1e30, "optim.clip": None})
    with pytest.raises(Diverged, match=r"diverged at step \d+: .* checkpoint .*--optim.lr \(now 1e\+30\)"):
        local_sgd.RECIPE.run(wild, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "state.json").read_text())["status"] == "failed"
