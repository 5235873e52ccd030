# SPDX-License-Identifier: Apache-2.0
"""What every chapter shows of the library: its first line, a plan of a run, and a table of settings.

What a chapter shows is text for a terminal and a table for a browser; both are made of the same rows.
"""

import html
import io
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from recipes_lib import __version__, plots, recipes
from recipes_lib.config import override, to_dict
from recipes_lib.errors import ConfigError

THREADS = 1
"""Threads of torch in a chapter: one thread gives the same bits every time."""


@dataclass(frozen=True, repr=False)
class Shown:
    """A cell's result: ``html`` where a browser shows it, ``text`` everywhere else."""

    text: str
    html: str

    def __repr__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        return self.html


def start(chapter: str) -> None:
    """Sets torch's threads and the style of the figures; shows title, expected time, device and versions.

    ``chapter`` is a name of ``recipes list``; title, seconds and the chapters to read first are those of the menu.
    Raises: ``ConfigError`` where there is no such chapter.
    """
    entry = recipes.entry(chapter)
    import matplotlib
    import torch
    from IPython.display import display

    torch.set_num_threads(THREADS)
    matplotlib.rcParams.update(plots.STYLE)
    facts = {
        "chapter": f"{entry.title} ({entry.name})",
        "takes": f"about {entry.seconds} s on one CPU core",
        "read first": ", ".join(f"{recipes.MENU[name].title} ({name})" for name in entry.needs),
        "device": _device(),
        "versions": f"recipes {__version__}, torch {torch.__version__}, Python {platform.python_version()}",
        "where": "Colab" if "google.colab" in sys.modules else f"{platform.system()}, {os.cpu_count()} cores",
    }
    facts = {name: fact for name, fact in facts.items() if fact}
    line = " | ".join(f"{name}: {fact}" for name, fact in facts.items())
    display(Shown(line, _table(list(facts.items()), caption="")))


def plan(
    recipe: str,
    preset: str,
    *,
    nodes: int = 1,
    gpus: int | None = None,
    gpu: str = "h100",
    changes: Mapping[str, Any] | None = None,
) -> Shown:
    """What ``recipes plan RECIPE --preset PRESET`` prints; the text is the command's, to the letter.

    ``nodes`` machines of ``gpus`` GPUs each (by default 8, or 1 where one process simulates the workers) of the kind
    ``gpu``; ``changes``: fields of the config by their dotted names. Starts nothing and needs no data.

    Raises: ``ConfigError`` for a recipe, preset, field, GPU or number that does not exist or cannot be.
    """
    from rich.console import Console

    from recipes_lib.cli import flags, plan_table
    from recipes_lib.launch import plan as planner

    entry = recipes.entry(recipe)
    flags.preset_of("plan", entry.name, preset, entry.presets)
    for name, value in {"nodes": nodes, "gpus": gpus}.items():
        if value is not None and value < 1:
            raise ConfigError(f"{name} = {value} is not allowed: use a value of at least 1.")
    config = override(recipes.named(recipe).presets[preset], dict(changes or {}))
    world = nodes * (planner.usual_gpus(recipe, config) if gpus is None else gpus)
    found = planner.plan(recipe, config, world=world, gpu=gpu, preset=preset)

    page = io.StringIO()
    Console(file=page, markup=False, highlight=False, soft_wrap=True).print(plan_table.show(found))
    tables = [
        _table(rows, caption=name, heads=plan_table.PARTS if len(rows[0]) == 3 else ())
        for name, rows in plan_table.sections(found).items()
    ]
    words = [f"<p><strong>{html.escape(plan_table.title(found))}</strong></p>", *tables]
    words += [f"<p><strong>warning:</strong> {html.escape(line)}</p>" for line in found.warnings]
    return Shown(page.getvalue().rstrip("\n"), "\n".join(words))


def settings(columns: Mapping[str, Any], fields: Mapping[str, Sequence[str]]) -> Shown:
    """The table "hyper-parameters": a row for each of a config's ``fields`` (group -> names), a column for each config.

    Raises: ``KeyError`` for a field that a config does not have.
    """
    plain = {title: to_dict(config) for title, config in columns.items()}
    heads = ("setting", *plain)
    rows = [
        (f"{group}.{name}", *(str(values[group][name]) for values in plain.values()))
        for group, names in fields.items()
        for name in names
    ]
    widths = [max(map(len, column)) + 2 for column in zip(heads, *rows, strict=True)]
    lines = (row[0].ljust(widths[0]) + "".join(map(str.rjust, row[1:], widths[1:])) for row in (heads, *rows))
    return Shown("\n".join(lines), _table(rows, caption="hyper-parameters", heads=heads))


def _device() -> str:
    import torch

    if torch.cuda.is_available():
        return f"CPU; {torch.cuda.get_device_name()} is idle, since toy runs are too small for it"
    return "CPU, which is enough for this chapter"


def _table(rows: Sequence[Sequence[str]], *, caption: str, heads: Sequence[str] = ()) -> str:
    """An HTML table; the first cell of each row is its head. A table of two columns holds words, of more numbers."""
    kind = "facts" if len(rows[0]) == 2 else "numbers"
    lines = [f'<table class="{kind}">']
    if caption:
        lines.append(f"<caption>{html.escape(caption)}</caption>")
    if heads:
        cells = "".join(f'<th scope="col">{html.escape(head)}</th>' for head in heads)
        lines.append(f"<thead><tr>{cells}</tr></thead>")
    for name, *values in rows:
        cells = "".join(f"<td>{html.escape(value)}</td>" for value in values)
        lines.append(f'<tr><th scope="row">{html.escape(name)}</th>{cells}</tr>')
    return "\n".join([*lines, "</table>"])
