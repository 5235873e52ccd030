# SPDX-License-Identifier: Apache-2.0
"""Scoring on several processes: the file of one, also stopped in the middle, and gone on with by another number."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from recipes_lib.config import override
from recipes_lib.distributed import collectives
from recipes_lib.distributed.local import run_ranks
from recipes_lib.errors import Interrupted
from recipes_lib.pretraining import runs
from recipes_lib.recipes.imagenet_x import recipe as imagenet_x
from recipes_lib.recipes.imagenet_x import score
from recipes_lib.training.folder import RunFolder

pytestmark = pytest.mark.distributed

NAME = "test_vit"  # timm's own for tests: 160 px, 0.4 M weights
FILE = f"timm-{NAME}.csv"
BATCHES = 7  # of two images, the last of one: an unequal share for two ranks, and for three


def config(place: Path):
    wanted = {"model": f"timm:{NAME}", "data.root": place, "score.weights": place / "weights.safetensors"}
    return override(imagenet_x.PRESETS["score"], {**wanted, "score.batch_size": 2, "score.device": "cpu"})


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """ImageNet's layout with three classes and thirteen images, and weights."""
    root = tmp_path_factory.mktemp("imagenet")
    for number in range(2 * BATCHES - 1):
        path = root / "val" / f"n0144076{number % 3}" / f"ILSVRC2012_val_{number:08d}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(number).integers(256, size=(70, 80, 3), dtype=np.uint8)).save(path)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = timm.create_model(NAME, num_classes=3)
        torch.nn.init.normal_(network.head.weight)
        save_file(network.state_dict(), root / "weights.safetensors")
    return root


@pytest.fixture(scope="module")
def whole(place, tmp_path_factory) -> bytes:
    """What one process writes."""
    return (imagenet_x.RECIPE.run(config(place), tmp_path_factory.mktemp("whole") / "run").folder / FILE).read_bytes()


def kept(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "batches").iterdir())


def score_and_go_on(place: str, new: str, stopped: str) -> list[int]:
    return [
        imagenet_x.RECIPE.run(config(Path(place)), Path(new)).report["steps"],
        runs.resume(imagenet_x.RECIPE, Path(stopped)).report["steps"],
    ]


def test_two_ranks_write_the_file_of_one_and_go_on_with_what_one_began(place, whole, tmp_path, monkeypatch):
    save = np.savez

    def save_then_ask(file, **arrays):
        save(file, **arrays)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(score.np, "savez", save_then_ask)
    with pytest.raises(Interrupted):
        imagenet_x.RECIPE.run(config(place), tmp_path / "stopped")
    monkeypatch.undo()
    assert kept(tmp_path / "stopped") == ["000000.npz"]
    first = (tmp_path / "stopped" / "batches" / "000000.npz").stat().st_mtime_ns
    given = [str(path) for path in (place, tmp_path / "new", tmp_path / "stopped")]
    assert run_ranks(score_and_go_on, 2, *given) == [[BATCHES, BATCHES]] * 2
    assert (tmp_path / "new" / FILE).read_bytes() == whole
    assert (tmp_path / "stopped" / FILE).read_bytes() == whole
    assert (tmp_path / "stopped" / "batches" / "000000.npz").stat().st_mtime_ns == first


def main() -> None:
    """What torchrun starts: each rank scores one batch, says so and waits to be stopped."""
    place, folder = map(Path, sys.argv[1:])
    save = np.savez

    def save_and_wait(file, **arrays):
        save(file, **arrays)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])  # one that comes too early is kept until the wait
        folder.with_name(f"waits-{collectives.rank()}").touch()
        signal.sigwait([signal.SIGTERM])
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
        signal.raise_signal(signal.SIGTERM)

    score.np.savez = save_and_wait
    imagenet_x.RECIPE.run(config(place), folder)


def test_a_job_that_is_stopped_keeps_all_ranks_batches_and_one_process_goes_on(place, whole, tmp_path):
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", __file__]
    log = (tmp_path / "log").open("w+")
    job = subprocess.Popen([*command, place, folder], stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        limit = time.monotonic() + 240
        while len(list(tmp_path.glob("waits-*"))) < 2 and job.poll() is None and time.monotonic() < limit:
            time.sleep(0.05)
        job.terminate()
        assert job.wait(60) != 0
    finally:
        job.kill()
    log.seek(0)
    assert f"complete batches are kept. Go on: recipes resume {folder}" in log.read()
    assert kept(folder) == ["000000.npz", "000001.npz"]
    assert RunFolder.open(folder).state()["status"] == "interrupted"
    assert (runs.resume(imagenet_x.RECIPE, folder).folder / FILE).read_bytes() == whole
    assert RunFolder.open(folder).state()["status"] == "done"


if __name__ == "__main__":
    main()
