# SPDX-License-Identifier: Apache-2.0
"""Shows verdicts in a notebook: a figure of all claims, a line per claim, tables of metrics, the paper's numbers."""

import html
import math
from collections.abc import Sequence
from typing import Any

from recipes_lib.claim import HOLDS, Verdict
from recipes_lib.claims.reports import stored

Rows = Sequence[Sequence[str]]


def verdicts(name: str) -> None:
    """Displays the verdicts of chapter ``name`` in a notebook: a figure, a line per claim, and tables of all metrics.

    The lines contain no trained number, so that a notebook's check can compare them. The record of each claim, from
    which the ledger is made, is stored in the metadata of the line's output.

    Raises: ``RunError`` if metrics are missing.
    """
    found = list(stored(name).values())
    _draw(found)
    for verdict in found:
        identity, rest = html.escape(verdict.line).split(":", 1)
        line = f'<p class="claim-line"><strong>{identity}</strong>:{rest}</p>'
        _display({"text/plain": verdict.line, "text/html": line}, metadata={"recipes_claim": verdict.record})
    _display(tables(found))


def against_paper(name: str) -> None:
    """Displays a table of the paper's numbers beside ours: a row per claim for which the paper has a number.

    Raises: ``ValueError`` if there is no such claim; ``RunError`` if metrics are missing.
    """
    head = ["claim", "the paper: its arm | control", "where", "how read", "here: ours | control", "verdict"]
    rows = [
        [
            identity,
            _pair(shown.claim.paper["value"], shown.claim.paper.get("control")),
            shown.claim.paper["where"],
            shown.claim.paper["read"],
            _pair(*(f"{sum(metrics) / len(metrics):.3g}" for metrics in (shown.ours, shown.control) if metrics)),
            shown.words,
        ]
        for identity, shown in stored(name).items()
        if shown.claim.paper.get("value") is not None
    ]
    if not rows:
        raise ValueError(f"no claim of chapter {name} has a number of its paper. Leave the table out.")
    caption = "The paper against ours: compare directions, not heights"
    text = "\n".join(" ; ".join(row) for row in (head, *rows))
    _display({"text/plain": f"{caption}\n{text}", "text/html": _table(caption, head, rows)})


def tables(found: Sequence[Verdict]) -> dict[str, str]:
    """Tables of all verdicts' metrics, arms as rows and seeds as columns: as text, and as HTML behind one toggle."""
    texts, pages = [], []
    for verdict in found:
        caption = f"{verdict.claim.id}: {verdict.claim.rule}"
        head, rows = metrics_of(verdict)
        texts.append(f"{caption}\n{_aligned([head, *rows])}")
        pages.append(_table(caption, head, rows))
    title = f"The numbers of {'all ' if len(found) > 1 else ''}{len(found)} claims, seed by seed"
    page = f'<details class="claim-numbers"><summary>{title}</summary>{"".join(pages)}</details>'
    return {"text/plain": "\n\n".join([title, *texts]), "text/html": page}


def metrics_of(shown: Verdict) -> tuple[list[str], list[list[str]]]:
    """The table of a verdict as text: its head, and one row each for ours, the control and their difference."""
    head = ["arm", *(f"{shown.claim.unit} {seed}" for seed in shown.seeds), "mean"]
    difference = [a - b for a, b in zip(shown.ours, shown.control, strict=True)]
    control = f"control: {shown.claim.control_arm}"
    rows = []
    for name, metrics in ((f"ours: {shown.arms[0]}", shown.ours), (control, shown.control), ("difference", difference)):
        rows.append([name, *map(_number, (*metrics, _mean(metrics)))])
    return head, rows


def _draw(found: Sequence[Verdict]) -> None:
    """Shows a figure with one row per claim."""
    import matplotlib.pyplot as plt  # the import takes a second, which the command line should not

    from recipes_lib import plots

    rows = [
        plots.VerdictRow(
            name=shown.claim.name,
            metrics=f"ours {_number(_mean(shown.ours))}, control {_number(_mean(shown.control))}" if shown.ours else "",
            in_margins=shown.in_margins,
            needed=-1 if shown.claim.no_worse else 1,
            holds=shown.outcome == HOLDS,
            words=shown.outcome,
        )
        for shown in found
    ]
    _, ax = plt.subplots(figsize=(5.2, 0.9 + 0.42 * len(rows)), layout="constrained")
    plots.verdicts(ax, rows)
    plt.show()


def _mean(metrics: Sequence[float]) -> float:
    return sum(metrics) / len(metrics) if metrics else math.nan


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _pair(ours: object = None, control: object = None) -> str:
    """Formats two numbers as ``67.2 | 66.4``, or one number if the other is ``None``."""
    return " | ".join(str(number) for number in (ours, control) if number is not None) or "not run"


def _aligned(rows: Rows) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.rjust, row, widths)) for row in rows)


def _table(caption: str, head: Sequence[str], rows: Rows) -> str:
    """A table in HTML. On a narrow screen its cells are stacked, each with the name of its column."""
    lines = ["".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in head)]
    for first, *rest in rows:
        cells = zip(head[1:], rest, strict=True)
        line = "".join(f'<td data-label="{html.escape(label)}">{html.escape(cell)}</td>' for label, cell in cells)
        lines.append(f'<th scope="row">{html.escape(first)}</th>{line}')
    body = "".join(f"<tr>{line}</tr>" for line in lines[1:])
    head_line = f"<thead><tr>{lines[0]}</tr></thead>"
    return f'<table class="claim-table stacked"><caption>{html.escape(caption)}</caption>{head_line}<tbody>{body}</tbody></table>'


def _display(data: dict[str, str], metadata: dict[str, Any] | None = None) -> None:
    from IPython.display import display  # notebooks always have IPython; the command line does not need it

    display(data, raw=True, metadata=metadata)
