# SPDX-License-Identifier: Apache-2.0
"""How the command line shows things: the menu, a recipe's card, a table of scores."""

import json
import os
import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console, Group
from rich.table import Column, Table
from rich.text import Text

from recipes_lib import claims
from recipes_lib.recipes import Entry

COLUMNS = ("method", "random_init", "raw_pixels", "supervised")


def out() -> Console:
    """The console for results; silent in all processes of a run but the first."""
    return Console(file=sys.stdout, quiet=os.environ.get("RANK", "0") != "0", highlight=False, soft_wrap=True)


def aside() -> Console:
    """The console for progress, which is no result: stderr."""
    return Console(file=sys.stderr)


def as_json(content: Any) -> None:
    """Prints ``content`` as JSON, and nothing else."""
    if os.environ.get("RANK", "0") == "0":
        sys.stdout.write(json.dumps(content, indent=2, default=str) + "\n")


def entry_facts(entry: Entry) -> dict[str, Any]:
    """A menu entry as ``--json`` gives it."""
    names = ("name", "title", "paper", "idea", "chapter")
    return {**{name: getattr(entry, name) for name in names}, "presets": list(entry.presets)}


def card_facts(entry: Entry) -> dict[str, Any]:
    """A recipe's card as ``show --json`` gives it."""
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
        for claim in claims.module(entry.name).CLAIMS
    ]
    return {**entry_facts(entry), "claims": facts, "commands": commands(entry)}


def commands(entry: Entry) -> list[str]:
    """What to type next; the last is the first claim's test at full scale."""
    name, small = entry.name, entry.presets[0]
    return [
        f"recipes run {name} --preset {small}",
        f"recipes run {name} --preset {small} --help",
        f"recipes verify {name}",
        claims.module(name).CLAIMS[0].full_scale,
    ]


def menu(entries: Mapping[str, Entry]) -> Table:
    """The menu as a table: a recipe a row."""
    title = Column("title", no_wrap=True)
    table = Table("recipe", title, "presets", box=None, header_style="bold", pad_edge=False)
    for entry in entries.values():
        table.add_row(entry.name, entry.title, ", ".join(entry.presets))
    return table


def card(entry: Entry) -> Group:
    """A recipe's card."""
    lines = [
        Text(f"{entry.title} ({entry.name})", "bold"),
        Text(entry.paper),
        Text(f"\n{entry.idea}\n"),
        Text.assemble(("presets  ", "bold"), ", ".join(entry.presets)),
        Text.assemble(("chapter  ", "bold"), entry.chapter),
        Text("\nwhat the chapter puts to the test", "bold"),
    ]
    lines += [Text(f"  {claim.id}: {claim.statement}") for claim in claims.module(entry.name).CLAIMS]
    lines += [Text("\ncommands", "bold"), *(Text(f"  {command}") for command in commands(entry))]
    return Group(*lines)


def scores(found: Mapping[str, Mapping[str, float]]) -> Table:
    """Scores as a table: a probe a row, the method beside its baselines."""
    return _table("probe", found)


def factors(found: Mapping[str, Mapping[str, float]]) -> Table:
    """How readable each true factor is (arm -> factor -> score) as a table: a factor a row."""
    names = dict.fromkeys(name for scores in found.values() for name in scores)
    return _table("factor", {name: {arm: found[arm][name] for arm in found if name in found[arm]} for name in names})


def _table(kind: str, found: Mapping[str, Mapping[str, float]]) -> Table:
    columns = [column for column in COLUMNS if any(column in row for row in found.values())]
    table = Table(
        kind, *(column.replace("_", " ") for column in columns), box=None, header_style="bold", pad_edge=False
    )
    for name, row in found.items():
        table.add_row(name, *(f"{row[column]:.3f}" if column in row else "" for column in columns))
    return table
