# SPDX-License-Identifier: Apache-2.0
"""What the others do where a process stands still, and where the launcher is gone: on real processes."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch.distributed as dist

from recipes_lib.distributed import collectives, watch, world

PATIENCE = 100  # seconds, for a busy machine


def stand_still(fault: str) -> None:
    """What happens to a process in its third step."""
    match fault:
        case "stopped":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "waits":
            time.sleep(1000)


def work(rank: int, port: int, late: int, fault: str, place: Path) -> None:
    """Five steps of rank ``rank``; what it says goes into files in ``place``."""
    where = {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in where.items()}, TORCHELASTIC_USE_AGENT_STORE="True")
    sys.stdout, sys.stderr = ((place / f"{rank}.{name}").open("w") for name in ("out", "err"))
    world.start("cpu")
    with watch.Watch(2.0, lambda: print("ended by", rank, flush=True)) as watched:
        for step in range(5):
            watched.at(step, "reading its images")
            if step == 3 and rank == late:
                stand_still(fault)
            watched.at(step, "computing")
            collectives.barrier()
    print("done", flush=True)
    os._exit(0)  # the barrier of torch's own end would wait for what is killed


@pytest.fixture
def both(tmp_path):
    """Starts two ranks, of which ``late`` meets a fault. They fork from here: each import of torch would take seconds."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    context, ranks = multiprocessing.get_context("fork"), []

    def start(late: int, fault: str) -> list[multiprocessing.Process]:
        ranks.extend(context.Process(target=work, args=(n, store.port, late, fault, tmp_path)) for n in range(2))
        for rank in ranks:
            rank.start()
        return ranks

    yield start
    for rank in ranks:
        rank.kill()
        rank.join()


def ended(rank: multiprocessing.Process) -> int | None:
    """The exit code of a process that ends by itself; None where it does not."""
    rank.join(PATIENCE)
    return rank.exitcode


@pytest.mark.distributed
@pytest.mark.parametrize("late", [0, 1])
def test_a_process_that_is_stopped_for_good_is_named_with_its_step_and_the_other_ends(late, both, tmp_path):
    ranks = both(late, "stopped")
    assert ended(ranks[1 - late]) == 3
    assert (tmp_path / f"{1 - late}.out").read_text() == f"ended by {1 - late}\n"
    assert (
        f"recipes: Process {late} does not answer any more, and the others wait for it at step 3: waited 2 s (train.timeout)."
        in (tmp_path / f"{1 - late}.err").read_text()
    )


@pytest.mark.distributed
def test_a_process_that_waits_for_its_disk_is_named_and_both_end(both, tmp_path):
    assert [ended(rank) for rank in both(1, "waits")] == [3, 3]
    assert [(tmp_path / f"{rank}.out").read_text() for rank in range(2)] == ["ended by 0\n", ""]
    said = (tmp_path / "0.err").read_text()
    assert "recipes: Process 1 has not got on from step 3, reading its images: waited 2 s" in said


@pytest.mark.distributed
def test_processes_that_get_on_are_left_alone(both, tmp_path):
    assert [ended(rank) for rank in both(0, "none")] == [0, 0]
    assert [(tmp_path / f"{rank}.out").read_text() for rank in range(2)] == ["done\n", "done\n"]


RANK = """
import os, signal, sys, time
from recipes_lib.distributed import watch
signal.signal(signal.SIGTERM, lambda *_: (print("asked to stop", flush=True), os._exit(0)))
watch.heed_launcher()
print("ready", flush=True)
time.sleep(1000)
"""
LAUNCHER = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"


def test_a_process_whose_launcher_is_killed_is_asked_to_stop():
    torchruns = {**os.environ, "TORCHELASTIC_RUN_ID": "none"}
    command = [sys.executable, "-c", LAUNCHER, RANK]
    launcher = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=torchruns)
    assert launcher.stdout.readline() == "ready\n"
    os.kill(launcher.pid, signal.SIGKILL)
    assert launcher.stdout.read() == "asked to stop\n"  # the process has its launcher's standard output
    launcher.communicate()
