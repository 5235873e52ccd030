# SPDX-License-Identifier: Apache-2.0
import json
import subprocess
import sys

import pytest

from recipes_lib import cli
from recipes_lib.cli import plan_table


def answer(capsys, command: str) -> str:
    assert cli.main(command.split()) == 0
    said = capsys.readouterr()
    assert said.err == ""
    return said.out


def test_a_plan_shows_the_network_the_run_the_memory_what_is_assumed_and_warnings(capsys):
    said = answer(capsys, "plan local_sgd --preset toy")
    assert said.startswith("local_sgd, preset toy, on 1 H100 SXM\n")
    lines = [" ".join(line.split()) for line in said.splitlines()]
    for expected in (
        "together 8,970 8,970",
        "images per step 64 (64 per GPU at once)",
        "steps 192 (12.3 k images seen)",
        "sent by each GPU in all 0 B (0 averagings)",
        "time on the clock, assumed less than a second",
        "a GPU has 80.0 GB",
        "workers: 4 simulated in one process: nothing is sent",
        "warning: train.device is cpu: as it stands this run uses no GPU. For one: --train.device auto.",
    ):
        assert expected in lines
    assert "assumed 35% of the peak of H100 SXM at fp32; measure yours" in said


def test_a_plan_as_json_is_one_flat_record_of_raw_numbers(capsys):
    flags = "--nodes 2 --gpus 2 --gpu a100 --utilisation 0.5 --sync.workers 0 --optim.name sgd --sync.name=ddp --json"
    found = json.loads(answer(capsys, f"plan local_sgd {flags} --preset toy"))
    assert (found["recipe"], found["preset"], found["gpu"], found["world"]) == ("local_sgd", "toy", "a100", 4)
    assert found["parameters"] == sum(part["parameters"] for part in found["parts"].values()) == 8970
    assert found["wire_bytes_per_step"] == 1.5 * 4 * 8970
    assert found["memory"]["optimizer"] == 4 * 8970
    assert found["assumptions"]["utilisation"] == 0.5
    assert found["images_seen"] == 192 * 64


def test_images_say_what_the_data_sets_name_does_not(capsys):
    flags = "--data.name npz --train.steps None --train.epochs 3"
    assert cli.main(f"plan local_sgd --preset toy {flags}".split()) == 2
    assert capsys.readouterr().err.endswith("train.epochs = 3 counts in them. Add --images N.\n")
    assert json.loads(answer(capsys, f"plan local_sgd --preset toy {flags} --images 640 --json"))["steps"] == 30


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ("", "the following arguments are required: NAME. See: recipes plan --help"),
        ("mns --preset toy", "There is no recipe 'mns'. Did you mean 'msn'?"),
        ("msn", "--preset is missing. There are: toy, "),
        ("msn --preset toi", "Recipe msn has no preset 'toi'. Did you mean 'toy'?"),
        ("msn --preset", "argument --preset: expected one argument. See: recipes plan --help"),
        ("msn --preset toy --gpus 0", "--gpus = 0 is not allowed: use a value of at least 1."),
        ("msn --preset toy --nodes -2", "--nodes = -2 is not allowed: use a value of at least 1."),
        ("msn --preset toy --gpus two", "argument --gpus: invalid int value: 'two'. See: recipes plan --help"),
        ("msn --preset toy --gpu h10", "There is no GPU 'h10' in the table. Did you mean 'h100'?"),
        ("msn --preset toy --utilisation 35", "utilisation = 35.0 is not allowed: use a value in (0, 1]."),
        ("msn --preset toy --optim.lrr 1", "There is no field optim.lrr. Did you mean 'optim.lr'?"),
        ("msn --preset toy --optim.lr abc", "Error parsing --optim.lr: could not convert string to float: 'abc'."),
        ("msn --preset toy --optim.lr 0", "optim.lr = 0.0 is not allowed: use a value above 0."),
        ("msn --preset toy --gpus 3", "train.batch_size = 256 does not divide among 3 GPUs x 1 micro-batches."),
        ("sieve --preset toy", "Recipe sieve trains no backbone, so there is no training to plan."),
        ("imagenet_x --preset report", "Recipe imagenet_x trains no backbone, so there is no training to plan."),
    ],
)
def test_a_mistake_is_told_on_stderr_in_one_line(flags, line, capsys):
    assert cli.main(["plan", *flags.split()]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"recipes: {line}")
    if "optim.lr 0" not in flags:  # two more fields must not exceed that rate
        assert said.err.count("\n") == 1


def test_its_help_imports_no_torch():
    program = (
        "import sys\nfrom recipes_lib.cli import main\n"
        "try:\n    main(['plan', 'msn', '--help'])\nexcept SystemExit:\n    pass\n"
        "sys.exit('torch' in sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    for flag in ("--nodes", "--gpus", "--gpu", "--utilisation", "--images", "--json"):
        assert flag in ended.stdout


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0, "B", "0 B"),
        (999.4, "", "999"),
        (999.6, "", "1 k"),
        (427_616_513, "", "428 M"),
        (8e10, "B", "80.0 GB"),
        (0.25, "", "0.25"),
    ],
)
def test_numbers_have_three_digits_and_a_prefix(value, unit, text):
    assert plan_table.units(value, unit) == text


@pytest.mark.parametrize(
    ("hours", "text"),
    [
        (1e-6, "less than a second"),
        (0.002, "7.2 s"),
        (0.5, "30 min"),
        (12.34, "12.3 h"),
        (100, "4.2 days"),
        (1e5, "4,166.7 days"),
    ],
)
def test_durations_are_in_the_unit_that_suits(hours, text):
    assert plan_table.duration(hours) == text
