# SPDX-License-Identifier: Apache-2.0
"""What is done to a run's folder from outside: links, other configs, things that are gone."""

import multiprocessing
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch.distributed as dist

from recipes_lib.config import override
from recipes_lib.distributed import collectives, world
from recipes_lib.distributed.local import run_ranks
from recipes_lib.errors import ConfigError, RunError
from recipes_lib.recipes.local_sgd import recipe as local_sgd
from recipes_lib.training.folder import RunFolder

CONFIG = override(local_sgd.PRESETS["toy"], {"train.steps": 20, "optim.lr": 0.001})


def test_a_run_with_a_report_and_no_state_is_finished(run):
    """As those in ``data/cooked`` are."""
    (run / "report.json").write_text('{"steps": 20}')
    (run / "state.json").unlink()
    assert RunFolder.open(run).state() == {"status": "done", "step": 20}
    with pytest.raises(RunError, match=r"is finished: its 20 steps are done"):
        RunFolder.create_or_continue(run, "msn", CONFIG)


def test_a_run_whose_checkpoints_are_gone_is_not_begun_anew(run):
    folder = RunFolder.open(run)
    with pytest.raises(RunError, match=r"state\.json says that step 7 is kept, and .*checkpoints holds no checkpoint"):
        folder.refuse_lost()
    folder.set_state("running", 0)
    folder.refuse_lost()  # killed before its first checkpoint
    (run / "metrics.jsonl").write_text('{"step": 0}\n')
    folder.refuse_lost()
    (run / "state.json").unlink()
    with pytest.raises(RunError, match=r"it holds metrics of earlier steps, but neither state\.json nor a checkpoint"):
        folder.refuse_lost()
    (run / "model.safetensors").touch()
    with pytest.raises(
        RunError, match=r"it holds trained weights and no checkpoint\. Put .* nothing here is overwritten"
    ):
        folder.refuse_lost()


@pytest.mark.parametrize(
    "name", [".lock", "state.json", ".state.json.partial", "config.yaml", ".config.yaml.partial", "metrics.jsonl",
             "report.json", "warnings.txt", "data.json", "model.safetensors", ".model.safetensors.partial"]
)  # fmt: skip
def test_links_under_a_runs_names_are_refused_and_not_followed(run, tmp_path, name):
    victim = tmp_path / "victim"
    victim.write_text((run / name).read_text() if (run / name).exists() else "mine")
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(victim)
    before = victim.read_text()
    with pytest.raises(RunError, match=rf"{name} is a symbolic link, and a run writes a file there\. Remove it"):
        RunFolder.create_or_continue(run, "msn", CONFIG)
    assert victim.read_text() == before


def test_pipes_and_missing_folders_under_a_runs_names_are_named(run):
    os.mkfifo(run / ".state.json.partial")
    with pytest.raises(RunError, match=r"partial is a named pipe"):
        RunFolder.create_or_continue(run, "msn", CONFIG)
    (run / ".state.json.partial").unlink()
    (run / "checkpoints").symlink_to(run / "elsewhere")
    with pytest.raises(RunError, match=r"checkpoints is a link to nothing"):
        RunFolder.create_or_continue(run, "msn", CONFIG)
    (run / "elsewhere").mkdir()  # another disk may hold them
    RunFolder.create_or_continue(run, "msn", CONFIG).unlock()


def test_a_run_whose_folder_is_removed_or_replaced_ends_with_a_line(run):
    def work(away: Callable[[], object]) -> None:
        with RunFolder.create_or_continue(run, "msn", CONFIG) as folder:
            away()
            folder.set_state("running", 9)

    with pytest.raises(RunError, match=r"runs/msn was removed or replaced while the run was at work"):
        work(lambda: shutil.rmtree(run))
    assert not run.exists()
    RunFolder.create_or_continue(run, "msn", CONFIG).unlock()
    with pytest.raises(RunError, match=r"was removed or replaced"):
        work(lambda: (run.rename(run.with_name("moved")), shutil.copytree(run.with_name("moved"), run)))
    assert RunFolder.open(run).state()["step"] == 0
    work(lambda: (run / ".lock").unlink())  # somebody thought it was left over
    assert RunFolder.open(run).state()["step"] == 9


def test_warnings_are_kept_once_and_reported(run):
    for _ in range(2):
        with RunFolder.create_or_continue(run, "msn", CONFIG) as folder:
            folder.warn("the prior is steep")
            folder.warn("two lines\nof one")
    folder.warn("of a look at it")  # nobody holds it
    assert (run / "warnings.txt").read_text() == "the prior is steep\ntwo lines of one\n"
    folder.write_report({"steps": 20})
    assert folder.read_report() == {"steps": 20, "warnings": ["the prior is steep", "two lines of one"]}


@pytest.mark.parametrize("value", [float("nan"), (0.9, float("nan"))])
def test_what_is_not_a_number_is_refused_wherever_it_stands(run, value):
    field = {"betas": value} if isinstance(value, tuple) else {"lr": value}
    with pytest.raises(ConfigError, match=r"optim\.(lr|betas) = nan is not a number"):
        RunFolder.create_or_continue(run, "msn", replace(CONFIG, optim=replace(CONFIG.optim, **field)))


def with_configs_of_their_own(path: str) -> str:
    config = override(CONFIG, {"train.seed": collectives.rank()})
    try:
        RunFolder.create_or_continue(Path(path), "msn", config)
    except RunError as error:
        return str(error)
    return ""


@pytest.mark.distributed
def test_ranks_with_different_configs_are_refused_on_every_rank(tmp_path):
    said = run_ranks(with_configs_of_their_own, 2, str(tmp_path / "new"))
    assert said[0] == said[1]
    assert "different configs: train.seed is 0 in process 0 and 1 in process 1. Start all of them with" in said[0]
    assert not (tmp_path / "new").exists()


def train_until_the_other_leaves(run: Path, rank: int, port: int, told: Connection) -> None:
    where = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in where.items()}, TORCHELASTIC_USE_AGENT_STORE="True")
    world.start("cpu")
    try:
        with RunFolder.create_or_continue(run, "msn", CONFIG) as folder:
            folder.set_state("running", 9)
            if rank == 1:
                os._exit(0)
            collectives.barrier()
    except BaseException as error:
        told.send(f"{type(error).__name__} {error}")
    os._exit(0)


@pytest.mark.distributed
def test_a_rank_that_is_left_alone_says_how_to_go_on(run):
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    hears, tells = multiprocessing.Pipe(duplex=False)
    start = multiprocessing.get_context("fork").Process
    ranks = [start(target=train_until_the_other_leaves, args=(run, rank, store.port, tells)) for rank in (0, 1)]
    for rank in ranks:
        rank.start()
    assert hears.poll(100)
    said = hears.recv()
    for rank in ranks:
        rank.join()
    assert said.startswith("Interrupted Another process of this run has ended, or does not answer (")
    assert said.endswith(f"Go on: recipes resume {run}")
    assert RunFolder.open(run).state() == {"status": "interrupted", "step": 9}
