# SPDX-License-Identifier: Apache-2.0
import json
import multiprocessing
import os
import signal
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from recipes_lib.config import override
from recipes_lib.distributed.local import run_ranks
from recipes_lib.errors import ConfigError, Interrupted, RunError
from recipes_lib.recipes.local_sgd import recipe as local_sgd
from recipes_lib.training.folder import RunFolder, default_path

CONFIG = override(local_sgd.PRESETS["toy"], {"train.steps": 20, "optim.lr": 0.001})


def contents(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def test_a_new_folder_has_the_config_and_a_state(tmp_path):
    with RunFolder.create_or_continue(tmp_path / "new", "msn", CONFIG) as folder:
        assert folder.state() == {"status": "running", "step": 0}
        assert folder.read_config()["recipe"] == "msn"
        assert folder.read_config()["optim"]["lr"] == 0.001
        assert folder.checkpoints == tmp_path / "new" / "checkpoints"
    assert RunFolder.open(tmp_path / "new").config_text.startswith("recipe: msn\n")


def test_an_empty_folder_can_be_taken(tmp_path):
    with RunFolder.create_or_continue(tmp_path, "msn", CONFIG) as folder:
        assert folder.state()["status"] == "running"


def test_an_unfinished_run_of_the_same_config_goes_on(run):
    with RunFolder.create_or_continue(run, "msn", CONFIG) as folder:
        assert folder.state() == {"status": "interrupted", "step": 7}


def test_a_run_killed_before_its_state_was_written_goes_on(run):
    (run / "state.json").unlink()
    with RunFolder.create_or_continue(run, "msn", CONFIG) as folder:
        assert folder.state() == {"status": "interrupted", "step": 0}


def test_a_finished_run_is_refused_and_left_as_it_is(run):
    with RunFolder.create_or_continue(run, "msn", CONFIG) as folder:
        folder.write_report({"scores": {"knn": 0.5}})
        folder.set_state("done", 20)
    before = contents(run)
    with pytest.raises(RunError, match=r"runs/msn is finished: its 20 steps are done\. Choose another --out\."):
        RunFolder.create_or_continue(run, "msn", CONFIG)
    del before[".lock"]
    assert contents(run).items() >= before.items()
    assert RunFolder.open(run).read_report() == {"scores": {"knn": 0.5}}


@pytest.mark.parametrize(
    ("recipe", "config", "difference"),
    [
        ("msn", override(CONFIG, {"optim.lr": 0.5}), r"optim\.lr was 0\.001 and is now 0\.5\."),
        ("msn", override(CONFIG, {"train.steps": 21, "train.seed": 3}), r"train\.steps was 20 and is now 21\."),
        ("paws", CONFIG, r"recipe was msn and is now paws\."),
    ],
)
def test_another_config_is_refused_with_the_first_field_that_differs(run, recipe, config, difference):
    before = contents(run)
    with pytest.raises(RunError, match=f"started with another config: {difference} Choose another --out") as error:
        RunFolder.create_or_continue(run, recipe, config)
    assert "\n" not in str(error.value)
    assert contents(run) == before


def test_a_field_that_an_older_version_did_not_have_counts_as_its_default(run):
    text = (run / "config.yaml").read_text().replace("  seed: 0\n", "")
    (run / "config.yaml").write_text(text)
    with RunFolder.create_or_continue(run, "msn", CONFIG) as folder:
        assert folder.state()["step"] == 7
    assert (run / "config.yaml").read_text() == text
    with pytest.raises(RunError, match=r"train\.seed was 0 and is now 3"):
        RunFolder.create_or_continue(run, "msn", override(CONFIG, {"train.seed": 3}))


def test_what_only_says_how_a_run_is_watched_may_change_and_is_kept(run):
    RunFolder.create_or_continue(run, "msn", override(CONFIG, {"train.timeout": 60.0})).unlock()
    assert RunFolder.open(run).read_config()["train"]["timeout"] == 60.0


def test_a_field_that_is_no_longer_known_is_named(run):
    with (run / "config.yaml").open("a") as file:
        file.write("  kitchen: 1\n")
    with pytest.raises(RunError, match=r"config\.yaml: This config does not fit Config: .*kitchen"):
        RunFolder.create_or_continue(run, "msn", CONFIG)


def test_other_files_are_never_written_among(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(RunError, match="holds other files and is not a run folder"):
        RunFolder.create_or_continue(tmp_path, "msn", CONFIG)
    assert contents(tmp_path) == {"thesis.tex": b"mine"}
    with pytest.raises(RunError, match=r"thesis\.tex is a file\. Choose another --out"):
        RunFolder.create_or_continue(tmp_path / "thesis.tex", "msn", CONFIG)
    with pytest.raises(RunError, match="cannot be written: Not a directory"):
        RunFolder.create_or_continue(tmp_path / "thesis.tex" / "below", "msn", CONFIG)


def test_open_refuses_what_is_no_run(tmp_path):
    with pytest.raises(RunError, match=r"is not a run folder: it has no config\.yaml"):
        RunFolder.open(tmp_path)


def test_damaged_files_are_named(run):
    with pytest.raises(RunError, match=r"has no report\.json yet\. Finish the run: recipes resume"):
        RunFolder.open(run).read_report()
    (run / "report.json").write_text("[1]")
    with pytest.raises(RunError, match=r"report\.json cannot be read\. Score the weights again: recipes evaluate"):
        RunFolder.open(run).read_report()


@pytest.mark.parametrize(
    "text",
    [
        '{"status": "run',
        '{"status": "cooking", "step": 1}',
        '{"status": "running", "step": 1e400}',
        '{"status": "running", "step": ' + "9" * 5000 + "}",
        '{"status": "running", "step": -1}',
        '{"status": "running", "step": true}',
        '{"status": ["running"], "step": 1}',
        '{"a": ' * 50_000,
        "\udcff",
    ],
    ids=lambda text: text[:40],
)
def test_a_state_that_was_edited_by_hand_is_one_line(run, text):
    (run / "state.json").write_text(text, errors="surrogateescape")
    with pytest.raises(RunError, match=r"state\.json cannot be read\. Remove it"):
        RunFolder.open(run).state()


@pytest.mark.parametrize(
    ("error", "status"),
    [(ConfigError("x"), "failed"), (ZeroDivisionError(), "failed"), (SystemExit(), "interrupted")],
)
def test_a_run_that_ends_by_an_error_says_so(run, error, status):
    def work() -> None:
        with RunFolder.create_or_continue(run, "msn", CONFIG) as folder:
            folder.set_state("running", 9)
            raise error

    with pytest.raises(type(error)):
        work()
    assert RunFolder.open(run).state() == {"status": status, "step": 9}


def test_ctrl_c_outside_the_training_loop_says_how_to_go_on(run):
    def work() -> None:
        with RunFolder.create_or_continue(run, "msn", CONFIG) as folder:
            folder.set_state("running", 9)
            raise KeyboardInterrupt

    with pytest.raises(Interrupted, match=r"^Interrupted\. Go on: recipes resume .*runs/msn$"):
        work()
    assert RunFolder.open(run).state() == {"status": "interrupted", "step": 9}


def mistake(path: Path, error: Exception, trace: str = "") -> None:
    """A run that ends by ``error``, after it wrote the file ``trace``."""

    def work() -> None:
        with RunFolder.create_or_continue(path, "msn", CONFIG):
            if trace:
                (path / trace).touch()
            raise error

    with pytest.raises(type(error)):
        work()


def test_a_users_mistake_before_training_leaves_nothing_behind(tmp_path):
    mistake(tmp_path / "runs" / "new", ConfigError("x"))
    assert not (tmp_path / "runs" / "new").exists()
    (tmp_path / "empty").mkdir()
    mistake(tmp_path / "empty", ConfigError("x"))
    assert list((tmp_path / "empty").iterdir()) == []


def test_what_was_there_before_a_mistake_and_what_training_wrote_stays(run, tmp_path):
    mistake(run, ConfigError("x"))
    assert RunFolder.open(run).state()["step"] == 7
    mistake(tmp_path / "trained", ConfigError("x"), trace="metrics.jsonl")
    assert RunFolder.open(tmp_path / "trained").state()["status"] == "failed"
    mistake(tmp_path / "fault", ZeroDivisionError())
    assert RunFolder.open(tmp_path / "fault").state()["status"] == "failed"


@pytest.mark.parametrize(
    "text",
    ["train: {}\n", "recipe: 5\n", "recipe: [msn\n", "- msn\n", "recipe: msn\na: 2024-13-45\n", "[" * 3000],
    ids=lambda text: text[:30],
)
def test_a_config_that_names_no_recipe_cannot_be_read(run, text):
    (run / "config.yaml").write_text(text)
    with pytest.raises(RunError, match=r"config\.yaml cannot be read\."):
        RunFolder.open(run).read_config()


def hold(run: Path, told: Connection) -> None:
    """Takes the run, and forks a child as a loader's worker, which outlives its parent for a while."""
    with RunFolder.create_or_continue(run, "msn", CONFIG):
        if child := os.fork():
            told.send(child)
        signal.pause()


def test_a_run_in_use_is_refused_until_its_process_is_gone(run):
    hears, tells = multiprocessing.Pipe(duplex=False)
    holder = multiprocessing.get_context("fork").Process(target=hold, args=(run, tells))
    holder.start()
    worker = hears.recv()
    try:
        with pytest.raises(
            RunError, match=rf"runs/msn is in use by process {holder.pid} on \S+\. Wait for it, or choose"
        ):
            RunFolder.create_or_continue(run, "msn", CONFIG)
        assert RunFolder.open(run).state()["step"] == 7  # reading is free
        holder.kill()
        holder.join()
        os.kill(worker, 0)  # still there
        RunFolder.create_or_continue(run, "msn", CONFIG).unlock()
    finally:
        holder.kill()
        os.kill(worker, signal.SIGKILL)


def test_default_paths_are_not_taken(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = default_path("msn")
    assert first.match("runs/msn-????????-??????")
    for _ in range(3):
        path = default_path("msn")
        path.mkdir(parents=True)
    assert len(list((tmp_path / "runs").iterdir())) == 3


def test_a_disk_that_is_full_gives_one_line(run, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("recipes_lib.durable.write_text", full)
    with pytest.raises(RunError, match=r"state\.json could not be written: No space left on device"):
        RunFolder.open(run).set_state("running", 8)


def test_warnings_are_one_plain_line_on_stderr(run, capsys):
    RunFolder.open(run).warn("step-000010 [bold] is damaged " + "and long " * 30)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("warning: step-000010 [bold] is damaged and long")
    assert err.count("\n") == 1


def take_on_each_rank(path: str) -> dict:
    folder = RunFolder.create_or_continue(Path(path), "msn", CONFIG)
    folder.set_state("running", 11)
    folder.write_report({"a": 1})
    try:
        RunFolder.create_or_continue(Path(path), "msn", override(CONFIG, {"optim.lr": 0.5}))
        refused = ""
    except RunError as error:
        refused = str(error)
    return {"locked": folder._lock is not None, "refused": refused}


@pytest.mark.distributed
def test_rank_0_writes_and_every_rank_is_refused(run):
    ranks = run_ranks(take_on_each_rank, 2, str(run))
    assert [r["locked"] for r in ranks] == [True, False]
    assert all("optim.lr was 0.001" in r["refused"] for r in ranks)
    assert json.loads((run / "state.json").read_text()) == {"status": "running", "step": 11}
