# SPDX-License-Identifier: Apache-2.0
"""Shows a plan on the command line: costs in readable units, assumptions and warnings."""

from rich.console import Group
from rich.table import Table
from rich.text import Text

from recipes_lib.cli.display import duration
from recipes_lib.launch.hardware import GPUS
from recipes_lib.launch.plan import Plan

PARTS = ("part", "all", "trained")
"""Column heads of the table of parameters."""

_NUMBERS = ("", "k", "M", "G", "T", "P", "E", "Z", "Y")
_MEMORY = {
    "weights": "weights and buffers",
    "gradients": "gradients",
    "optimizer": "optimiser state",
    "exchange": "copies for the exchange",
    "activations": "kept for the backward pass",
    "inputs": "views",
    "total": "together",
}


def units(value: float, unit: str = "") -> str:
    """Formats ``value`` with at most three digits and a decimal prefix.

    >>> units(427_616_513), units(80e9, "B"), units(0.25)
    ('428 M', '80.0 GB', '0.25')
    """
    power = 0
    while abs(value) >= 999.5 and power < len(_NUMBERS) - 1:
        value, power = value / 1000, power + 1
    digits = f"{value:,.0f}" if value >= 99.95 or value == 0 else f"{value:.1f}" if value >= 9.995 else f"{value:.3g}"
    return f"{digits} {_NUMBERS[power]}{unit}".rstrip()


Rows = list[tuple[str, ...]]


def title(plan: Plan) -> str:
    """One line with the planned recipe, preset and GPUs."""
    return f"{plan.recipe}, preset {plan.preset}, on {plan.world} {GPUS[plan.gpu].title}"


def sections(plan: Plan) -> dict[str, Rows]:
    """The plan as rows of text: three columns (part, all, trained) for the parameters, else a name and its value."""
    parts = [(name, f"{part.parameters:,}", f"{part.trained:,}") for name, part in plan.parts.items()]
    run = {
        "images per step": f"{plan.batch_size:,} ({plan.micro_batch:,} per GPU at once)",
        "steps": f"{plan.steps:,} ({units(plan.images_seen)} images seen)",
        "operations per image": units(plan.flops_per_image, "FLOP"),
        "operations per step": units(plan.flops_per_step, "FLOP"),
        "operations of the run": units(plan.flops_total, "FLOP"),
        "of these in 8-bit layers": f"{plan.low_bit_share:.0%}" if plan.low_bit_share else "",
        "GPU-hours, assumed": _gpu_hours(plan.gpu_hours),
        "time on the clock, assumed": duration(plan.hours),
        "sent by each GPU per step": units(plan.wire_bytes_per_step, "B"),
        "sent by each GPU in all": f"{units(plan.wire_bytes_total, 'B')} ({plan.averagings:,} averagings)",
        "checkpoint on disk": f"{units(plan.checkpoint_bytes, 'B')} (the last {plan.checkpoints_kept} are kept)",
    }
    memory = {label: units(plan.memory[name], "B") for name, label in _MEMORY.items() if plan.memory[name]}
    memory["a GPU has"] = units(plan.gpu_memory, "B")
    return {
        "parameters": [*parts, ("together", f"{plan.parameters:,}", f"{plan.trained_parameters:,}")],
        "the run": [(name, said) for name, said in run.items() if said],
        "memory of one GPU": list(memory.items()),
        "assumptions": [(name, said) for name, said in plan.assumptions.items() if isinstance(said, str)],
    }


def show(plan: Plan) -> Group:
    """The whole plan, ready to print in a terminal."""
    found = sections(plan)
    lines = [Text(title(plan), "bold")]
    for name, rows in found.items():
        lines.append(Text(f"\n{name}", "bold"))
        if name == "assumptions":  # these are sentences, which a table would cut
            lines += [Text(f"  {what}: {said}") for what, said in rows]
        else:
            lines.append(_table(rows))
    return Group(*lines, *(Text(f"\nwarning: {line}", "bold") for line in plan.warnings))


def _gpu_hours(value: float) -> str:
    return "less than 0.01" if value < 0.01 else f"{value:.3g}" if value < 100 else f"{value:,.0f}"


def _table(rows: Rows) -> Table:
    of_numbers = len(rows[0]) == 3
    heads = PARTS if of_numbers else ("", "")
    table = Table(*heads, box=None, show_header=of_numbers, header_style="", pad_edge=False, padding=(0, 2))
    for name, *values in rows:
        table.add_row(f"  {name}", *values)
    for column in table.columns[1:] if of_numbers else ():
        column.justify = "right"
    return table
