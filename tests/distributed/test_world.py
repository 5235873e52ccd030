# SPDX-License-Identifier: Apache-2.0
import os
import socket
from datetime import timedelta
from unittest import mock

import pytest
import torch
import torch.distributed as dist

from recipes_lib.distributed import collectives, world
from recipes_lib.distributed.local import run_ranks
from recipes_lib.errors import RunError

VARIABLES = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


@pytest.fixture
def environment(monkeypatch):
    """Sets these variables of torchrun and no others; who does not answer at once is not waited for."""

    def set_only(**variables: str) -> None:
        for name in (*VARIABLES, "SLURM_STEP_ID"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    monkeypatch.setattr(world, "_PATIENCE", timedelta(seconds=1))
    with mock.patch.dict(os.environ):  # in a Slurm step world.start sets torchrun's variables; the next test has none
        yield set_only


def test_without_torchrun_there_is_one_process_and_nothing_to_set_up(environment):
    environment()
    assert world.start("cpu") == world.World(0, 1, torch.device("cpu"))
    assert not dist.is_initialized()
    world.stop()


def test_torchrun_with_one_process_is_one_process(environment):
    environment(**VARIABLES | {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"})
    assert world.start("cpu") == world.World(0, 1, torch.device("cpu"))
    assert not dist.is_initialized()


def test_half_an_environment_is_refused(environment):
    environment(MASTER_ADDR="10.0.0.1", WORLD_SIZE="8")
    with pytest.raises(
        RunError, match="has WORLD_SIZE, MASTER_ADDR but not RANK, LOCAL_RANK, MASTER_PORT, so the other"
    ):
        world.start("cpu")


def test_a_number_that_is_none_is_refused(environment):
    environment(**VARIABLES | {"RANK": "one"})
    with pytest.raises(RunError, match="RANK = 'one' in the environment is not a number"):
        world.start("cpu")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE = 0 in the environment is wrong: it must be at least 1"),
        ({"RANK": "5"}, "RANK = 5 in the environment is wrong: it must be at least 0 and below WORLD_SIZE = 2"),
        ({"RANK": "-1"}, "RANK = -1 in the environment is wrong"),
        ({"LOCAL_RANK": "-2"}, "LOCAL_RANK = -2 in the environment is wrong"),
        ({"MASTER_PORT": "70000"}, "MASTER_PORT = 70000 in the environment is wrong"),
        ({"MASTER_PORT": "http"}, "MASTER_PORT = 'http' in the environment is not a number"),
    ],
)
def test_a_place_that_cannot_be_is_refused(environment, wrong, said):
    environment(**VARIABLES | wrong)
    with pytest.raises(RunError, match=said):
        world.start("cpu")


def test_tasks_that_srun_started_join_each_other_and_none_believes_it_is_alone(environment, monkeypatch):
    environment()
    step = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "1"}
    for name, value in (step | {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "localhost"}).items():
        monkeypatch.setenv(name, value)
    joined = []
    monkeypatch.setattr(
        dist, "init_process_group", lambda *_, rank, world_size, **__: joined.append((rank, world_size))
    )
    assert world.start("cpu") == world.World(1, 2, torch.device("cpu"))
    assert joined == [(1, 2)]


def closed_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


@pytest.mark.parametrize("address", ["127.0.0.1", "no-such-host.invalid"])
def test_processes_that_are_not_found_are_an_error_and_never_a_run_alone(environment, address):
    environment(**VARIABLES | {"MASTER_ADDR": address, "MASTER_PORT": closed_port()})
    with pytest.raises(RunError, match=f"Process 1 of 2 could not join the others at {address}:") as error:
        world.start("cpu")
    assert "\n" not in str(error.value)
    assert not dist.is_initialized()


def test_processes_wait_for_each_other_as_long_as_asked(environment, monkeypatch):
    environment(**VARIABLES)
    waited = []
    monkeypatch.setattr(dist, "init_process_group", lambda *_, timeout, **__: waited.append(timeout))
    world.start("cpu")
    world.start("cpu", patience=timedelta(days=2))
    world.start("cpu", timeout=60.0)
    assert waited == [timedelta(seconds=1), timedelta(days=2), timedelta(seconds=120)]  # 1: in place of half an hour


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without GPU")
def test_a_missing_gpu_is_named(environment):
    environment()
    assert world.start("auto").device == torch.device("cpu")
    with pytest.raises(RunError, match=r"Process 0 of this machine has no GPU: torch sees 0\. .*--train\.device cpu"):
        world.start("cuda")


def start_again_then_stop() -> dict:
    again = world.start("cpu")
    found = {"rank": again.rank, "size": again.size, "sum": float(collectives.all_reduce_sum(torch.ones(())))}
    world.stop()
    return found | {"after": collectives.world_size()}


@pytest.mark.distributed
def test_two_processes_find_each_other_once():
    ranks = run_ranks(start_again_then_stop, 2)
    assert ranks == [{"rank": rank, "size": 2, "sum": 2.0, "after": 1} for rank in range(2)]
