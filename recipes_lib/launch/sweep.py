# SPDX-License-Identifier: Apache-2.0
"""Sweeps: a run for every combination of some fields' values, several at a time, then one table and one figure.

A sweep's folder holds ``sweep.json`` (the grid, and a row for each run), ``sweep.csv`` (the rows), ``sweep.png`` and
``runs/``: a run folder and a log for each run. A sweep that was stopped goes on where it was: finished and diverged runs
are kept, unfinished ones are resumed, and those that failed for another reason are tried again.

``recipes sweep`` calls :func:`run`; a chapter calls it too, or shows a stored sweep with :func:`read` and :func:`figure`.
"""

import contextlib
import csv
import dataclasses
import io
import itertools
import json
import math
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from recipes_lib import durable, processes, recipes, terminal
from recipes_lib.config import dotted, from_dict, override, to_dict
from recipes_lib.errors import STOP_SIGNALS, ConfigError, Diverged, Interrupted, RunError, UserError, nearest
from recipes_lib.training.folder import default_path, finished

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SEED = "train.seed"
"""The field over whose values tables and figures average."""
DIVERGED = 5
"""Exit code of a run's process if its loss was not finite. Such a run is a result, and is not tried again."""
Status = Literal["waiting", "done", "diverged", "failed"]


@dataclass(frozen=True)
class Grid:
    """The runs of a sweep: all combinations of the values of some fields of a recipe's config."""

    recipe: str
    preset: str
    axes: Mapping[str, tuple[Any, ...]]
    """The values of each field that has several, by dotted name, as YAML has them, lists as tuples."""
    config: Any
    """The config of the first run."""

    @property
    def settings(self) -> list[dict[str, Any]]:
        """The values of the axes' fields for each run; those of the last axis change fastest."""
        return [dict(zip(self.axes, values, strict=True)) for values in itertools.product(*self.axes.values())]

    def validate(self) -> None:
        """Raises ``ConfigError`` if the recipe does not allow a run: a line for each fault, however many runs have it."""
        lines: dict[str, None] = {}
        for setting in self.settings:
            try:
                override(self.config, setting).validate()
            except ConfigError as error:
                lines |= dict.fromkeys(str(error).splitlines())
        if lines:
            raise ConfigError("\n".join(lines))


@dataclass(frozen=True)
class Row:
    """A run of a sweep and its outcome."""

    settings: Mapping[str, Any]
    """The values of the axes' fields."""
    folder: str
    """The run folder, relative to the sweep's."""
    status: Status = "waiting"
    """waiting: not finished, perhaps not started. diverged: its loss was not finite. failed: another error ended it."""
    scores: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
    """The scores of the run's report by probe and arm, those of probes without labels too; empty unless it is done."""
    seconds: float | None = None
    steps: int | None = None
    error: str = ""
    """The error that ended the run."""


@dataclass(frozen=True)
class Sweep:
    """A sweep as its folder holds it, finished or not."""

    folder: Path
    recipe: str
    preset: str
    axes: Mapping[str, tuple[Any, ...]]
    config: Mapping[str, Any]
    """The config of the first run, as plain values."""
    rows: tuple[Row, ...]

    @property
    def probes(self) -> tuple[str, ...]:
        """The probes of which at least one run has a score."""
        return tuple(dict.fromkeys(probe for row in self.rows for probe in row.scores))

    @property
    def lost(self) -> dict[str, Row]:
        """The runs that failed, not counting those that diverged, by their error, each error once."""
        return {row.error: row for row in self.rows if row.status == "failed"}

    @property
    def left(self) -> int:
        """The number of runs that are still to be made."""
        return sum(row.status == "waiting" for row in self.rows)

    def over_seeds(self) -> list[tuple[dict[str, Any], list[Row]]]:
        """The settings without the seed, in the grid's order, each with its rows: one per seed."""
        found: dict[tuple[Any, ...], tuple[dict[str, Any], list[Row]]] = {}
        for row in self.rows:
            setting = {field: value for field, value in row.settings.items() if field != SEED}
            found.setdefault(tuple(setting.values()), (setting, []))[1].append(row)
        return list(found.values())


Progress = Callable[[Sweep, str], None]
"""Called with the sweep as it is, and a text about the run that has just ended."""


def grid(recipe: str, preset: str, axes: Mapping[str, Sequence[Any]], changes: Mapping[str, Any] | None = None) -> Grid:
    """The grid of all combinations of ``axes`` (values by dotted field) on a preset with the fields ``changes`` replaced.

    Raises: ``ConfigError`` naming an unknown recipe, preset or field, a field without a value or with a value twice, or
    the values that the recipe does not allow; or if there is only one run.
    """
    presets = recipes.named(recipe).presets
    if preset not in presets:
        raise ConfigError(f"Recipe {recipe} has no preset {preset!r}. {nearest(preset, presets)}")
    base = override(presets[preset], dict(changes or {}))
    plain: dict[str, tuple[Any, ...]] = {}
    for field, values in axes.items():
        if not values:
            raise ConfigError(f"{field} has no value. Give it one or more.")
        plain[field] = tuple(_plain(dotted(to_dict(override(base, {field: value})))[field]) for value in values)
        twice = [value for place, value in enumerate(plain[field]) if value in plain[field][:place]]
        if twice:
            raise ConfigError(f"{field} has the value {spelled(twice[0])} twice. Give each value once.")
    if math.prod(map(len, plain.values())) < 2:
        raise ConfigError(
            f"No field has several values, so there is nothing to sweep. For one run: recipes run {recipe}."
        )
    found = Grid(recipe, preset, plain, override(base, {field: values[0] for field, values in plain.items()}))
    found.validate()
    return found


def run(grid: Grid, out: Path | None = None, *, jobs: int = 2, progress: Progress = lambda *_: None) -> Sweep:
    """Makes the runs of ``grid`` that ``out`` (default ``runs/sweep-NAME-DATE``) lacks, ``jobs`` at a time.

    A run that fails is a row that says so. Table and figure are written at the end, ``sweep.json`` after every run.

    Raises: ``RunError`` if ``out`` holds something else, or a sweep of another grid, or is in use, or if all runs failed;
    ``Interrupted`` after Ctrl-C.
    """
    out = out or default_path(f"sweep-{grid.recipe}")
    with _locked(out):
        found = _create_or_continue(grid, out)
        _write(found)
        todo = [index for index, row in enumerate(found.rows) if row.status == "waiting"]
        progress(found, f"{len(found.rows) - len(todo)} of {len(found.rows)} runs were there")
        try:
            with contextlib.closing(processes.each([_command(found, index) for index in todo], jobs)) as ends:
                for place, code in ends:
                    found = _with_row(found, todo[place], _ended(found, todo[place], code))
                    _write(found)
                    progress(found, label(found.rows[todo[place]]))
        except (KeyboardInterrupt, Interrupted):
            done = len(found.rows) - found.left
            raise Interrupted(
                f"Stopped with {done} of {len(found.rows)} runs done. Go on: the same command with --out {out}"
            ) from None
        _write_figure(found)
    if all(row.status == "failed" for row in found.rows):
        raise RunError(f"All runs failed, the last so: {found.rows[-1].error} (its log: {_command(found, -1).log})")
    return found


def read(out: Path) -> Sweep:
    """The sweep in the folder ``out``, finished or not. Raises: ``RunError`` if there is none."""
    path = out / "sweep.json"
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        axes = {field: tuple(map(_plain, values)) for field, values in stored["axes"].items()}
        rows = tuple(
            Row(**{**row, "settings": {field: _plain(value) for field, value in row["settings"].items()}})
            for row in stored["runs"]
        )
        return Sweep(out, stored["recipe"], stored["preset"], axes, stored["config"], rows)
    except FileNotFoundError:
        raise RunError(f"{out} is not the folder of a sweep: it has no sweep.json.") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise RunError(f"{path} cannot be read. Choose another --out.") from None


def facts(found: Sweep) -> dict[str, Any]:
    """The content of ``sweep.json``: the grid, and what is known of each run."""
    rows = [dataclasses.asdict(row) for row in found.rows]
    return {
        "recipe": found.recipe,
        "preset": found.preset,
        "axes": dict(found.axes),
        "config": found.config,
        "runs": rows,
    }


def table(found: Sweep) -> str:
    """The content of ``sweep.csv``: a line for each run. The column of a probe is the method's score."""
    arms = dict.fromkeys((probe, arm) for row in found.rows for probe, scores in row.scores.items() for arm in scores)
    names = [probe if arm == "method" else f"{probe}.{arm}" for probe, arm in arms]
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow([*found.axes, "status", *names, "seconds", "steps", "folder", "error"])
    for row in found.rows:
        scores = [row.scores.get(probe, {}).get(arm) for probe, arm in arms]
        values = map(spelled, row.settings.values())
        lines.writerow([*values, row.status, *scores, row.seconds, row.steps, row.folder, row.error])
    return text.getvalue()


def figure(found: Sweep, *, levels: Mapping[str, float] | None = None) -> "Figure":
    """The method's scores: the first axis on x, the second as lines, and a panel for each value of the others.

    The mean over the seeds is drawn, with their range; a cross stands where no run has a score. ``levels`` are named
    horizontal lines. A sweep over seeds alone has them on x.

    Raises: ``RunError`` if no run has a score.
    """
    from recipes_lib import plots  # takes half a second, which the process of each run does not need

    if not found.probes:
        raise RunError(f"No run in {found.folder} has a score, so there is nothing to draw.")
    fields = [field for field, values in found.axes.items() if field != SEED and len(values) > 1] or [SEED]
    panels: dict[str, dict[str, dict[float | str, list[float]]]] = {}
    for probe in found.probes:
        for row in found.rows:
            names = [f"{field} = {spelled(row.settings[field])}" for field in fields[1:]]
            title = ", ".join(([probe] if len(found.probes) > 1 else []) + names[1:])
            line = panels.setdefault(title, {}).setdefault(names[0] if names else "", {})
            seeds = line.setdefault(_place(row.settings[fields[0]]), [])
            if probe in row.scores:
                seeds.append(row.scores[probe]["method"])
    ylabel = found.probes[0] if len(found.probes) == 1 else "score"
    return plots.responses(panels, xlabel=fields[0], ylabel=ylabel, levels=levels)


def spelled(value: Any) -> str:
    """A value as the command line takes it: the parts of a value of several parts are joined by commas.

    >>> spelled((0.2, 1.0))
    '0.2,1'
    """
    if isinstance(value, tuple):
        return ",".join(map(spelled, value))
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)


def label(row: Row) -> str:
    """A run's settings in a line, such as ``optim.lr 0.001, train.seed 0``."""
    return ", ".join(f"{field} {spelled(value)}" for field, value in row.settings.items())


def _plain(value: Any) -> Any:
    """A value of YAML or JSON with its lists as tuples, which can be compared and be keys."""
    return tuple(map(_plain, value)) if isinstance(value, list | tuple) else value


def _place(value: Any) -> float | str:
    """A number for the x axis as it is; every other value as a word."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else spelled(value)


@contextlib.contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Makes the folder of a sweep and locks it.

    Raises: ``RunError`` if it cannot be one: it is a file, holds other files, cannot be written, or is in use.
    """
    if out.exists() and not out.is_dir():
        raise RunError(f"{out} is {durable.kind(out)}. Choose another --out.")
    there = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if "sweep.json" not in there and not there <= {".lock", ".sweep.json.partial"}:
        raise RunError(f"{out} holds other files and is not the folder of a sweep. Choose another --out.")
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = durable.lock(out / ".lock")
    except BlockingIOError as held:
        raise RunError(f"{out} is in use by {held}. Wait for it, or choose another --out.") from None
    except OSError as error:
        raise RunError(f"{out} cannot be written: {error.strerror}. Choose another --out.") from None
    try:
        yield
    finally:
        os.close(lock)


def _create_or_continue(grid: Grid, out: Path) -> Sweep:
    """The sweep in ``out``, or a new one. Raises: ``RunError`` if that in ``out`` has another grid."""
    if not (out / "sweep.json").is_file():
        rows = tuple(Row(setting, f"runs/{_folder_name(i, setting)}") for i, setting in enumerate(grid.settings))
        return Sweep(out, grid.recipe, grid.preset, grid.axes, to_dict(grid.config), rows)
    found = read(out)
    for what, was, now in _differences(grid, found):
        raise RunError(f"{out} holds a sweep of another grid: {what} was {was} and is now {now}. Choose another --out.")
    return dataclasses.replace(found, rows=tuple(_as_found(out, row) for row in found.rows))


def _differences(grid: Grid, found: Sweep) -> Iterator[tuple[str, str, str]]:
    """What differs between a grid and a stored sweep: the name, and both values as texts."""
    if found.recipe != grid.recipe:
        yield "the recipe", found.recipe, grid.recipe
        return
    if list(found.axes) != list(grid.axes):
        yield "the list of fields", " ".join(found.axes), " ".join(grid.axes)
    for field, values in found.axes.items():
        if values != grid.axes.get(field):
            yield field, *(" ".join(map(spelled, of)) for of in (values, grid.axes.get(field, ())))
    try:
        before = dotted(to_dict(from_dict(type(grid.config), dict(found.config))))
    except ConfigError as error:
        raise RunError(f"{found.folder / 'sweep.json'}: {error}") from None
    for field, value in dotted(to_dict(grid.config)).items():
        if before.get(field) != value:
            yield field, *(spelled(_plain(of)) for of in (before.get(field), value))


def _as_found(out: Path, row: Row) -> Row:
    """The row as its run folder has it: done, diverged, or to be made (again)."""
    if report := finished(out / row.folder):
        return _of_report(row, report)
    if row.status == "diverged" and (out / row.folder).is_dir():
        return row
    return Row(row.settings, row.folder)


def _of_report(row: Row, report: Mapping[str, Any]) -> Row:
    scores = {**report.get("scores", {}), **report.get("label_free", {})}
    return Row(row.settings, row.folder, "done", scores, report.get("seconds"), report.get("steps"))


def _ended(found: Sweep, index: int, code: int) -> Row:
    """The row of a run whose process ended. Raises: ``Interrupted`` if the process was asked to stop."""
    row = found.rows[index]
    if code == Interrupted.exit_code:
        raise Interrupted(label(row))
    report = finished(found.folder / row.folder) if code == 0 else None
    if report is not None:
        return _of_report(row, report)
    error = _command(found, index).last_line if code >= 0 else f"Its process was ended by signal {-code}."
    return Row(row.settings, row.folder, "diverged" if code == DIVERGED else "failed", error=error)


def _with_row(found: Sweep, index: int, row: Row) -> Sweep:
    return dataclasses.replace(found, rows=(*found.rows[:index], row, *found.rows[index + 1 :]))


def _folder_name(index: int, setting: Mapping[str, Any]) -> str:
    """A name that is unique by its number and says the values, as far as a file's name can."""
    values = "-".join(f"{field.rpartition('.')[2]}={spelled(value)}" for field, value in setting.items())
    return f"{index:03d}-{re.sub(r'[^A-Za-z0-9_.,=+-]+', '_', values)[:80]}"


def _command(found: Sweep, index: int) -> processes.Command:
    """The command that makes one run: this file as a program."""
    folder = found.folder / found.rows[index].folder
    words = (sys.executable, "-m", "recipes_lib.launch.sweep", str(found.folder), str(index))
    return processes.Command(words, folder.with_name(f"{folder.name}.log"))


def _write(found: Sweep) -> None:
    durable.write_text(found.folder / "sweep.json", json.dumps(facts(found), indent=1) + "\n")
    durable.write_text(found.folder / "sweep.csv", table(found))


def _write_figure(found: Sweep) -> None:
    """Writes ``sweep.png``, if any run has a score."""
    if not found.probes:
        return
    from matplotlib import pyplot

    from recipes_lib import plots

    with pyplot.rc_context(plots.STYLE), durable.whole(found.folder / "sweep.png") as partial:
        drawn = figure(found)
        drawn.savefig(partial, format="png")
        pyplot.close(drawn)


def _worker(out: Path, index: int) -> int:
    """Makes one run in this process, which :func:`run` started; returns the exit code."""
    for number in STOP_SIGNALS:  # outside the training loop, which has its own handlers, they act like Ctrl-C
        signal.signal(number, signal.default_int_handler)
    try:
        found = read(out)
        row, recipe = found.rows[index], recipes.named(found.recipe)
        config = override(from_dict(recipe.config, dict(found.config)), dict(row.settings))
        recipe.run(config, out / row.folder)
    except KeyboardInterrupt:
        return Interrupted.exit_code
    except UserError as error:
        terminal.complain(str(error))
        return DIVERGED if isinstance(error, Diverged) else error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(_worker(Path(sys.argv[1]), int(sys.argv[2])))
