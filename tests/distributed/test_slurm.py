# SPDX-License-Identifier: Apache-2.0
import pytest

from recipes_lib.distributed import slurm
from recipes_lib.errors import RunError

STEP = {
    "SLURM_JOB_ID": "1234",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_NTASKS": "8",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NODELIST": "node[03-04]",
    "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.9",
}


def test_a_task_of_a_step_knows_its_place_in_torchruns_words():
    found = slurm.variables(STEP)
    port = found.pop("MASTER_PORT")
    assert found == {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "node03"}
    assert 15_000 <= int(port) < 30_000
    assert slurm.variables({**STEP, "SLURM_PROCID": "6"})["MASTER_PORT"] == port
    assert slurm.variables({**STEP, "SLURM_STEP_ID": "1"})["MASTER_PORT"] != port


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node7", "node7"),
        ("a,b", "a"),
        ("node[03-04,07],gpu1", "node03"),
        ("node[12,15]", "node12"),
        ("n[1-2]-ib,x", "n1-ib"),
        ("", "10.0.0.9"),
    ],
)
def test_task_0_is_on_the_steps_first_machine(nodes, first):
    assert slurm.variables({**STEP, "SLURM_STEP_NODELIST": nodes})["MASTER_ADDR"] == first


def test_an_address_and_a_port_that_were_given_are_taken():
    found = slurm.variables({**STEP, "MASTER_ADDR": "here", "MASTER_PORT": "9"})
    assert (found["MASTER_ADDR"], found["MASTER_PORT"]) == ("here", "9")


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {name: value for name, value in STEP.items() if "STEP" not in name},  # the shell of sbatch or salloc
        {**STEP, "SLURM_STEP_NUM_TASKS": "1"},  # an interactive step of a job of eight tasks
    ],
)
def test_without_a_step_of_several_tasks_a_process_is_alone(environment):
    assert slurm.variables(environment) == {}


def test_a_step_that_does_not_say_which_task_this_is_is_refused():
    with pytest.raises(RunError, match=r"SLURM_PROCID = '' is no number, so the other tasks cannot be found\. Start"):
        slurm.variables({**STEP, "SLURM_PROCID": ""})
    with pytest.raises(RunError, match=r"on which machine task 0 is\. Set MASTER_ADDR"):
        slurm.variables({**STEP, "SLURM_STEP_NODELIST": "", "SLURM_LAUNCH_NODE_IPADDR": ""})
