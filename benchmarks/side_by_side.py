# SPDX-License-Identifier: Apache-2.0
"""Measures rivals alternately, so that a busy machine slows all of them alike, and shows ratios of medians.

Absolute times belong to one machine; a ratio taken in one run travels.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Timing:
    """One rival's share of a measurement."""

    seconds: float
    """Median seconds a call."""
    ratio: float
    """How many times longer it takes than the reference: the reference itself has 1.0."""
    spread: float
    """Slowest round over fastest round: near 1 on a quiet machine."""


def side_by_side(
    rivals: dict[str, Callable[[], object]],
    *,
    rounds: int = 7,
    reference: str,
    warm_up: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Calls each rival in turn, ``rounds`` times over, and compares the medians with ``reference``'s.

    ``clock``: seconds; ``time.process_time`` counts this process's own, for single-threaded rivals on a shared machine.
    On a GPU a rival must end with ``torch.cuda.synchronize()``, or only the launch is timed.
    """
    if reference not in rivals:
        raise ValueError(f"reference {reference!r} is not among the rivals: {', '.join(rivals)}")
    for call in rivals.values():
        for _ in range(warm_up):
            call()
    times: dict[str, list[float]] = {name: [] for name in rivals}
    for _ in range(rounds):
        for name, call in rivals.items():
            start = clock()
            call()
            times[name].append(clock() - start)
    medians = {name: statistics.median(rounds_) for name, rounds_ in times.items()}
    return {
        name: Timing(median, median / medians[reference], max(times[name]) / min(times[name]))
        for name, median in medians.items()
    }


def show(title: str, cases: dict[str, dict[str, Timing]], *, per_call: dict[str, int] | None = None) -> None:
    """Prints a table: a row for each rival of each case, with items a second where ``per_call`` gives a case's items."""
    table = Table(title=title)
    table.add_column("case")
    table.add_column("rival")
    for column in ("ms a call", "items/s", "times the reference", "slowest/fastest"):
        table.add_column(column, justify="right")
    for case, timings in cases.items():
        for name, timing in timings.items():
            items = f"{per_call[case] / timing.seconds:,.0f}" if per_call and case in per_call else "-"
            table.add_row(
                case, name, f"{timing.seconds * 1e3:.2f}", items, f"{timing.ratio:.2f}", f"{timing.spread:.2f}"
            )
        table.add_section()
    Console(width=110).print(table)
