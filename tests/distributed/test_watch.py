# SPDX-License-Identifier: Apache-2.0
"""What the others do where a process stands still, and where the launcher is gone: on real processes."""

import os
import signal
import subprocess
import sys
import textwrap

import pytest
import torch.distributed as dist

PATIENCE = 100  # seconds, for a busy machine

WAIT = """
import os, signal, sys, time
from recipes_lib.distributed import collectives, watch, world
rank = int(os.environ["RANK"])
world.start("cpu")
with watch.Watch(2.0, lambda: print("ended by", rank, flush=True)) as watched:
    for step in range(5):
        watched.at(step, "reading its images")
        if step == 3 and rank == {late}:
            {fault}
        watched.at(step, "computing")
        collectives.barrier()
print("done", flush=True)
os._exit(0)  # the barrier of torch's own end would wait for what is killed
"""


def start(rank: int, port: int, program: str, **variables: str) -> subprocess.Popen:
    where = {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1"}
    where |= {"MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True"} | variables
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], env={**os.environ, **where}, **how)


def both(program: str) -> list[subprocess.Popen]:
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    ranks = [start(rank, store.port, program) for rank in range(2)]
    ranks[0].store = store  # it lives as long as they do
    return ranks


@pytest.mark.distributed
@pytest.mark.parametrize("late", [0, 1])
def test_a_process_that_is_stopped_for_good_is_named_with_its_step_and_the_other_ends(late):
    ranks = both(WAIT.format(late=late, fault="os.kill(os.getpid(), signal.SIGSTOP)"))
    out, err = ranks[1 - late].communicate(timeout=PATIENCE)
    ranks[late].kill()
    ranks[late].communicate()
    assert ranks[1 - late].returncode == 3
    assert out == f"ended by {1 - late}\n"
    assert (
        f"recipes: Process {late} does not answer any more, and the others wait for it at step 3: waited 2 s (train.timeout)."
        in err
    )


@pytest.mark.distributed
def test_a_process_that_waits_for_its_disk_is_named_and_both_end():
    ranks = both(WAIT.format(late=1, fault="time.sleep(1000)"))
    said = [rank.communicate(timeout=PATIENCE) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [3, 3]
    assert [out for out, _ in said] == ["ended by 0\n", ""]
    assert "recipes: Process 1 has not got on from step 3, reading its images: waited 2 s" in said[0][1]


@pytest.mark.distributed
def test_processes_that_get_on_are_left_alone():
    ranks = both(WAIT.format(late=0, fault="pass"))
    assert [rank.communicate(timeout=PATIENCE)[0] for rank in ranks] == ["done\n", "done\n"]


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
