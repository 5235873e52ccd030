# SPDX-License-Identifier: Apache-2.0
"""Work in parts that goes on after a stop."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.console import Console

from recipes_lib.distributed.local import run_ranks
from recipes_lib.errors import DataError, Interrupted
from recipes_lib.training import stages
from recipes_lib.training.folder import RunFolder


@dataclass(frozen=True)
class Settings:
    parts: int = 3


def noted(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def do(run: RunFolder, parts: int) -> None:
    with stages.Stage(run, "scoring", 3, "shards") as stage:
        for part in range(1, parts + 1):
            stage.note({"step": part})
            stage.show(part, f"{8 * part} pairs")


@pytest.mark.parametrize("kept", [True, False])
def test_a_folder_stays_after_a_users_mistake_once_it_is_kept(tmp_path, kept):
    def work() -> None:
        with RunFolder.create_or_continue(tmp_path / "run", "toy", Settings()) as run:
            if kept:
                stages.keep(run)
            raise DataError("damaged")

    with pytest.raises(DataError, match="damaged"):
        work()
    assert (tmp_path / "run").exists() == kept
    assert not kept or RunFolder.open(tmp_path / "run").state()["status"] == "failed"


def test_to_keep_a_folder_leaves_the_lines_that_are_there(tmp_path):
    do(RunFolder(tmp_path), 1)
    stages.keep(RunFolder(tmp_path))
    assert noted(tmp_path) == [{"step": 1}]


def test_each_part_is_a_line_that_can_be_read_at_once_and_earlier_lines_stay(tmp_path):
    do(RunFolder(tmp_path), 2)
    with stages.Stage(RunFolder(tmp_path), "scoring", 1, "shards") as stage:
        stage.note({"step": 3})
        assert noted(tmp_path) == [{"step": 1}, {"step": 2}, {"step": 3}]


def test_off_a_terminal_there_is_one_final_line(tmp_path, capsys):
    do(RunFolder(tmp_path), 3)
    out, err = capsys.readouterr()
    assert (out, err) == ("", "scoring: 3 shards, 0 s, 24 pairs\n")


def test_a_stage_that_had_nothing_left_to_do_or_was_stopped_says_nothing(tmp_path, capsys):
    do(RunFolder(tmp_path), 0)

    def stopped() -> None:
        with stages.Stage(RunFolder(tmp_path), "scoring", 3, "shards") as stage:
            stage.show(1)
            raise Interrupted("stopped")

    with pytest.raises(Interrupted):
        stopped()
    assert capsys.readouterr().err == ""


def test_on_a_terminal_there_is_a_bar(tmp_path, capsys, monkeypatch):
    console = Console(stderr=True, force_terminal=True, width=100)
    monkeypatch.setattr(stages.terminal, "aside", lambda quiet: console)
    do(RunFolder(tmp_path), 3)
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().err)
    assert re.search(r"scoring ━+ 3/3 shards, 24 pairs", shown)
    assert "0 s" not in shown


def _work(folder: Path) -> None:
    do(RunFolder(folder), 3)


@pytest.mark.distributed
def test_of_two_ranks_the_first_alone_writes(tmp_path):
    run_ranks(_work, 2, tmp_path)
    assert noted(tmp_path) == [{"step": 1}, {"step": 2}, {"step": 3}]


def test_a_finished_stage_of_the_same_settings_is_told_from_all_others(tmp_path):
    folder = tmp_path / "stage"
    assert not stages.finished(folder, "toy", Settings())
    with RunFolder.create_or_continue(folder, "toy", Settings()) as run:
        assert not stages.finished(folder, "toy", Settings())
        run.set_state("done", 3)
    assert stages.finished(folder, "toy", Settings())
    assert not stages.finished(folder, "toy", Settings(parts=4))
    assert not stages.finished(folder, "other", Settings())


def test_an_interrupted_user_reads_what_is_kept_and_how_to_go_on():
    with (
        pytest.raises(Interrupted, match=r"^Scoring was stopped; shards are kept\. Go on: recipes resume RUN$"),
        stages.tell_how_to_go_on("Scoring was stopped; shards are kept.", "recipes resume RUN"),
    ):
        raise Interrupted("after 3 batches")
