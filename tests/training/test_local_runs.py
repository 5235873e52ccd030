# SPDX-License-Identifier: Apache-2.0
"""Runs whose ranks differ between checkpoints: saved and resumed inside a round, and refused where they cannot be."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from recipes_lib.config import override
from recipes_lib.distributed import collectives
from recipes_lib.distributed.local import run_ranks
from recipes_lib.errors import RunError
from recipes_lib.recipes.msn import recipe as msn
from recipes_lib.training import checkpoint

pytestmark = pytest.mark.distributed

STEPS = 8
CONFIG = override(
    msn.PRESETS["toy"],
    {
        "data.train_size": 64,
        "data.test_size": 16,
        "model.hidden": 32,
        "model.dim": 16,
        "model.prototypes": 8,
        "train.batch_size": 16,
        "train.steps": STEPS,
        "train.checkpoint_every": 3,  # rounds end after 5 steps, and with the run
        "train.keep_checkpoints": 3,
        "eval.probes": [],
        "eval.baselines": "none",
        "sync.name": "slowmo",
        "sync.period": 5,
    },
)
LEVEL = override(CONFIG, {"sync.name": "local_sgd", "sync.period": 3, "sync.buffers": "reset"})


def train(folder: str, level: bool) -> int:
    msn.RECIPE.run(LEVEL if level else CONFIG, Path(folder))
    return collectives.rank()


def main() -> None:
    """What torchrun starts: the second process kills itself once."""
    folder, marker = map(Path, sys.argv[1:])
    after_step = msn.MSN.after_step

    def step_then_die(self: msn.MSN, step: int) -> None:
        after_step(self, step)
        if step == 4 and collectives.rank() == 1 and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    msn.MSN.after_step = step_then_die
    msn.RECIPE.run(CONFIG, folder)


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def unfinished(whole: Path, folder: Path) -> Path:
    """The run as it was with six of its eight steps done."""
    shutil.copytree(whole, folder)
    shutil.rmtree(folder / "checkpoints" / f"step-{STEPS:06d}")
    (folder / "state.json").write_text('{"status": "running", "step": 6}\n')
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("local") / "run"
    assert run_ranks(train, 2, str(folder), False, max_seconds=300.0) == [0, 1]
    return folder


def test_each_rank_has_its_share_inside_a_round_and_none_at_the_end(whole):
    files = {path.name: sorted(p.name for p in path.glob("*.safetensors")) for path in whole.glob("checkpoints/*")}
    common = ["model.safetensors", "optimizer.safetensors"]
    inside = ["model.safetensors", "optimizer.safetensors", "rank-1.safetensors", "sync.safetensors"]
    assert files == {"step-000003": inside, "step-000006": inside, "step-000008": [*common, "sync.safetensors"]}
    manifest = json.loads((whole / "checkpoints" / "step-000006" / "manifest.json").read_text())
    assert manifest["files"].keys() == set(inside)
    zero = checkpoint.read_weights(whole / "checkpoints" / "step-000003" / "model.safetensors")
    one = checkpoint.read_weights(whole / "checkpoints" / "step-000003" / "rank-1.safetensors")
    assert any(not torch.equal(one[f"model/{name}"], value) for name, value in zero.items())


def test_every_step_is_logged_with_the_bytes_sent_until_then(whole):
    found = lines(whole)
    assert [line["step"] for line in found] == list(range(STEPS))
    report = json.loads((whole / "report.json").read_text())["sync"]
    assert report == {"name": "slowmo", "bytes": found[-1]["sync_bytes"], "rounds": 2}
    half = report["bytes"] / 2
    assert [line["sync_bytes"] for line in found] == [0.0] * 4 + [half] * 3 + [2 * half]


def test_torchrun_starts_a_job_that_lost_a_process_again_and_it_ends_with_the_same_bits(whole, tmp_path):
    folder, marker = tmp_path / "run", tmp_path / "died"
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    # by default torchrun's own store outlives a restart, with the addresses of the processes that died
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    how = {"capture_output": True, "text": True, "timeout": 240, "env": environment}
    ended = subprocess.run([*start, __file__, folder, marker], **how)
    assert ended.returncode == 0, ended.stderr
    assert marker.exists()
    ours, control = (checkpoint.read_weights(path / "model.safetensors") for path in (folder, whole))
    assert [name for name in control if not torch.equal(ours[name], control[name])] == []
    assert lines(folder) == lines(whole)


def test_another_number_of_processes_is_refused_inside_a_round(whole, tmp_path):
    folder = unfinished(whole, tmp_path / "run")
    wanted = r"step-000006 was written by 2 processes .* and there are now 1\. Go on with 2\."
    with pytest.raises(RunError, match=wanted) as error:
        msn.RECIPE.run(CONFIG, folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["rank-1.safetensors", "sync.safetensors"])
def test_a_checkpoint_without_one_of_its_files_is_passed_over(whole, tmp_path, capsys, name):
    folder = unfinished(whole, tmp_path / "run")
    (folder / "checkpoints" / "step-000006" / name).unlink()
    with pytest.raises(RunError, match="step-000003 was written by 2 processes"):
        msn.RECIPE.run(CONFIG, folder)
    assert f"step-000006 ({name}: No such file" in capsys.readouterr().err


def test_at_the_end_of_a_round_without_momentum_any_number_goes_on(tmp_path):
    folder = tmp_path / "run"
    assert run_ranks(train, 2, str(folder), True, max_seconds=300.0) == [0, 1]
    assert list(folder.glob("checkpoints/*/rank-*")) == []
    again = unfinished(folder, tmp_path / "again")
    msn.RECIPE.run(LEVEL, again)
    assert [line["step"] for line in lines(again)] == list(range(STEPS))
    assert lines(again)[5] == lines(folder)[5]


if __name__ == "__main__":
    main()
