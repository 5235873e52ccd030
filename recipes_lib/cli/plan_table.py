# SPDX-License-Identifier: Apache-2.0
"""A plan as the command line shows it: figures in readable units, what they assume, what to beware of."""

from rich.console import Group
from rich.table import Table
from rich.text import Text

from recipes_lib.launch.hardware import GPUS
from recipes_lib.launch.plan import Plan

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
    """Three or four digits and a decimal prefix.

    >>> units(427_616_513), units(80e9, "B"), units(0.25)
    ('428 M', '80.0 GB', '0.25')
    """
    power = 0
    while abs(value) >= 999.5 and power < len(_NUMBERS) - 1:
        value, power = value / 1000, power + 1
    digits = f"{value:,.0f}" if value >= 99.95 or value == 0 else f"{value:.1f}" if value >= 9.995 else f"{value:.3g}"
    return f"{digits} {_NUMBERS[power]}{unit}".rstrip()


def duration(hours: float) -> str:
    """Hours in the unit that suits.

    >>> duration(0.0001), duration(0.002), duration(0.5), duration(12.3), duration(100)
    ('less than a second', '7.2 s', '30 min', '12.3 h', '4.2 days')
    """
    if hours * 3600 < 1:
        return "less than a second"
    for limit, factor, unit in ((1 / 60, 3600, "s"), (1, 60, "min"), (48, 1, "h")):
        if hours < limit:
            return f"{hours * factor:.3g} {unit}"
    return f"{hours / 24:,.1f} days"


def show(plan: Plan) -> Group:
    """The whole of it."""
    gpu = GPUS[plan.gpu].title
    title = f"{plan.recipe}, preset {plan.preset}, on {plan.world} {gpu}"
    run = {
        "images a step": f"{plan.batch_size:,} ({plan.micro_batch:,} a GPU at once)",
        "steps": f"{plan.steps:,} ({units(plan.images_seen)} images seen)",
        "operations an image": units(plan.flops_per_image, "FLOP"),
        "operations a step": units(plan.flops_per_step, "FLOP"),
        "operations of the run": units(plan.flops_total, "FLOP"),
        "of these in 8-bit layers": f"{plan.low_bit_share:.0%}" if plan.low_bit_share else "",
        "GPU-hours, assumed": _gpu_hours(plan.gpu_hours),
        "time on the clock, assumed": duration(plan.hours),
        "sent by each GPU a step": units(plan.wire_bytes_per_step, "B"),
        "sent by each GPU in all": f"{units(plan.wire_bytes_total, 'B')} ({plan.averagings:,} averagings)",
        "checkpoint on disk": f"{units(plan.checkpoint_bytes, 'B')} (the last {plan.checkpoints_kept} are kept)",
    }
    memory = {label: units(plan.memory[name], "B") for name, label in _MEMORY.items() if plan.memory[name]}
    memory["a GPU has"] = units(plan.gpu_memory, "B")
    words = [Text(f"  {name}: {said}") for name, said in plan.assumptions.items() if isinstance(said, str)]
    return Group(
        Text(title, "bold"),
        Text("\nparameters", "bold"),
        _parts(plan),
        Text("\nthe run", "bold"),
        _table(run),
        Text("\nmemory of one GPU", "bold"),
        _table(memory),
        Text("\nassumptions", "bold"),
        *words,
        *(Text(f"\nwarning: {line}", "bold") for line in plan.warnings),
    )


def _gpu_hours(value: float) -> str:
    return "less than 0.01" if value < 0.01 else f"{value:.3g}" if value < 100 else f"{value:,.0f}"


def _parts(plan: Plan) -> Table:
    table = Table("part", "all", "trained", box=None, header_style="", pad_edge=False, padding=(0, 2))
    for name, part in plan.parts.items():
        table.add_row(f"  {name}", f"{part.parameters:,}", f"{part.trained:,}")
    table.add_row("  together", f"{plan.parameters:,}", f"{plan.trained_parameters:,}")
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def _table(rows: dict[str, str]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2))
    for name, value in rows.items():
        if value:
            table.add_row(f"  {name}", value)
    return table
