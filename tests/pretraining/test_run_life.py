# SPDX-License-Identifier: Apache-2.0
"""What may happen to a run and its folder between its first start and its last use, and must not cost its work."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from recipes_lib import recipes
from recipes_lib.cli import main
from recipes_lib.config import override, to_yaml
from recipes_lib.data import embedded
from recipes_lib.errors import RunError
from recipes_lib.pretraining import engine, runs
from recipes_lib.recipes.local_sgd import recipe as local_sgd
from recipes_lib.recipes.pmsn import recipe as pmsn
from recipes_lib.training import checkpoint

TINY = override(
    local_sgd.PRESETS["toy"],
    {
        "data.train_size": 40,
        "data.test_size": 16,
        "sync.workers": 0,
        "sync.name": "ddp",
        "train.batch_size": 8,
        "train.steps": 4,
        "train.checkpoint_every": 2,
        "eval.probes": [],
        "eval.baselines": "none",
    },
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return local_sgd.RECIPE.run(TINY, tmp_path_factory.mktemp("runs") / "run").folder


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """A copy of a finished run."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def files(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_a_finished_folder_without_a_state_is_never_begun_again(run):
    (run / "state.json").unlink()
    shutil.rmtree(run / "checkpoints")
    before = files(run)
    with pytest.raises(RunError, match=r"is finished: its 4 steps are done"):
        runs.resume(local_sgd.RECIPE, run)
    (run / "report.json").unlink()
    with pytest.raises(RunError, match=r"it holds trained weights and no checkpoint\."):
        runs.resume(local_sgd.RECIPE, run)
    assert files(run).items() >= {name: before[name] for name in ("metrics.jsonl", "model.safetensors")}.items()


@pytest.mark.parametrize("name", ["msn", "paws", "pmsn", "local_sgd", "switchback", "clip", "sieve", "imagenet_x"])
def test_what_is_shown_as_cooked_earlier_is_finished(name, tmp_path):
    folder = Path(shutil.copytree(embedded.path(f"cooked/{name}"), tmp_path / name))
    before = files(folder)
    with pytest.raises(RunError, match=r"is finished: its [\d]+ steps are done\. Choose another --out"):
        runs.resume(recipes.named(name), folder)
    assert {key: value for key, value in files(folder).items() if key != ".lock"} == before


@pytest.mark.parametrize("harm", ["gone", "empty", "dangling"])
def test_a_run_whose_checkpoints_are_gone_is_refused_and_its_metrics_stay(run, harm):
    (run / "state.json").write_text('{"status": "interrupted", "step": 2}')
    shutil.rmtree(run / "checkpoints")
    if harm == "empty":
        (run / "checkpoints").mkdir()
    if harm == "dangling":
        (run / "checkpoints").symlink_to(run / "elsewhere")
    before = (run / "metrics.jsonl").read_bytes()
    with pytest.raises(RunError, match=r"cannot go on: state\.json says that step 2|is a link to nothing"):
        runs.resume(local_sgd.RECIPE, run)
    assert (run / "metrics.jsonl").read_bytes() == before


def test_what_a_kill_left_of_an_old_checkpoint_is_removed_at_the_next_start(run):
    (run / "state.json").write_text('{"status": "running", "step": 4}')
    shutil.copytree(run / "checkpoints" / "step-000002", run / "checkpoints" / ".step-000002.doomed")
    runs.resume(local_sgd.RECIPE, run)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-000002", "step-000004"]


def test_a_run_of_an_older_version_goes_on_and_ends_with_the_same_bits(run, finished):
    (run / "state.json").write_text('{"status": "interrupted", "step": 2}')
    shutil.rmtree(run / "checkpoints" / "step-000004")
    for name in ("data.json", "model.safetensors", "report.json"):
        (run / name).unlink()
    text = (run / "config.yaml").read_text()
    newer = [line for line in text.splitlines(keepends=True) if not line.strip().startswith(("timeout:", "changed:"))]
    (run / "config.yaml").write_text("".join(newer))
    runs.resume(local_sgd.RECIPE, run)
    assert (run / "model.safetensors").read_bytes() == (finished / "model.safetensors").read_bytes()
    assert (run / "config.yaml").read_text() == "".join(newer)


def test_a_field_of_another_version_is_named_with_a_command_that_works(run):
    (run / "config.yaml").write_text(to_yaml("local_sgd", TINY).replace("  seed: 0\n", "  seed: 0\n  oven: 220\n"))
    with pytest.raises(RunError, match=r"oven.* or start anew: recipes run local_sgd --preset toy --out DIR"):
        runs.resume(local_sgd.RECIPE, run)


@pytest.mark.parametrize(
    ("was", "now"),
    [
        ("seed: 0", "seed: null"),
        ("seed: 0", "seed: 2024-13-45"),
        ("seed: 0", "seed: " + "[" * 2000),
        ("betas:\n  - 0.9\n  - 0.999", "betas: null"),
        ("betas:\n  - 0.9\n  - 0.999", "betas: 5"),
        ("lr: 0.1\n", "lr: .nan\n"),
        ("train:\n", "train: [1]\nignored:\n"),
        ("data:\n", "data: null\nignored:\n"),
    ],
    ids=lambda text: text.split("\n")[0][:20],
)
def test_a_config_that_was_edited_by_hand_is_a_line_a_fault(run, was, now, capsys):
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace(was, now))
    assert text != (run / "config.yaml").read_text()
    (run / "state.json").write_text('{"status": "interrupted", "step": 2}')
    for command in ("resume", "evaluate"):
        assert main([command, str(run)]) == 2
        assert all(line.startswith("recipes: ") for line in capsys.readouterr().err.splitlines())


def test_another_optimiser_written_into_the_config_is_refused(run):
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("name: sgd", "name: adamw"))
    (run / "state.json").write_text('{"status": "interrupted", "step": 2}')
    shutil.rmtree(run / "checkpoints" / "step-000004")
    with pytest.raises(RunError, match=r"is of SGD, and this run has AdamW\. Put optim\.name back"):
        runs.resume(local_sgd.RECIPE, run)


def test_a_machine_without_git_or_without_our_metadata_says_less_and_loses_nothing(monkeypatch):
    from importlib.metadata import PackageNotFoundError

    def absent(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr(engine, "version", absent)
    found = engine.provenance()
    assert found["git"] is None
    assert found["versions"].keys() == {"python", "ssl-cookbook"}


def test_a_folder_that_is_removed_while_its_run_trains_ends_the_run_with_a_line(tmp_path, after_step):
    after_step(2, lambda: shutil.rmtree(tmp_path / "run"))
    with pytest.raises(RunError, match=r"run was removed or replaced while the run was at work"):
        local_sgd.RECIPE.run(TINY, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_goes_on_where_standard_error_cannot_be_written(tmp_path):
    program = (
        "import sys, pathlib; from recipes_lib.recipes.local_sgd import recipe as local_sgd; sys.path.insert(0, sys.argv[1]); "
        "from test_run_life import TINY; local_sgd.RECIPE.run(TINY, pathlib.Path(sys.argv[2]))"
    )
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run(
        [sys.executable, "-c", program, Path(__file__).parent, tmp_path / "run"], stderr=writer, check=False
    )
    os.close(writer)
    assert ended.returncode == 0
    assert json.loads((tmp_path / "run" / "state.json").read_text()) == {"status": "done", "step": 4}


def test_a_run_with_a_prior_of_a_file_is_evaluated_and_exported_when_the_file_is_gone(tmp_path):
    np.save(tmp_path / "prior.npy", np.arange(1, 5))
    changes = {
        "data.train_size": 40,
        "data.test_size": 16,
        "model.hidden": 16,
        "model.dim": 8,
        "model.prototypes": 4,
        "train.batch_size": 8,
        "train.steps": 1,
        "eval.baselines": "none",
        "eval.neighbours": 5,
        "loss.prior": "file",
        "loss.prior_file": tmp_path / "prior.npy",
    }
    folder = pmsn.RECIPE.run(override(pmsn.PRESETS["toy"], changes | {"eval.probes": ["knn"]}), tmp_path / "run").folder
    before = runs.evaluate(pmsn.RECIPE, folder)
    (tmp_path / "prior.npy").unlink()
    assert runs.evaluate(pmsn.RECIPE, folder) == before
    config, method = engine.reopen(pmsn.RECIPE, folder)
    assert config.loss.prior == "file"
    assert method.prior.tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert runs.export(pmsn.RECIPE, folder, "timm", tmp_path / "out").is_dir()


def test_what_a_run_warned_of_is_in_its_folder_and_its_report(tmp_path):
    config = override(TINY, {"sync.name": "local_sgd", "sync.workers": 0})
    result = local_sgd.RECIPE.run(config, tmp_path / "run")
    (line,) = (result.folder / "warnings.txt").read_text().splitlines()
    assert line.startswith("sync.name is local_sgd and this is the only process")
    assert result.report["warnings"] == [line]
    assert checkpoint.newest_step(result.folder / "checkpoints") == 4
