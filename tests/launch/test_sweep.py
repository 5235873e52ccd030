# SPDX-License-Identifier: Apache-2.0
"""Sweeps of a recipe that trains nothing, in this process; the last tests start real runs in processes of their own."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import matplotlib

matplotlib.use("Agg")

import pytest
from PIL import Image

from recipes_lib import durable, plots, processes, recipes
from recipes_lib.config import DataConfig, EvalConfig, OptimConfig, TrainConfig, ViewsConfig, to_yaml
from recipes_lib.errors import ConfigError, DataError, Diverged, Faults, Interrupted, RunError
from recipes_lib.launch import sweep
from recipes_lib.launch.sweep import Row, Sweep, grid, read


@dataclass(frozen=True, kw_only=True)
class Config:
    data: DataConfig = field(default_factory=lambda: DataConfig(name="digits"))
    views: ViewsConfig = field(default_factory=ViewsConfig)
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr_start=0.0, lr_final=0.0))
    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=10))
    eval: EvalConfig = field(default_factory=lambda: EvalConfig(probes=("knn",)))

    def validate(self) -> None:
        faults = Faults()
        for group in (self.data, self.views, self.optim, self.train, self.eval):
            group.check(faults)
        faults.raise_any()


@pytest.fixture
def fake(monkeypatch) -> SimpleNamespace:
    """The fake recipe: ``ran`` holds the configs of its runs, and ``errors`` what a run with that rate raises."""
    here = SimpleNamespace(ran=[], errors={})

    def run(config: Config, out: Path) -> None:
        here.ran.append(config)
        out.mkdir(parents=True, exist_ok=True)
        if error := here.errors.get(config.optim.lr):
            raise error
        (out / "config.yaml").write_text(to_yaml("msn", config))
        score = config.optim.lr * 100 + config.train.seed / 100
        scores = {probe: {"method": score, "raw_pixels": 0.5} for probe in config.eval.probes}
        report = {"scores": scores, "label_free": {"std": {"method": 0.5}}, "seconds": 2.0, "steps": config.train.steps}
        (out / "report.json").write_text(json.dumps(report))
        (out / "state.json").write_text(json.dumps({"status": "done", "step": config.train.steps}))

    def each(commands, at_once):
        for index, command in enumerate(commands):
            command.log.parent.mkdir(exist_ok=True)
            command.log.write_text("working\nlast line\n")
            handlers = {number: signal.getsignal(number) for number in sweep.STOP_SIGNALS}
            try:
                yield index, sweep._worker(Path(command.words[-2]), int(command.words[-1]))
            finally:
                for number, handler in handlers.items():
                    signal.signal(number, handler)

    recipe = SimpleNamespace(config=Config, presets={"toy": Config()}, run=run)
    monkeypatch.setattr(recipes, "named", lambda name: recipe)
    monkeypatch.setattr(processes, "each", each)
    yield here
    plots.pyplot.close("all")


TWO_AXES = {"optim.lr": [0.001, 0.002], "train.seed": [0, 1]}


def statuses(found: Sweep) -> list[str]:
    return [row.status for row in found.rows]


def test_all_combinations_run_and_the_last_axis_changes_fastest(fake, tmp_path):
    found = sweep.run(grid("msn", "toy", TWO_AXES, {"train.steps": 20}), tmp_path / "s")
    assert [(c.optim.lr, c.train.seed) for c in fake.ran] == [(0.001, 0), (0.001, 1), (0.002, 0), (0.002, 1)]
    assert {c.train.steps for c in fake.ran} == {20}
    assert statuses(found) == ["done"] * 4
    assert found.rows[3].scores["knn"]["method"] == pytest.approx(0.21)
    assert read(tmp_path / "s") == found


def test_the_table_has_a_line_for_each_run_and_the_figure_is_opaque(fake, tmp_path):
    sweep.run(grid("msn", "toy", TWO_AXES), tmp_path / "s")
    lines = list(csv.DictReader((tmp_path / "s" / "sweep.csv").open()))
    assert [(line["optim.lr"], line["train.seed"], line["knn"]) for line in lines][:2] == [
        ("0.001", "0", "0.1"),
        ("0.001", "1", "0.11"),
    ]
    assert (
        lines[0] | {"knn.raw_pixels": "0.5", "std": "0.5", "status": "done", "seconds": "2.0", "steps": "10"}
        == lines[0]
    )
    assert (tmp_path / "s" / lines[0]["folder"] / "report.json").is_file()
    image = Image.open(tmp_path / "s" / "sweep.png").convert("RGBA")
    assert image.getpixel((0, 0)) == (255, 255, 255, 255)  # text is black, so that a dark page needs a white face


def test_values_of_several_parts_words_and_booleans_are_values_like_numbers(fake, tmp_path):
    axes = {
        "views.global_scale": [(0.2, 1.0), (0.5, 1.0)],
        "optim.name": ["adamw", "sgd"],
        "train.tensorboard": [False, True],
        "optim.clip": [None, 1.0],
    }
    found = sweep.run(grid("msn", "toy", axes), tmp_path / "s")
    assert {c.views.global_scale for c in fake.ran} == {(0.2, 1.0), (0.5, 1.0)}
    assert {(c.optim.name, c.train.tensorboard, c.optim.clip) for c in fake.ran} == {
        (name, board, clip) for name in ("adamw", "sgd") for board in (False, True) for clip in (None, 1.0)
    }
    assert found.rows[0].settings["views.global_scale"] == (0.2, 1.0)
    assert read(tmp_path / "s").rows == found.rows
    assert sweep.label(found.rows[15]) == (
        "views.global_scale 0.5,1, optim.name sgd, train.tensorboard True, optim.clip 1"
    )
    assert Path(found.rows[15].folder).name == "015-global_scale=0.5,1-name=sgd-tensorboard=True-clip=1"


def test_a_run_that_diverged_is_a_row_and_is_not_made_again(fake, tmp_path):
    fake.errors = {0.001: Diverged("Training diverged at step 3: the loss is nan.")}
    found = sweep.run(grid("msn", "toy", {"optim.lr": [0.001, 0.002]}), tmp_path / "s")
    assert statuses(found) == ["diverged", "done"]
    assert found.rows[0].error == "last line"  # of the log, which has the error in a real run
    fake.ran.clear()
    assert sweep.run(grid("msn", "toy", {"optim.lr": [0.001, 0.002]}), tmp_path / "s") == found
    assert fake.ran == []


def test_a_run_that_failed_otherwise_is_a_row_and_is_tried_again(fake, tmp_path):
    fake.errors = {0.001: DataError("The disk was full.")}
    found = sweep.run(grid("msn", "toy", TWO_AXES), tmp_path / "s")
    assert statuses(found) == ["failed", "failed", "done", "done"]
    assert list(found.lost) == ["last line"]
    fake.errors = {}
    fake.ran.clear()
    assert statuses(sweep.run(grid("msn", "toy", TWO_AXES), tmp_path / "s")) == ["done"] * 4
    assert [c.optim.lr for c in fake.ran] == [0.001, 0.001]


def test_a_run_whose_process_was_killed_is_a_row_with_the_signal(fake, monkeypatch, tmp_path):
    monkeypatch.setattr(processes, "each", lambda commands, at_once: ((i, -9 * (i == 0)) for i in range(2)))
    monkeypatch.setattr(sweep, "finished", lambda folder: {"scores": {}} if "001" in folder.name else None)
    found = sweep.run(grid("msn", "toy", {"optim.lr": [0.001, 0.002]}), tmp_path / "s")
    assert [(row.status, row.error) for row in found.rows] == [
        ("failed", "Its process was ended by signal 9."),
        ("done", ""),
    ]


def test_if_every_run_failed_that_is_an_error(fake, tmp_path):
    fake.errors = dict.fromkeys((0.001, 0.002), DataError("No images."))
    with pytest.raises(RunError, match=r"All runs failed, the last so: last line \(its log: .*001-lr=0\.002\.log\)"):
        sweep.run(grid("msn", "toy", {"optim.lr": [0.001, 0.002]}), tmp_path / "s")


def test_a_stopped_sweep_goes_on_and_makes_only_what_is_missing(fake, tmp_path):
    fake.errors = {0.002: Interrupted("stop")}
    said = []
    with pytest.raises(Interrupted, match=rf"Stopped with 2 of 4 runs done\. Go on: .* --out {tmp_path}/s"):
        sweep.run(grid("msn", "toy", TWO_AXES), tmp_path / "s")
    assert statuses(read(tmp_path / "s")) == ["done", "done", "waiting", "waiting"]
    fake.errors = {}
    fake.ran.clear()
    found = sweep.run(
        grid("msn", "toy", TWO_AXES), tmp_path / "s", progress=lambda now, what: said.append((now.left, what))
    )
    assert [(c.optim.lr, c.train.seed) for c in fake.ran] == [(0.002, 0), (0.002, 1)]
    assert statuses(found) == ["done"] * 4
    assert said == [
        (2, "2 of 4 runs were there"),
        (1, "optim.lr 0.002, train.seed 0"),
        (0, "optim.lr 0.002, train.seed 1"),
    ]


def test_a_run_that_finished_while_nobody_wrote_its_row_is_kept_and_one_that_was_removed_is_made_again(fake, tmp_path):
    found = sweep.run(grid("msn", "toy", {"optim.lr": [0.001, 0.002]}), tmp_path / "s")
    text = (tmp_path / "s" / "sweep.json").read_text()
    (tmp_path / "s" / "sweep.json").write_text(text.replace('"done"', '"waiting"'))
    shutil.rmtree(tmp_path / "s" / found.rows[1].folder)
    fake.ran.clear()
    assert sweep.run(grid("msn", "toy", {"optim.lr": [0.001, 0.002]}), tmp_path / "s") == found
    assert [c.optim.lr for c in fake.ran] == [0.002]


@pytest.mark.parametrize(
    ("axes", "changes", "line"),
    [
        ({"optim.lr": [0.001, 0.003]}, {}, r"optim\.lr was 0\.001 0\.002 and is now 0\.001 0\.003"),
        ({"optim.lr": [0.002, 0.001]}, {}, r"optim\.lr was 0\.001 0\.002 and is now 0\.002 0\.001"),
        (TWO_AXES, {}, r"the list of fields was optim\.lr and is now optim\.lr train\.seed"),
        ({"optim.lr": [0.001, 0.002]}, {"train.steps": 5}, r"train\.steps was 10 and is now 5"),
    ],
)
def test_a_folder_with_another_grid_is_refused_in_one_line_and_not_changed(fake, axes, changes, line, tmp_path):
    sweep.run(grid("msn", "toy", {"optim.lr": [0.001, 0.002]}), tmp_path / "s")
    before = (tmp_path / "s" / "sweep.json").read_text()
    with pytest.raises(RunError, match=rf"holds a sweep of another grid: {line}\. Choose another --out\.$"):
        sweep.run(grid("msn", "toy", axes, changes), tmp_path / "s")
    assert (tmp_path / "s" / "sweep.json").read_text() == before


def test_a_folder_that_is_no_sweeps_is_refused(fake, tmp_path):
    asked = grid("msn", "toy", {"optim.lr": [0.001, 0.002]})
    (tmp_path / "notes.txt").touch()
    with pytest.raises(RunError, match="holds other files and is not the folder of a sweep"):
        sweep.run(asked, tmp_path)
    with pytest.raises(RunError, match=r"notes\.txt is a file"):
        sweep.run(asked, tmp_path / "notes.txt")
    with pytest.raises(RunError, match=r"it has no sweep\.json"):
        read(tmp_path)
    (tmp_path / "sweep.json").write_text("{}")
    with pytest.raises(RunError, match=r"sweep\.json cannot be read"):
        sweep.run(asked, tmp_path)
    assert fake.ran == []


def test_a_folder_in_which_another_sweep_is_at_work_is_refused(fake, monkeypatch, tmp_path):
    def held(path: Path) -> int:
        raise BlockingIOError("process 7 on here")

    monkeypatch.setattr(durable, "lock", held)
    with pytest.raises(RunError, match=r"is in use by process 7 on here\. Wait for it"):
        sweep.run(grid("msn", "toy", {"optim.lr": [0.001, 0.002]}), tmp_path / "s")


@pytest.mark.parametrize(
    ("axes", "line"),
    [
        ({"optim.lrr": [1, 2]}, r"There is no field optim\.lrr\. Did you mean 'optim\.lr'\?"),
        ({"optim.lr": ["a", 0.1]}, "wrong value type for field"),
        ({"optim.lr": []}, r"optim\.lr has no value"),
        ({"optim.lr": [1e-3, 0.001]}, r"optim\.lr has the value 0\.001 twice"),
        ({"views.global_scale": [(0.2, 1.0), [0.2, 1.0]]}, r"views\.global_scale has the value 0\.2,1 twice"),
        ({"optim.lr": [0.001]}, r"No field has several values.* recipes run msn"),
        ({}, "No field has several values"),
    ],
)
def test_a_grid_that_cannot_be_is_refused(fake, axes, line):
    with pytest.raises(ConfigError, match=line):
        grid("msn", "toy", axes)


def test_a_fault_of_several_runs_is_one_line_and_a_wrong_preset_is_named(fake):
    with pytest.raises(ConfigError) as told:
        grid("msn", "toy", {"train.batch_size": [1, 8], "train.seed": [0, 1, 2]})
    assert str(told.value) == "train.batch_size = 1 is not allowed: use a value of at least 2."
    with pytest.raises(ConfigError, match="Recipe msn has no preset 'toi'"):
        grid("msn", "toi", TWO_AXES)


def stored(axes: dict, score) -> Sweep:
    """A sweep without a folder; ``score`` of a setting is a number, or ``None`` if it diverged."""
    rows = []
    for setting in sweep.Grid("msn", "toy", axes, None).settings:
        value = score(setting)
        scores = {} if value is None else {"knn": {"method": value}}
        rows.append(Row(setting, "x", "diverged" if value is None else "done", scores))
    return Sweep(Path("s"), "msn", "toy", axes, {}, tuple(rows))


def test_the_figure_has_the_first_axis_on_x_the_second_as_lines_and_others_as_panels():
    axes = {"optim.lr": (1e-4, 1e-3), "train.seed": (0, 1), "optim.name": ("sgd", "lars"), "views.flip": (0.0, 0.5)}
    found = stored(axes, lambda s: 100 * s["optim.lr"] + s["train.seed"] + (s["optim.name"] == "sgd"))
    left, right = sweep.figure(found).axes
    assert [ax.get_title() for ax in (left, right)] == ["views.flip = 0", "views.flip = 0.5"]
    assert (left.get_xlabel(), left.get_ylabel(), left.get_xscale()) == ("optim.lr", "knn", "log")
    sgd, lars = left.containers
    assert [line.get_label() for line in (sgd, lars)] == ["optim.name = sgd", "optim.name = lars"]
    assert sgd[0].get_xydata().tolist() == [[1e-4, pytest.approx(1.51)], [1e-3, pytest.approx(1.6)]]  # over two seeds
    low, high = sgd[2][0].get_segments()[0][:, 1]
    assert (low, high) == (pytest.approx(1.01), pytest.approx(2.01))


def test_a_figure_of_seeds_alone_has_them_on_x_and_words_stand_in_their_order():
    (ax,) = sweep.figure(stored({"train.seed": (3, 4)}, lambda s: s["train.seed"])).axes
    assert ax.get_xlabel() == "train.seed"
    (ax,) = sweep.figure(stored({"views.global_scale": ((0.2, 1.0), (0.1, 1.0))}, lambda s: 1.0)).axes
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0.2,1", "0.1,1"]
    plots.pyplot.close("all")


def test_two_probes_are_two_panels_and_no_score_at_all_is_an_error():
    found = stored({"optim.lr": (1.0, 2.0)}, lambda s: s["optim.lr"])
    rows = tuple(Row(row.settings, "x", "done", {**row.scores, "linear": {"method": 0.5}}) for row in found.rows)
    both = Sweep(found.folder, "msn", "toy", found.axes, {}, rows)
    assert [ax.get_title() for ax in sweep.figure(both).axes] == ["knn", "linear"]
    with pytest.raises(RunError, match="nothing to draw"):
        sweep.figure(stored({"optim.lr": (1.0, 2.0)}, lambda s: None))
    plots.pyplot.close("all")


QUICK = "--preset toy --train.steps 8 --train.seed 0 1 --sync.workers 0 --eval.baselines none --data.train-size 64 --data.test-size 64"


def command(out: Path, flags: str = QUICK) -> list[str]:
    return [sys.executable, "-m", "recipes_lib", "sweep", "local_sgd", *flags.split(), "--out", str(out)]


def test_real_runs_in_their_own_processes_are_stopped_by_a_signal_and_go_on(tmp_path):
    out = tmp_path / "s"
    long = QUICK.replace("--train.steps 8", "--train.steps 100000 --train.checkpoint-every 50000")
    started = subprocess.Popen(command(out, long), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    metrics = [out / "runs" / name / "metrics.jsonl" for name in ("000-seed=0", "001-seed=1")]
    for _ in range(1200):
        if all(path.is_file() and path.stat().st_size for path in metrics) or started.poll() is not None:
            break
        time.sleep(0.1)
    started.send_signal(signal.SIGTERM)
    said, complaint = started.communicate(timeout=60)
    assert (started.returncode, said) == (3, "")
    assert complaint.splitlines()[-1] == (
        f"recipes: Stopped with 0 of 2 runs done. Go on: the same command with --out {out}"
    )
    for path in metrics:
        state = json.loads((path.parent / "state.json").read_text())
        assert state["status"] == "interrupted"
        assert state["step"] > 0
        holder = int((path.parent / ".lock").read_text().split()[1])
        with pytest.raises(ProcessLookupError):
            os.kill(holder, 0)


def test_real_runs_give_a_table_and_json(tmp_path):
    ended = subprocess.run([*command(tmp_path / "s"), "--json"], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert found == json.loads((tmp_path / "s" / "sweep.json").read_text())
    assert [run["status"] for run in found["runs"]] == ["done", "done"]
    assert found["runs"][0]["scores"].keys() == {"accuracy"}
