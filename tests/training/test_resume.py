# SPDX-License-Identifier: Apache-2.0
"""A run that is killed goes on as if nothing had happened, bit for bit, wherever it was killed."""

import json
import multiprocessing
import os
import signal
import time
import traceback
from pathlib import Path

import pytest
import torch

from recipes_lib.config import override
from recipes_lib.errors import Diverged, Interrupted
from recipes_lib.recipes.msn import recipe as msn
from recipes_lib.recipes.msn.recipe import Encoder
from recipes_lib.training import checkpoint, log

STEPS = 8
CONFIG = override(
    msn.PRESETS["toy"],
    {
        "data.train_size": 96,
        "data.test_size": 32,
        "data.workers": 1,
        "model.hidden": 32,
        "model.dim": 16,
        "model.prototypes": 8,
        "views.mask_ratio": 0.25,
        "train.batch_size": 32,
        "train.steps": STEPS,
        "train.checkpoint_every": 3,
        "eval.probes": [],
        "eval.baselines": "none",
    },
)


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _after_logging(step: int) -> None:
    """Dies after the optimiser has stepped and the line is written, before any checkpoint of that step."""
    write = log.RunLog.step

    def step_then_die(self: log.RunLog, number: int, metrics: dict) -> None:
        write(self, number, metrics)
        if number == step:
            _kill()

    log.RunLog.step = step_then_die


def _while_saving(step: int) -> None:
    """Dies with the checkpoint's files written and not yet in place."""
    rename = os.rename

    def die_first(source: str, target: str, *rest: object) -> None:
        if str(target).endswith(f"step-{step:06d}"):
            _kill()
        rename(source, target, *rest)

    os.rename = os.replace = die_first


def _train(folder: Path, deadly: tuple | None) -> None:
    torch.set_num_threads(1)
    if deadly:
        arrange, step = deadly
        arrange(step)
    msn.RECIPE.run(CONFIG, folder)


def _in_a_process(folder: Path, deadly: tuple | None = None) -> int:
    process = multiprocessing.get_context("fork").Process(target=_train, args=(folder, deadly))
    process.start()
    limit = time.monotonic() + 120
    # Not join(120): it waits for the loader's worker too, which looks for its parent every five seconds.
    while process.exitcode is None and time.monotonic() < limit:
        time.sleep(0.01)
    return process.exitcode


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert _in_a_process(folder) == 0
    return folder


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return checkpoint.read_weights(folder / "model.safetensors")


def _lines(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in ("seconds", "time")} for line in lines]


def test_killed_at_five_points_a_run_ends_with_the_same_bits(uninterrupted, tmp_path):
    folder = tmp_path / "run"
    for deadly in [
        (_after_logging, 0),  # before the first checkpoint
        (_while_saving, 3),
        (_after_logging, 3),  # between checkpoints
        (_after_logging, 5),  # the checkpoint of this step is not written yet
        (_while_saving, 8),  # the last one
    ]:
        assert _in_a_process(folder, deadly) == -signal.SIGKILL
    assert _in_a_process(folder) == 0
    whole, resumed = _weights(uninterrupted), _weights(folder)
    assert whole.keys() == resumed.keys()
    assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == []
    assert _lines(folder) == _lines(uninterrupted)
    assert [line["step"] for line in _lines(folder)] == list(range(STEPS))


def test_a_signal_leaves_a_checkpoint_and_a_state_that_says_interrupted(uninterrupted, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    write = log.RunLog.step

    def step_then_ask(self: log.RunLog, number: int, metrics: dict) -> None:
        write(self, number, metrics)
        if number == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(log.RunLog, "step", step_then_ask)
    with pytest.raises(Interrupted, match=r"after step 5 of 8. Go on: recipes resume"):
        msn.RECIPE.run(CONFIG, folder)
    assert json.loads((folder / "state.json").read_text())["status"] == "interrupted"
    monkeypatch.undo()
    msn.RECIPE.run(CONFIG, folder)
    whole, resumed = _weights(uninterrupted), _weights(folder)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_step_asks_nobody_from_where_it_was_called(tmp_path, monkeypatch):
    """``torch.manual_seed`` does, for devices that are absent, and took longer than a small network's step."""
    asked = []
    monkeypatch.setattr(traceback, "format_stack", lambda *_: asked.append(1) or [])
    monkeypatch.setattr(traceback, "extract_stack", lambda *_: asked.append(1) or traceback.StackSummary())
    counts = []
    write = log.RunLog.step

    def count(self: log.RunLog, number: int, metrics: dict) -> None:
        write(self, number, metrics)
        counts.append(len(asked))

    monkeypatch.setattr(log.RunLog, "step", count)
    msn.RECIPE.run(override(CONFIG, {"data.workers": 0}), tmp_path / "run")
    assert counts[-1] == counts[0]


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(uninterrupted, tmp_path, capsys):
    folder = tmp_path / "run"
    assert _in_a_process(folder, (_after_logging, 7)) == -signal.SIGKILL
    newest = folder / "checkpoints" / "step-000006" / "model.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    msn.RECIPE.run(CONFIG, folder)
    assert "step-000006" in capsys.readouterr().err
    whole, resumed = _weights(uninterrupted), _weights(folder)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_loss_that_is_not_finite_stops_with_step_checkpoint_and_advice(tmp_path):
    folder = tmp_path / "run"
    wild = override(CONFIG, {"optim.lr": 1e30, "optim.clip": None, "optim.warmup_epochs": 1.0, "data.workers": 0})
    with pytest.raises(Diverged, match=r"diverged at step \d+: .* checkpoint .*--optim.lr \(now 1e\+30\)"):
        msn.RECIPE.run(wild, folder)
    assert json.loads((folder / "state.json").read_text())["status"] == "failed"


def test_a_run_whose_features_are_all_equal_is_told_so_and_not_to_lower_its_rate(tmp_path, monkeypatch):
    alike = override(CONFIG, {"data.workers": 0, "optim.lr": 1e30, "optim.clip": None})
    see = Encoder.forward

    def forward(self: Encoder, images: torch.Tensor, keep: torch.Tensor | None = None) -> torch.Tensor:
        return see(self, images * 0, None)

    monkeypatch.setattr(Encoder, "forward", forward)
    with pytest.raises(Diverged, match=r"batch norm anchor\.\S+ has met the same values in every image") as caught:
        msn.RECIPE.run(alike, tmp_path / "run")
    assert "--optim.lr" not in str(caught.value)


def _break(folder: Path) -> None:
    def fault(self: msn.MSN, step: int) -> None:
        raise RuntimeError("a fault of ours")

    msn.MSN.after_step = fault
    msn.RECIPE.run(CONFIG, folder)


def test_a_run_that_a_fault_ends_does_not_wait_for_its_loaders_workers(tmp_path):
    process = multiprocessing.get_context("fork").Process(target=_break, args=(tmp_path / "run",))
    process.start()
    process.join(60)
    process.kill()
    assert process.exitcode == 1
