# SPDX-License-Identifier: Apache-2.0
"""The flags of ``recipes sweep``, and what it prints; the sweep itself is that of a recipe that trains nothing."""

import json
from pathlib import Path

import pytest

from recipes_lib import cli
from recipes_lib.errors import Interrupted
from recipes_lib.launch import sweep
from recipes_lib.launch.sweep import Grid, Row, Sweep


@pytest.fixture
def swept(ran, monkeypatch) -> list[tuple[Grid, Path | None, int]]:
    """What ``sweep.run`` was called with. Runs with ``optim.clip`` 1 diverge, those with 2 fail, others score."""
    calls = []

    def run(grid: Grid, out: Path | None, *, jobs: int, progress) -> Sweep:
        calls.append((grid, out, jobs))
        rows = []
        for number, setting in enumerate(grid.settings):
            status = {1.0: "diverged", 2.0: "failed"}.get(setting.get("optim.clip"), "done")
            scores = {"knn": {"method": 0.5 + number / 100}} if status == "done" else {}
            error = "" if status == "done" else "no luck"
            rows.append(Row(setting, f"runs/{number}", status, scores, 3.0 if scores else None, 10, error))
        found = Sweep(Path("s"), grid.recipe, grid.preset, grid.axes, {}, tuple(rows))
        progress(found, "the last")
        return found

    monkeypatch.setattr(sweep, "run", run)
    return calls


BEGIN = ["sweep", "msn", "--preset", "toy"]


def test_every_word_after_a_flag_is_a_value_and_commas_join_the_parts_of_one(swept):
    flags = (
        "--optim.lr 1e-2 0.003 --optim.betas 0.9,0.99 0.9,0.95 --optim.lr_drops=  1,2 --train.tensorboard True False"
    )
    flags += " --optim.clip None 3 --data.name digits pantry --train.seed=0 1 --train.steps 20 --eval.probes knn,linear"
    assert cli.main([*BEGIN, *flags.split(), "--jobs", "3", "--out", "there", "--confirm", "128"]) == 0
    ((grid, out, jobs),) = swept
    assert dict(grid.axes) == {
        "optim.lr": (0.01, 0.003),
        "optim.betas": ((0.9, 0.99), (0.9, 0.95)),
        "optim.lr_drops": ((), (1.0, 2.0)),
        "train.tensorboard": (True, False),
        "optim.clip": (None, 3.0),
        "data.name": ("digits", "pantry"),
        "train.seed": (0, 1),
    }
    assert next(iter(grid.axes)) == "optim.lr"
    assert (grid.config.train.steps, grid.config.eval.probes, grid.config.optim.lr_drops) == (20, ("knn", "linear"), ())
    assert (out, jobs) == (Path("there"), 3)


def test_a_flags_hyphen_and_underscore_are_the_same_field(swept):
    assert cli.main([*BEGIN, "--train.checkpoint-every", "5", "7"]) == 0
    assert dict(swept[0][0].axes) == {"train.checkpoint_every": (5, 7)}


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ("", "No field has several values, so there is nothing to sweep. For one run: recipes run msn."),
        ("--optim.lr 0.001", "No field has several values"),
        ("--optim.lrr 1 2", "There is no field optim.lrr. Did you mean 'optim.lr'?"),
        (
            "--optim.lr 0.001 abc",
            "Error parsing --optim.lr: could not convert string to float: 'abc'. See: recipes run",
        ),
        ("--train.steps 5 1.5", "Error parsing --train.steps:"),
        ("--data.name digits foo", "invalid choice 'foo' for argument '--data.name'."),
        ("--optim.betas 0.9 0.8", "Missing value for argument '--optim.betas'. Expected 2 values."),
        ("--optim.lr", "--optim.lr has no value. Give one or more"),
        ("--optim.lr --train.seed 0 1", "--optim.lr has no value."),
        ("--optim.lr 1e-3 2e-3 0.001", "optim.lr has the value 0.001 twice. Give each value once."),
        ("--optim.lr 0.001 --train.seed 0 1 --optim.lr 0.002", "optim.lr is given twice."),
        (
            "--eval.probes knn linear",
            "eval.probes is the same in all runs of a sweep. For several write --eval.probes ",
        ),
        ("0.001 --optim.lr 0.002", "These values belong to no field: 0.001."),
        ("--train.batch-size 1 8", "train.batch_size = 1 is not allowed: use a value of at least 2."),
        ("--optim.lr 0.001 nan", "optim.lr = nan is not a number."),
        ("--train.seed 0 1 --jobs 0", "--jobs = 0 is not allowed: use a value of at least 1."),
        (f"--train.seed {' '.join(map(str, range(51)))}", "This grid has 51 runs. If that is meant, add --confirm 51."),
        (
            f"--train.seed {' '.join(map(str, range(30)))} --optim.lr 1e-3 2e-3 --confirm 30",
            "This grid has 60 runs. If that is meant, add --confirm 60.",
        ),
    ],
)
def test_a_mistake_is_one_line_and_nothing_runs(flags, line, capsys, swept):
    assert cli.main([*BEGIN, *flags.split()]) == 2
    said = capsys.readouterr()
    assert (said.out, swept) == ("", [])
    assert said.err.count("\n") == 1
    assert said.err.startswith(f"recipes: {line}")


def test_a_wrong_recipe_and_a_missing_preset_are_told_as_everywhere(capsys):
    assert cli.main(["sweep", "mns"]) == cli.main(["sweep", "msn"]) == 2
    assert "Did you mean 'msn'?" in (said := capsys.readouterr().err)
    assert "--preset is missing." in said


def test_the_table_averages_over_seeds_and_counts_the_runs_without_a_score(swept, capsys):
    assert cli.main([*BEGIN, "--optim.clip", "None", "1", "2", "--train.seed", "0", "1"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "optim.clip knn seconds",
        "None 0.505 (0.500 to 0.510) 3",
        "1 2 of 2 diverged",
        "2 2 of 2 failed",
        "failed: no luck (its log: s/runs/5.log)",
        "table and figure: s/sweep.csv, .json, .png",
    ]


def test_where_no_run_has_a_score_there_is_no_figure_to_name(swept, capsys):
    assert cli.main([*BEGIN, "--optim.clip", "1", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["optim.clip", "seconds"]
    assert lines[-1] == "table: s/sweep.csv, .json"


def test_as_json_it_prints_the_stored_sweep_alone(swept, capsys):
    assert cli.main([*BEGIN, "--optim.betas", "0.9,0.99", "0.8,0.9", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["axes"] == {"optim.betas": [[0.9, 0.99], [0.8, 0.9]]}
    assert found["runs"][1]["scores"] == {"knn": {"method": 0.51}}


def test_a_stopped_sweep_exits_with_3(ran, capsys, monkeypatch):
    def run(*_, **__):
        raise Interrupted("Stopped with 1 of 2 runs done.")

    monkeypatch.setattr(sweep, "run", run)
    assert cli.main([*BEGIN, "--train.seed", "0", "1"]) == 3
    assert capsys.readouterr().err.splitlines()[-1] == "recipes: Stopped with 1 of 2 runs done."
