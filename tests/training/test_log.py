# SPDX-License-Identifier: Apache-2.0
import builtins
import json
import math
import re
from pathlib import Path
from typing import IO

import pytest
from rich.console import Console

from recipes_lib.distributed.local import run_ranks
from recipes_lib.errors import ConfigError, RunError
from recipes_lib.training import log
from recipes_lib.training.folder import RunFolder
from recipes_lib.training.log import RunLog


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    return RunFolder(tmp_path)


def write(folder: RunFolder, start: int, stop: int, steps: int = 10) -> None:
    with RunLog(folder, steps, start) as run_log:
        for step in range(start, stop):
            run_log.step(step, {"loss": step / 4, "lr": 0.1})


def read(folder: RunFolder) -> list[dict]:
    return [json.loads(line) for line in (folder.path / "metrics.jsonl").read_text().splitlines()]


def test_each_step_is_a_line_that_can_be_read_at_once(folder):
    with RunLog(folder, 2, 0) as run_log:
        run_log.step(0, {"loss": 0.1 + 0.2})
        assert read(folder) == [{"step": 0, "loss": 0.1 + 0.2}]
        run_log.step(1, {"loss": 1.0})
    assert [line["step"] for line in read(folder)] == [0, 1]


def test_a_resumed_run_has_each_step_once(folder):
    write(folder, 0, 7)
    write(folder, 4, 10)  # its checkpoint was of step 4: steps 0-3 were done
    assert read(folder) == [{"step": step, "loss": step / 4, "lr": 0.1} for step in range(10)]


@pytest.mark.parametrize("rest", ['{"step": 3, "lo', "\x00\x00", "null\n", '{"loss": 1}\n'])
def test_a_damaged_last_line_is_removed(folder, rest):
    write(folder, 0, 3)
    with (folder.path / "metrics.jsonl").open("a") as file:
        file.write(rest)
    write(folder, 3, 5)
    assert [line["step"] for line in read(folder)] == [0, 1, 2, 3, 4]


def test_a_whole_looking_line_without_its_end_is_done_again(folder):
    write(folder, 0, 3)
    text = (folder.path / "metrics.jsonl").read_text()
    (folder.path / "metrics.jsonl").write_text(text[:-1])
    write(folder, 2, 4)
    assert [line["step"] for line in read(folder)] == [0, 1, 2, 3]


def test_a_run_from_the_start_begins_an_empty_file(folder):
    write(folder, 0, 3)
    write(folder, 0, 1)
    assert [line["step"] for line in read(folder)] == [0]


def test_a_figure_that_is_not_finite_is_null(folder):
    with RunLog(folder, 1, 0) as run_log:
        run_log.step(0, {"loss": math.nan, "norm": math.inf})
    assert read(folder) == [{"step": 0, "loss": None, "norm": None}]


def test_off_a_terminal_there_is_one_final_line(folder, capsys):
    write(folder, 0, 10)
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"10 of 10 steps, 0 s, [\d.]+ steps/s, loss 2\.2500\n", err)


def test_a_run_that_had_no_step_left_says_nothing(folder, capsys):
    write(folder, 10, 10)
    assert capsys.readouterr().err == ""


def test_off_a_terminal_a_long_run_speaks_now_and_then(folder, capsys, monkeypatch):
    monkeypatch.setattr(log, "_SILENCE", -1.0)
    write(folder, 0, 3)
    assert capsys.readouterr().err.count(" of 10 steps, ") == 4


def test_on_a_terminal_there_is_a_bar_with_rate_time_left_and_loss(folder, capsys, monkeypatch):
    console = Console(stderr=True, force_terminal=True, width=100)
    monkeypatch.setattr(log.terminal, "aside", lambda: console)
    write(folder, 0, 10)
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().err)
    assert re.search(r"10/10 steps, [\d.]+/s, 0:00:00 left, loss 2\.2500", shown)


def test_a_disk_that_is_full_gives_one_line(folder, monkeypatch):
    with RunLog(folder, 3, 0) as run_log:

        def full(text: str) -> int:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(
            run_log, "_file", type("Full", (), {"write": staticmethod(full), "close": lambda self: None})()
        )
        with pytest.raises(RunError, match=r"metrics\.jsonl could not be written: No space left on device"):
            run_log.step(0, {"loss": 1.0})


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_closing_on_a_full_disk_does_not_hide_that_line(folder):
    def work(full: IO[str]) -> None:
        with RunLog(folder, 3, 0) as run_log:
            run_log._file.close()
            run_log._file = full
            run_log.step(0, {"loss": 1.0})

    full = Path("/dev/full").open("w")  # noqa: SIM115 - it cannot be closed without an error
    with pytest.raises(RunError, match="No space left on device"):
        work(full)


def test_tensorboard_gets_the_figures(folder):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with RunLog(folder, 3, 0, tensorboard=True) as run_log:
        for step in range(3):
            run_log.step(step, {"loss": step / 4})
    events = EventAccumulator(str(folder.path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(0, 0.0), (1, 0.25), (2, 0.5)]


def test_tensorboard_that_is_missing_names_the_extra(folder, monkeypatch):
    real = builtins.__import__

    def without(name: str, *rest: object) -> object:
        if "tensorboard" in name:
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with (
        pytest.raises(ConfigError, match=r"pip install 'ssl-cookbook\[track\]'"),
        RunLog(folder, 1, 0, tensorboard=True),
    ):
        pass


def log_on_each_rank(path: str) -> None:
    write(RunFolder(Path(path)), 0, 4)


@pytest.mark.distributed
def test_only_rank_0_writes(folder):
    run_ranks(log_on_each_rank, 2, str(folder.path))
    assert [line["step"] for line in read(folder)] == [0, 1, 2, 3]
