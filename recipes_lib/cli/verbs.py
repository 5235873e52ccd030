# SPDX-License-Identifier: Apache-2.0
"""One function per command. Modules that import torch are imported inside the functions that need them."""

import argparse
import math
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from recipes_lib import recipes, terminal
from recipes_lib.cli import display
from recipes_lib.errors import ConfigError, nearest
from recipes_lib.recipes import MENU, Entry

if TYPE_CHECKING:
    from rich.progress import Progress

    from recipes_lib.pretraining.engine import Result

Act = Callable[[argparse.Namespace], int | None]
"""Does what a command asks for; returns the exit code if it is not 0."""
UNASKED = 50
"""Number of runs that a sweep makes without a confirmation."""
FOUND = 4
"""Exit code of ``recipes doctor`` if it found something."""


def list_menu(arguments: argparse.Namespace) -> None:
    """``recipes list``: prints the menu."""
    if arguments.json:
        display.as_json([display.entry_facts(entry) for entry in MENU.values()])
    else:
        display.show(display.menu(MENU))


def show(arguments: argparse.Namespace) -> None:
    """``recipes show NAME``: prints a recipe's card."""
    entry = _entry(arguments.name)
    if arguments.json:
        display.as_json(display.card_facts(entry))
    else:
        display.show(display.card(entry))


def plan(arguments: argparse.Namespace) -> None:
    """``recipes plan NAME --preset P``: prints what a run would cost."""
    from recipes_lib.cli import flags, plan_table

    entry = _entry(arguments.name)
    preset = flags.preset_of("plan", entry.name, arguments.preset, entry.presets)
    for name in ("nodes", "gpus"):
        if (value := getattr(arguments, name)) is not None and value < 1:
            raise ConfigError(f"--{name} = {value} is not allowed: use a value of at least 1.")
    with terminal.aside().status(f"planning {entry.name}, preset {preset}"):
        from recipes_lib.launch import plan as planner

        prog = f"recipes plan {entry.name} --preset {preset}"
        config = flags.parse(recipes.named(entry.name).presets[preset], arguments.flags, prog=prog, about=entry.title)
        found = planner.plan(
            entry.name,
            config,
            world=arguments.nodes * (arguments.gpus or planner.usual_gpus(entry.name, config)),
            gpu=arguments.gpu,
            utilisation=arguments.utilisation,
            images=arguments.images,
            preset=preset,
        )
    if arguments.json:
        display.as_json(found.as_dict())
    else:
        display.show(plan_table.show(found))


def run(arguments: argparse.Namespace) -> None:
    """``recipes run NAME --preset P``: trains, scores and prints the scores."""
    from recipes_lib.cli import flags  # importing tyro takes 0.1 s, which list and show do not need

    entry = _entry(arguments.name)
    own, rest = flags.split(arguments.flags)
    if {"-h", "--help"} & set(rest):
        own.setdefault("preset", entry.presets[0])
    preset = flags.preset_of("run", entry.name, own.get("preset"), entry.presets)
    prog = f"recipes run {entry.name} --preset {preset}"
    about = (
        f"{entry.title}, preset {preset}. Further flags: --preset {{{','.join(entry.presets)}}}, "
        "--out DIR (the run folder; default runs/NAME-DATE)."
    )
    recipe = recipes.named(entry.name)
    config = flags.parse(recipe.presets[preset], rest, prog=prog, about=about)
    _finish(recipe.run(config, flags.out_of(own)))


def sweep(arguments: argparse.Namespace) -> None:
    """``recipes sweep NAME --preset P --optim.lr 1e-4 1e-3``: makes the runs of a grid and prints their scores."""
    entry = _entry(arguments.name)
    _positive_jobs(arguments.jobs)
    from recipes_lib.cli import flags

    preset = flags.preset_of("sweep", entry.name, arguments.preset, entry.presets)
    with terminal.aside().status(f"checking the runs of {entry.name}, preset {preset}"):
        from recipes_lib.launch import sweep as trial

        prog = f"recipes run {entry.name} --preset {preset}"
        values = flags.values_of(recipes.named(entry.name).presets[preset], arguments.flags, prog=prog)
        count = math.prod(map(len, values.values()))
        if count > UNASKED and count != arguments.confirm:
            raise ConfigError(f"This grid has {count:,} runs. If that is meant, add --confirm {count}.")
        axes = {field: some for field, some in values.items() if len(some) > 1}
        alike = {field: some[0] for field, some in values.items() if len(some) == 1}
        grid = trial.grid(entry.name, preset, axes, alike)
    with _bar() as bar:
        task = bar.add_task(f"sweep {entry.name}", total=count)

        def progress(found: "trial.Sweep", what: str) -> None:
            bar.update(task, completed=count - found.left, description=display.sweep_state(found, what, arguments.jobs))

        found = trial.run(grid, arguments.out, jobs=arguments.jobs, progress=progress)
    if arguments.json:
        display.as_json(trial.facts(found))
    else:
        display.show(display.sweep(found))
        drawn = "table and figure" if found.probes else "table"
        display.show(f"{drawn}: {found.folder / 'sweep'}.csv, .json{', .png' if found.probes else ''}")


def resume(arguments: argparse.Namespace) -> None:
    """``recipes resume DIR``: continues an interrupted run and prints its scores."""
    from recipes_lib.pretraining import runs

    _finish(
        runs.resume(
            recipes.of_run(arguments.folder), arguments.folder, on_damage=arguments.on_damage, changed=arguments.changed
        )
    )


def evaluate(arguments: argparse.Namespace) -> None:
    """``recipes evaluate DIR --probe knn linear lowshot``: scores a run's weights and prints the scores."""
    from recipes_lib.pretraining import runs

    fields = {name: value for name, value in vars(arguments).items() if name.startswith("eval.") and value is not None}
    found = runs.evaluate(
        recipes.that_trained(arguments.folder),
        arguments.folder,
        arguments.probe,
        on_damage=arguments.on_damage,
        corruptions=fields,
    )
    if arguments.json:
        display.as_json(found)
    else:
        _show_scores(found)


def doctor(arguments: argparse.Namespace) -> int:
    """``recipes doctor DIR``: runs all diagnostics on a run folder; the exit code is 4 if something was found."""
    from functools import partial

    from recipes_lib.pretraining import doctor as diagnostics
    from recipes_lib.pretraining import two_ranks

    if arguments.ranks not in (1, 2):
        raise ConfigError(f"--ranks = {arguments.ranks} is not allowed: use 1, or 2 to compare two processes with one.")
    recipe = recipes.of_run(arguments.folder)
    findings = diagnostics.diagnose(recipe, arguments.folder)
    if arguments.ranks == 2:
        findings.append(two_ranks.compare(partial(recipes.that_trained, arguments.folder), arguments.folder))
    if arguments.json:
        display.as_json([asdict(finding) for finding in findings])
    else:
        for finding in findings:
            display.show(finding.line)
    return FOUND if any(finding.status == "found" for finding in findings) else 0


def export(arguments: argparse.Namespace) -> None:
    """``recipes export DIR --format timm|hf``: writes a run's backbone and prints the new folder."""
    from recipes_lib.pretraining import runs

    out = arguments.out or arguments.folder / f"export-{arguments.format}"
    runs.export(recipes.that_trained(arguments.folder), arguments.folder, arguments.format, out)
    display.show(str(out))


def import_weights(arguments: argparse.Namespace) -> None:
    """``recipes import FILE --format msn|timm|hf --out DIR``: makes a run folder from weights that others trained."""
    from recipes_lib.cli import flags
    from recipes_lib.recipes.msn import imported

    weights = imported.read(arguments.file, arguments.format)
    about = "The config of the run that the weights become."
    config = flags.parse(weights.config, arguments.flags, prog="recipes import", about=about)
    _finish(imported.write(weights, config, arguments.out))


def cook(arguments: argparse.Namespace) -> None:
    """``recipes cook NAME``: makes and stores the run that a chapter shows as cooked earlier."""
    entry = _entry(arguments.name)
    from recipes_lib.claims import cook as kitchen

    display.show(str(kitchen.cook(entry.name)))


def verify(arguments: argparse.Namespace) -> None:
    """``recipes verify NAME``: runs a chapter's arms, stores their metrics and prints the verdicts."""
    entry = _entry(arguments.name)
    _positive_jobs(arguments.jobs)
    from recipes_lib import claims
    from recipes_lib.claims import verify as trial

    with _bar() as bar:
        task = bar.add_task(f"verify {entry.name}", total=None)

        def progress(done: int, total: int, what: str) -> None:
            bar.update(task, completed=done, total=total or None, description=what)

        path = trial.verify(entry.name, arguments.arm, jobs=arguments.jobs, progress=progress)
    verdicts, lacking = claims.measured(entry.name)
    for line in [*(verdict.line for verdict in verdicts.values()), *lacking]:
        display.show(line)
    display.show(str(path))


def _positive_jobs(jobs: int) -> None:
    """Raises ``ConfigError`` unless at least one run may go on at a time."""
    if jobs < 1:
        raise ConfigError(f"--jobs = {jobs} is not allowed: use a value of at least 1.")


def _bar() -> "Progress":
    """A progress bar on stderr: the runs that are done of all, the time, and what was done last."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    return Progress(*columns, console=terminal.aside())


def _entry(name: str) -> Entry:
    if name not in MENU:
        raise ConfigError(f"There is no recipe {name!r}. {nearest(name, MENU)}")
    return MENU[name]


def _finish(result: "Result") -> None:
    _show_scores(result.report)
    if "cooked" in result.report:
        display.show(display.beside_cooked(result.report))
    if chosen := result.report.get("selection"):
        file = result.folder / "subset.npy"
        display.show(f"kept {chosen['kept']:,} of {chosen['pool']:,} pairs: {file}")
    display.show(f"run folder: {result.folder}")


def _show_scores(report: dict[str, Any]) -> None:
    tables = (
        ("scores", display.scores),
        ("factors", display.factors),
        ("corruptions", display.corruptions),
        ("label_free", display.label_free),
    )
    for part, table in tables:
        if report.get(part):
            display.show(table(report[part]))
