# SPDX-License-Identifier: Apache-2.0
"""A paper's claim as a check that can fail, and the rule that decides it. This module imports no torch.

A claim compares two metrics, seed by seed: ours, and that of a control arm. It holds where the mean difference reaches
a margin that was fixed before the run, and no seed points the other way. A claim that something costs
nothing holds where the mean shortfall stays within the margin, and that of no seed reaches twice as much. There are no
p-values here: three to five runs do not carry one.
"""

import dataclasses
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
