# SPDX-License-Identifier: Apache-2.0
"""Output of the command line: the menu, a recipe's card, tables of scores, JSON."""

import contextlib
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from recipes_lib import recipes
from recipes_lib.errors import OutputClosed
from recipes_lib.recipes import Entry

if TYPE_CHECKING:
    from recipes_lib.launch.sweep import Sweep

COLUMNS = ("method", "random_init", "raw_pixels", "supervised", "cooked")


def rank() -> str:
    """The rank of this process as a string, from torchrun's or Slurm's environment; "0" without a launcher."""
    return os.environ.get("RANK") or (os.environ.get("SLURM_STEP_ID") and os.environ.get("SLURM_PROCID")) or "0"


class _Results(Console):
    """A console that leaves a closed pipe to :func:`recipes_lib.cli.main`; rich's own would exit with code 1."""

    def on_broken_pipe(self) -> None:
        raise


def show(content: RenderableType) -> None:
    """Prints a result to stdout in rank 0; other ranks print nothing.

    Text is shown as it is: brackets, for instance in a path, are not read as mark-up.

    Raises: ``OutputClosed`` if stdout is closed or its disk is full; ``BrokenPipeError`` if its reader closed the pipe.
    """
    if rank() == "0":
        with _output_errors():
            _Results(file=sys.stdout, markup=False, highlight=False, soft_wrap=True).print(content)


def as_json(content: Any) -> None:
    """Prints ``content`` as JSON in rank 0. Raises: as :func:`show`."""
    if rank() == "0":
        with _output_errors():
            sys.stdout.write(json.dumps(content, indent=2, default=str) + "\n")


def flush() -> None:
    """Flushes stdout, so that an error such as a full disk is raised here. Raises: as :func:`show`."""
    if sys.stdout is not None:
        with _output_errors():
            sys.stdout.flush()


def give_up_output() -> None:
    """Discards the rest of stdout, which would otherwise raise the same error again when the interpreter ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def _output_errors() -> Iterator[None]:
    if sys.stdout is None:
        raise OutputClosed("Standard output is closed, so the result cannot be shown. Open it, or send it to a file.")
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        give_up_output()
        raise OutputClosed(f"Standard output cannot be written: {error.strerror}.") from None


def entry_facts(entry: Entry) -> dict[str, Any]:
    """A menu entry as plain values, for ``list --json``."""
    names = ("name", "title", "paper", "idea", "chapter")
    return {**{name: getattr(entry, name) for name in names}, "presets": list(entry.presets)}


def card_facts(entry: Entry) -> dict[str, Any]:
    """A recipe's card as plain values, for ``show --json``."""
    facts = [
        {
            "id": claim.id,
            "statement": claim.statement,
            "metric": claim.metric,
            "better": claim.better,
            "margin": claim.margin,
            "no_worse": claim.no_worse,
            "control_arm": claim.control_arm,
            "control_tuning": claim.control_tuning,
            "not_testable": claim.not_testable,
            "full_scale": claim.full_scale,
            "full_scale_control": claim.full_scale_control,
        }
        for claim in recipes.chapter(entry.name).claims
    ]
    return {**entry_facts(entry), "claims": facts, "commands": commands(entry)}


def commands(entry: Entry) -> list[str]:
    """Commands to type next; the last one runs the first headline claim at full scale."""
    name, small = entry.name, entry.presets[0]
    return [
        f"recipes run {name} --preset {small}",
        f"recipes run {name} --preset {small} --help",
        f"recipes verify {name}",
        recipes.chapter(name).headlines[0].full_scale,
    ]


def menu(entries: Mapping[str, Entry]) -> Group:
    """The menu: the name and title of each recipe, and below them its presets, whose names are never broken."""
    width = max(map(len, entries), default=0) + 2
    lines = []
    for entry in entries.values():
        lines.append(Text.assemble((entry.name.ljust(width), "bold"), entry.title))
        lines += [Text(" " * width + " ".join(names)) for names in _rows(entry.presets, width)]
    return Group(*lines)


def _rows(names: Sequence[str], indent: int) -> Iterator[list[str]]:
    """Splits ``names`` into rows that fit the terminal after ``indent``; a longer name gets its own row."""
    room, row = shutil.get_terminal_size().columns - indent, []
    for name in names:
        if row and len(" ".join([*row, name])) > room:
            yield row
            row = []
        row.append(name)
    yield row


def card(entry: Entry) -> Group:
    """The card of a recipe: paper, idea, presets, chapter, claims and commands."""
    lines = [
        Text(f"{entry.title} ({entry.name})", "bold"),
        Text(entry.paper),
        Text(f"\n{entry.idea}\n"),
        Text.assemble(("presets  ", "bold"), ", ".join(entry.presets)),
        Text.assemble(("chapter  ", "bold"), entry.chapter),
        Text("\nwhat the chapter puts to the test", "bold"),
    ]
    lines += [Text(f"  {claim.id}: {claim.statement}") for claim in recipes.chapter(entry.name).claims]
    lines += [Text("\ncommands", "bold"), *(Text(f"  {command}") for command in commands(entry))]
    return Group(*lines)


def scores(found: Mapping[str, Mapping[str, float]]) -> Table:
    """A table of scores with one row per probe, and the method beside its baselines."""
    return _table("probe", found)


def beside_cooked(report: Mapping[str, Any]) -> str:
    """Two lines that explain the columns ``method`` and ``cooked`` of a run's scores."""
    return (
        f"method: {report['steps']:,} steps from random weights, enough to see the loss fall and too few to judge the "
        f"method by.\ncooked: the same recipe after {report['cooked']['steps']:,} steps, stored with the book, on the same images."
    )


def factors(found: Mapping[str, Mapping[str, float]]) -> Table:
    """A table of the scores of the probe ``factors`` (arm -> factor -> score), with one row per factor."""
    names = dict.fromkeys(name for scores in found.values() for name in scores)
    return _table("factor", {name: {arm: found[arm][name] for arm in found if name in found[arm]} for name in names})


def corruptions(found: Mapping[str, Mapping[str, Any]]) -> Group:
    """A table of the errors that the probe ``corruptions`` found (arm -> errors), and under it what they are of.

    The method's error at each severity, its mean and, for ImageNet's classes, the mean in units of AlexNet's error
    (CE); then the other arms' means.
    """
    method, others = found["method"], [arm for arm in COLUMNS if arm in found and arm != "method"]
    severities = list(next(iter(method["errors"].values())))
    units = ["CE"] if "normalised" in method else []
    titles = ["error at severity", *severities, "mean", *units, *(arm.replace("_", " ") for arm in others)]
    table = Table(*titles, box=None, header_style="bold", pad_edge=False)
    for name, row in method["errors"].items():
        means = [_mean(found[arm]["errors"][name].values()) for arm in ("method", *others)]
        normalised = [f"{method['normalised'][name]:.3f}"] if units else []
        cells = [*(f"{row[severity]:.3f}" for severity in severities), f"{means[0]:.3f}"]
        table.add_row(name, *cells, *normalised, *(f"{mean:.3f}" for mean in means[1:]))
    blank = [""] * len(severities)
    for label, key, unit in (("all", "mean_error", "mce"), ("no corruption", "clean_error", None)):
        cells = [f"{method[unit]:.3f}" if unit else ""] if units else []
        table.add_row(label, *blank, f"{method[key]:.3f}", *cells, *(f"{found[arm][key]:.3f}" for arm in others))
    return Group(table, Text(_of_which_images(method)))


def _of_which_images(method: Mapping[str, Any]) -> str:
    lines = [f"Of {method['images']:,} test images, {'as published' if method['published'] else 'corrupted here'}."]
    if not method["published"] and "frost" in method["errors"]:
        lines.append("The frost is ours: do not compare its row with published ones.")
    if "mce" in method:
        lines.append(
            f"mCE {100 * method['mce']:.1f} %, relative mCE {100 * method['relative_mce']:.1f} % of AlexNet's."
        )
    return " ".join(lines)


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values)


def duration(hours: float) -> str:
    """Formats a time in hours, in a unit that suits its size.

    >>> duration(0.0001), duration(0.002), duration(0.5), duration(12.3), duration(100)
    ('less than a second', '7.2 s', '30 min', '12.3 h', '4.2 days')
    """
    if hours * 3600 < 1:
        return "less than a second"
    for limit, factor, unit in ((1 / 60, 3600, "s"), (1, 60, "min"), (48, 1, "h")):
        if hours < limit:
            return f"{hours * factor:.3g} {unit}"
    return f"{hours / 24:,.1f} days"


def sweep_state(found: "Sweep", what: str, jobs: int) -> str:
    """What was done last, and how long the rest of a sweep will take, from the seconds of its finished runs."""
    seconds = [row.seconds for row in found.rows if row.seconds]
    if not (seconds and found.left):
        return what
    rounds = -(-found.left // jobs)
    return f"about {duration(rounds * sum(seconds) / len(seconds) / 3600)} left; {what}"


def sweep(found: "Sweep") -> Group:
    """A table of a sweep: a row per setting, with the mean of each score over the seeds, and their range if it has one.

    Its last column counts the runs that gave no score; below it, the errors of those that failed.
    """
    from recipes_lib.launch.sweep import SEED, spelled  # imports torch

    fields = [field for field in found.axes if field != SEED]
    table = Table(*fields, *found.probes, "seconds", "", box=None, header_style="bold", pad_edge=False)
    for setting, rows in found.over_seeds():
        scores = [[row.scores[probe]["method"] for row in rows if probe in row.scores] for probe in found.probes]
        seconds = [row.seconds for row in rows if row.seconds]
        ends = Counter(row.status for row in rows if row.status != "done")
        notes = ", ".join(f"{count} of {len(rows)} {status}" for status, count in ends.items())
        cells = [*map(spelled, setting.values()), *map(_mean_and_range, scores)]
        table.add_row(*cells, f"{sum(seconds) / len(seconds):.0f}" if seconds else "", notes)
    lines = [Text(f"failed: {error} (its log: {found.folder / row.folder}.log)") for error, row in found.lost.items()]
    return Group(table, *lines)


def _mean_and_range(values: Sequence[float]) -> str:
    if not values:
        return ""
    ends = f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else ""
    return f"{sum(values) / len(values):.3f}{ends}"


def label_free(found: Mapping[str, Mapping[str, float]]) -> Table:
    """A table of the probes that need no labels (probe -> arm -> number), with one row per probe."""
    return _table("without labels", found)


def _table(kind: str, found: Mapping[str, Mapping[str, float]]) -> Table:
    there = dict.fromkeys(column for row in found.values() for column in row)
    columns = [column for column in COLUMNS if column in there] + [column for column in there if column not in COLUMNS]
    table = Table(
        kind, *(column.replace("_", " ") for column in columns), box=None, header_style="bold", pad_edge=False
    )
    for name, row in found.items():
        table.add_row(name, *(f"{row[column]:.3f}" if column in row else "" for column in columns))
    return table
