# SPDX-License-Identifier: Apache-2.0
"""A paper's claim as a check that can fail, the rule that decides it, and how a notebook shows the verdict.

A claim compares two figures, seed by seed: ours, and that of a control arm. It holds where the mean difference reaches
a margin that was fixed before the run, and no seed points the other way. A claim that something costs
nothing holds where the mean shortfall stays within the margin, and that of no seed reaches twice as much. There are no
p-values here: three to five runs do not carry one.
"""

import dataclasses
import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, Literal

HOLDS = "holds"
DOES_NOT_HOLD = "does not hold"
NOT_TESTABLE = "not testable"
READINGS = ("full text", "abstract", "second hand", "read off a figure")
"""How a figure of a paper reached this book, the most reliable way first."""
MOST_SEEDS = 5  # with more, "no seed points the other way" asks too much of a true effect


@dataclass(frozen=True)
class Figure:
    """Where a number stands: the arm that was run, and the dotted path in its report.json."""

    arm: str
    path: str

    def read(self, report: Mapping[str, Any]) -> float:
        """The number in ``report``. Raises: ``ValueError`` naming the part of the path that is missing."""

        def step(place: Any, key: str) -> Any:
            if not isinstance(place, Mapping) or key not in place:
                raise ValueError(f"arm {self.arm}: the report has no {self.path} ({key!r} is missing).")
            return place[key]

        return float(reduce(step, self.path.split("."), report))


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One statement of a paper, with everything that decides it, fixed before the run."""

    id: str
    """Chapter and short name: ``msn.collapse``."""
    statement: str
    """One sentence that can be false."""
    metric: str
    """What the two numbers are, in the reader's words."""
    better: Literal["higher", "lower"]
    """In which direction ``ours`` has to differ from ``control``."""
    margin: float
    """Least mean difference, in the metric's unit, above 0; at most half of the effect seen in a pilot."""
    ours: Figure | None
    control: Figure | None
    """Both absent where the claim is not testable at this scale."""
    control_arm: str
    """What the control is, in the reader's words."""
    paper: Mapping[str, Any]
    """``value`` and ``control`` (what the paper reports for both arms, or None where no figure of this kind was read),
    ``where`` (table or section, model and data), and ``read``: how the figure was read (:data:`READINGS`)."""
    full_scale: str
    """The command that runs ours at the paper's scale."""
    full_scale_control: str = ""
    """The command that runs the control; empty where the command of ours gives both figures."""
    control_tuning: str = ""
    """What was searched for ours and for the control, with how many runs, on which seeds and which split of the data."""
    setting: str = "at toy scale"
    """Where the verdict was reached, in the words that follow "holds"."""
    unit: str = "seed"
    """What the paired figures are counted by: a seed, or a disjoint third of the images."""
    no_worse: bool = False
    """Ours need not be better: the margin is what its mean may fall short of the control's."""
    not_testable: str = ""
    """Why no run at this scale can decide it; empty for a claim that is checked."""
    version: int = 1
    """Goes up when the statement, the margin or an arm changes."""

    def __post_init__(self) -> None:
        if self.paper.get("value") is not None and self.paper.get("read") not in READINGS:
            raise ValueError(
                f"claim {self.id}: paper has a value, and read = {self.paper.get('read')!r} does not say how it was "
                f"read. Use one of {', '.join(READINGS)}."
            )
        if not self.margin > 0:
            raise ValueError(f"claim {self.id}: margin = {self.margin}; equal arms would hold. Use one above 0.")
        if not (self.control_tuning or self.not_testable):
            raise ValueError(
                f"claim {self.id}: control_tuning is missing. Say what was searched for ours and for the control, on which "
                "seeds, or that nothing was."
            )
        if bool(self.not_testable) == bool(self.ours and self.control):
            raise ValueError(f"claim {self.id}: give the figures of both arms, or the reason why it is not testable.")


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A claim with its figures, and what the rule says about them."""

    claim: Claim
    ours: tuple[float, ...]
    control: tuple[float, ...]
    seeds: tuple[int, ...]
    seconds: float
    """Wall-clock of the runs that gave the figures."""
    outcome: str
    beyond: int
    """Seeds whose difference reaches the margin; where ours need only be no worse, those whose shortfall stays within."""
    arms: tuple[str, str] = field(default=("ours", "control"))

    @property
    def line(self) -> str:
        """The stable line: no trained float in it, so a notebook's check can compare it."""
        if self.claim.not_testable:
            return f"claim {self.claim.id}: {self.words} ({self.claim.not_testable})"
        where = "within" if self.claim.no_worse else "beyond"
        counted = f"{self.beyond} of {len(self.seeds)} {self.claim.unit}s"
        return f"claim {self.claim.id}: {self.words} ({counted} {where} the margin)"

    @property
    def words(self) -> str:
        """The outcome with the setting that it was reached in: ``holds at toy scale``."""
        return f"{self.outcome} {self.claim.setting}"

    @property
    def record(self) -> dict[str, Any]:
        """What the ledger is built from; lies in the metadata of the output that shows the line."""
        shared = ("id", "version", "statement", "metric", "better", "margin", "control_arm", "control_tuning")
        commands = ("full_scale", "full_scale_control", "setting", "unit")
        return {
            **{name: getattr(self.claim, name) for name in (*shared, *commands)},
            **({"no_worse": True} if self.claim.no_worse else {}),
            "paper": dict(self.claim.paper),
            "seeds": list(self.seeds),
            "ours": list(self.ours),
            "control": list(self.control),
            "verdict": self.outcome,
            "reason": self.claim.not_testable,
            "seconds": round(self.seconds),
        }


def verdict(
    claim: Claim, ours: Sequence[float], control: Sequence[float], *, seeds: Sequence[int] = (), seconds: float = 0.0
) -> Verdict:
    """What the rule says of ``ours`` against ``control``, paired by seed. ``seeds`` defaults to 0, 1, 2, ...

    Holds where mean(difference) >= margin and every difference has the claimed sign; a difference of 0 has none. Where
    ours need only be no worse: where mean(difference) >= -margin, and every difference is above -2 margin.

    Raises: ``ValueError`` for unpaired, missing, too many or non-finite figures.
    """
    if claim.not_testable:
        return Verdict(claim=claim, ours=(), control=(), seeds=(), seconds=0.0, outcome=NOT_TESTABLE, beyond=0)
    seeds = tuple(seeds) or tuple(range(len(ours)))
    if not len(ours) == len(control) == len(seeds):
        raise ValueError(f"claim {claim.id}: {len(ours)} figures, {len(control)} of the control, {len(seeds)} seeds.")
    if not 1 <= len(seeds) <= MOST_SEEDS:
        raise ValueError(f"claim {claim.id}: {len(seeds)} seeds; the rule is made for 1 to {MOST_SEEDS}.")
    for name, figures in (("ours", ours), ("control", control)):
        if not all(map(math.isfinite, figures)):
            raise ValueError(f"claim {claim.id}: {name} = {list(figures)} has a figure that is not finite.")
    sign = 1 if claim.better == "higher" else -1
    differences = [sign * (a - b) for a, b in zip(ours, control, strict=True)]
    least, floor = (-claim.margin, -2 * claim.margin) if claim.no_worse else (claim.margin, 0.0)
    holds = sum(differences) / len(differences) >= least and all(d > floor for d in differences)
    return Verdict(
        claim=claim,
        ours=tuple(ours),
        control=tuple(control),
        seeds=seeds,
        seconds=seconds,
        outcome=HOLDS if holds else DOES_NOT_HOLD,
        beyond=sum(d >= least for d in differences),
        arms=(claim.ours.arm, claim.control.arm),
    )


def decide(claim: Claim, figures: Mapping[str, Mapping[str, Mapping[str, Any]]], seconds: float = 0.0) -> Verdict:
    """The verdict from the reports of every arm and seed: ``figures[arm][seed]`` is a report.json's content."""
    if claim.not_testable:
        return verdict(claim, (), ())
    reports = [figures.get(figure.arm, {}) for figure in (claim.ours, claim.control)]
    seeds = sorted(set(reports[0]) & set(reports[1]), key=int)
    return verdict(
        claim,
        [claim.ours.read(reports[0][seed]) for seed in seeds],
        [claim.control.read(reports[1][seed]) for seed in seeds],
        seeds=[int(seed) for seed in seeds],
        seconds=seconds,
    )


def swapped(claim: Claim) -> Claim:
    """The claim with its two sides exchanged: a check that something is better and holds must not hold for this one."""
    return dataclasses.replace(claim, ours=claim.control, control=claim.ours)


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
