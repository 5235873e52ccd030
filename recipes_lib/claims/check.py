# SPDX-License-Identifier: Apache-2.0
"""How a notebook shows verdicts: the stable line with its record, the numbers behind it, the paper's beside ours."""

import html
import math
from collections.abc import Mapping
from typing import Any

from recipes_lib.claim import Claim, Verdict


def show(shown: Verdict) -> None:
    """Puts a verdict's line into a notebook's output, and its record into that output's metadata."""
    _display({"text/plain": shown.line}, metadata={"recipes_claim": shown.record})


def table(shown: Verdict) -> None:
    """Puts the figures behind a verdict into a notebook's output: arms as rows, seeds as columns."""
    head, rows = figures_of(shown)
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    text = "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in [head, *rows]
    )
    cells = ["".join(f"<th>{html.escape(cell)}</th>" for cell in head)]
    cells += [f"<th>{html.escape(row[0])}</th>" + "".join(f"<td>{cell}</td>" for cell in row[1:]) for row in rows]
    caption = rule(shown.claim)
    page = f"<table><caption>{html.escape(caption)}</caption>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"
    _display({"text/plain": f"{caption}\n{text}", "text/html": page})


def rule(claim: Claim) -> str:
    """What is compared, which direction counts for the claim, and the margin, as a caption."""
    if claim.no_worse:
        return f"{claim.metric}; holds where ours falls short by at most {claim.margin:g} on average"
    return f"{claim.metric}; counts for the claim when {claim.better}, by at least {claim.margin:g} on average"


def against_paper(verdicts: Mapping[str, Verdict]) -> None:
    """Puts the paper's figures beside ours into a notebook's output: a row for each claim whose paper has a figure.

    Raises: ``ValueError`` where none has.
    """
    head = ["claim", "the paper: its arm | control", "where", "how read", "here: ours | control", "verdict"]
    rows = [
        [
            name,
            _pair(shown.claim.paper["value"], shown.claim.paper.get("control")),
            shown.claim.paper["where"],
            shown.claim.paper["read"],
            _pair(*(f"{sum(figures) / len(figures):.3g}" for figures in (shown.ours, shown.control) if figures)),
            shown.words,
        ]
        for name, shown in verdicts.items()
        if shown.claim.paper.get("value") is not None
    ]
    if not rows:
        raise ValueError(f"no claim among {', '.join(verdicts)} has a figure of its paper.")
    line = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    text = "\n".join(" ; ".join(row) for row in (head, *rows))
    _display({"text/plain": text, "text/html": f"<table><tr>{line}</tr>{body}</table>"})


def _pair(ours: object = None, control: object = None) -> str:
    """``67.2 | 66.4``; one figure where the other is absent."""
    return " | ".join(str(figure) for figure in (ours, control) if figure is not None) or "not run"


def figures_of(shown: Verdict) -> tuple[list[str], list[list[str]]]:
    """The table of a verdict as text: its head, and a row each for ours, the control and their difference."""
    head = ["", *(f"{shown.claim.unit} {seed}" for seed in shown.seeds), "mean"]
    rows = []
    difference = [a - b for a, b in zip(shown.ours, shown.control, strict=True)]
    control = f"control: {shown.claim.control_arm}"
    for name, figures in ((f"ours: {shown.arms[0]}", shown.ours), (control, shown.control), ("difference", difference)):
        mean = sum(figures) / len(figures) if figures else math.nan
        rows.append([name, *(f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}" for value in (*figures, mean))])
    return head, rows


def _display(data: dict[str, str], metadata: dict[str, Any] | None = None) -> None:
    from IPython.display import display  # comes with any notebook; the command line does without it

    display(data, raw=True, metadata=metadata)
