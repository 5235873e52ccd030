# SPDX-License-Identifier: Apache-2.0
"""A paper's claim as a check that can fail, the rule that decides it, and the chapter that makes it. No torch here.

A claim compares two metrics, seed by seed: ours, and that of a control arm. It holds where the mean difference reaches
a margin that was fixed before the run, and no seed points the other way. A claim that something costs
nothing holds where the mean shortfall stays within the margin, and that of no seed reaches twice as much. There are no
p-values here: three to five runs do not carry one.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, Literal, TypedDict, Unpack

HOLDS = "holds"
DOES_NOT_HOLD = "does not hold"
NOT_TESTABLE = "not testable"
READINGS = ("full text", "abstract", "second hand", "read off a figure")
"""How a paper's number reached this book, the most reliable way first."""
FEWEST_SEEDS = 3  # of a chapter; of two, both point the claimed way by chance once in four times
MOST_SEEDS = 5  # with more, "no seed points the other way" asks too much of a true effect


@dataclass(frozen=True)
class Metric:
    """Where a metric stands: the arm that was run, and the dotted path in its report.json."""

    arm: str
    path: str

    def read(self, report: Mapping[str, Any]) -> float:
        """The metric in ``report``. Raises: ``ValueError`` naming the part of the path that is missing."""

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
    ours: Metric | None
    control: Metric | None
    """Both absent where the claim is not testable at this scale."""
    control_arm: str
    """What the control is, in the reader's words."""
    paper: Mapping[str, Any]
    """``value`` and ``control`` (what the paper reports for both arms, or None where no number of this kind was read),
    ``where`` (table or section, model and data), and ``read``: how it was read (:data:`READINGS`)."""
    full_scale: str
    """The command that runs ours at the paper's scale."""
    full_scale_control: str = ""
    """The command that runs the control; empty where the command of ours gives both metrics."""
    control_tuning: str = ""
    """What was searched for ours and for the control, with how many runs, on which seeds and which split of the data."""
    setting: str = "at toy scale"
    """Where the verdict was reached, in the words that follow "holds"."""
    unit: str = "seed"
    """What the paired metrics are counted by: a seed, or a disjoint third of the images."""
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
            raise ValueError(f"claim {self.id}: give the metric of both arms, or the reason why it is not testable.")

    @property
    def sign(self) -> int:
        """1 where ours has to be higher than the control's, -1 where lower."""
        return 1 if self.better == "higher" else -1

    @property
    def name(self) -> str:
        """The id without the chapter's name."""
        return self.id.partition(".")[2]

    @property
    def rule(self) -> str:
        """What is compared, which direction counts for the claim, and the margin."""
        if self.no_worse:
            return f"{self.metric}; holds where ours falls short by at most {self.margin:g} on average"
        return f"{self.metric}; counts for the claim when {self.better}, by at least {self.margin:g} on average"


class Facts(TypedDict, total=False):
    """What every claim has beside its two metrics: fields of :class:`Claim`, by name."""

    metric: str
    control_arm: str
    control_tuning: str
    paper: Mapping[str, Any]
    full_scale: str
    full_scale_control: str
    setting: str
    unit: str
    version: int


def higher(
    id: str, statement: str, *, ours: tuple[str, str], control: tuple[str, str], by: float, **facts: Unpack[Facts]
) -> Claim:
    """The claim that ours is higher than the control by a margin. ``ours`` and ``control``: (arm, path in its report).

    What several claims of a chapter share is said once: ``accuracy = functools.partial(higher, metric="accuracy", ...)``.
    """
    return Claim(
        id=id, statement=statement, better="higher", margin=by, ours=Metric(*ours), control=Metric(*control), **facts
    )


def lower(
    id: str, statement: str, *, ours: tuple[str, str], control: tuple[str, str], by: float, **facts: Unpack[Facts]
) -> Claim:
    """The claim that ours is lower than the control by a margin; arguments as for :func:`higher`."""
    return Claim(
        id=id, statement=statement, better="lower", margin=by, ours=Metric(*ours), control=Metric(*control), **facts
    )


def no_worse(
    id: str,
    statement: str,
    *,
    better: Literal["higher", "lower"],
    ours: tuple[str, str],
    control: tuple[str, str],
    by: float,
    **facts: Unpack[Facts],
) -> Claim:
    """The claim that ours falls short of the control by no more than a margin, where ``better`` says which is good."""
    claim = higher if better == "higher" else lower
    return dataclasses.replace(claim(id, statement, ours=ours, control=control, by=by, **facts), no_worse=True)


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A run of a recipe, of the chapter's own or of any other."""

    recipe: str
    preset: str = "toy"
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the preset that differ, by dotted name: ``{"optim.lr": 1e-3}``. The seed is set for each run."""


@dataclass(frozen=True)
class Measurement:
    """What a chapter measures otherwise than by a run of a recipe: a function of the seed that returns a report."""

    function: str
    """``"module:function"``: named and not imported, so that a chapter's claims need no torch."""
    fingerprint: "str | Arm | None" = None
    """What tells whether its numerics moved: the ``"module:function"`` that takes its fingerprint, or the arm whose
    fingerprint stands for it; ``None`` where its report is checked by other tests."""
    needs_data: bool = False
    """It is of data that may not be shipped: it runs where ``RECIPES_DATA`` is set, and only aggregates are stored."""


@dataclass(frozen=True, kw_only=True)
class Chapter:
    """What a chapter puts to the test: the arms that are run, the seeds, and the claims about them."""

    name: str
    arms: Mapping[str, Arm] = field(default_factory=dict)
    measurements: Mapping[str, Measurement] = field(default_factory=dict)
    """Arms that measure in place of running a recipe."""
    claims: tuple[Claim, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    shown: tuple[str, ...] = ()
    """Arms of no claim, which the chapter shows."""
    headline: tuple[str, ...]
    """Ids of the three to five claims that the chapter is about."""

    def __post_init__(self) -> None:
        if faults := [*self._faults_of_arms(), *self._faults_of_claims()]:
            raise ValueError("\n".join(f"chapter {self.name}: {fault}" for fault in faults))

    @property
    def every_arm(self) -> tuple[str, ...]:
        """The names of the arms and, after them, of the measurements."""
        return (*self.arms, *self.measurements)

    @property
    def needs_data(self) -> frozenset[str]:
        """The measurements of data that may not be shipped."""
        return frozenset(name for name, measurement in self.measurements.items() if measurement.needs_data)

    @property
    def others(self) -> tuple[Claim, ...]:
        """The claims that are no headline, in their order."""
        return tuple(claim for claim in self.claims if claim.id not in self.headline)

    @property
    def headlines(self) -> tuple[Claim, ...]:
        """The claims of ``headline``, in the order given there."""
        return tuple(self[identity] for identity in self.headline)

    def __getitem__(self, identity: str) -> Claim:
        """The claim of this id. Raises: ``KeyError`` where there is none."""
        return {claim.id: claim for claim in self.claims}[identity]

    def _faults_of_arms(self) -> list[str]:
        both = set(self.arms) & set(self.measurements)
        faults = [f"{name!r} is an arm and a measurement. Rename one." for name in sorted(both)]
        read = {metric.arm for claim in self.claims for metric in (claim.ours, claim.control) if metric}
        known = ", ".join(self.every_arm)
        faults += [
            f"no arm or measurement is called {name!r}, which claims or shown name; there are: {known}."
            for name in sorted((read | set(self.shown)) - set(self.every_arm))
        ]
        return faults + [
            f"arm {name!r} is of no claim. Leave it out, or name it in shown."
            for name in self.every_arm
            if name not in read | set(self.shown)
        ]

    def _faults_of_claims(self) -> list[str]:
        ids = [claim.id for claim in self.claims]
        faults = [
            f"claim id {name!r} does not begin with {self.name + '.'!r}."
            for name in ids
            if not name.startswith(f"{self.name}.")
        ]
        faults += [
            f"{count} claims have the id {name!r}. Rename them." for name, count in Counter(ids).items() if count > 1
        ]
        faults += [
            f"headline {name!r} is no claim; there are: {', '.join(ids)}." for name in self.headline if name not in ids
        ]
        if not FEWEST_SEEDS <= len(set(self.seeds)) == len(self.seeds) <= MOST_SEEDS:
            faults.append(f"seeds = {self.seeds}. Give {FEWEST_SEEDS} to {MOST_SEEDS} different ones.")
        if not min(3, len(ids)) <= len(self.headline) <= 5:
            faults.append(f"headline names {len(self.headline)} claims. Name the three to five that matter most.")
        return faults


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A claim with its metrics, and what the rule says about them."""

    claim: Claim
    ours: tuple[float, ...]
    control: tuple[float, ...]
    seeds: tuple[int, ...]
    seconds: float
    """Wall-clock of the runs that gave the metrics."""
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
    def in_margins(self) -> tuple[float, ...]:
        """The difference from the control for each seed, in margins; above 0 where it speaks for the claim."""
        return tuple(
            self.claim.sign * (a - b) / self.claim.margin for a, b in zip(self.ours, self.control, strict=True)
        )

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
            "beyond": self.beyond,
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

    Raises: ``ValueError`` for unpaired, missing, too many or non-finite metrics.
    """
    if claim.not_testable:
        return Verdict(claim=claim, ours=(), control=(), seeds=(), seconds=0.0, outcome=NOT_TESTABLE, beyond=0)
    seeds = tuple(seeds) or tuple(range(len(ours)))
    if not len(ours) == len(control) == len(seeds):
        raise ValueError(f"claim {claim.id}: {len(ours)} metrics, {len(control)} of the control, {len(seeds)} seeds.")
    if not 1 <= len(seeds) <= MOST_SEEDS:
        raise ValueError(f"claim {claim.id}: {len(seeds)} seeds; the rule is made for 1 to {MOST_SEEDS}.")
    for name, metrics in (("ours", ours), ("control", control)):
        if not all(map(math.isfinite, metrics)):
            raise ValueError(f"claim {claim.id}: {name} = {list(metrics)} has a metric that is not finite.")
    differences = [claim.sign * (a - b) for a, b in zip(ours, control, strict=True)]
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


def decide(claim: Claim, reports: Mapping[str, Mapping[str, Mapping[str, Any]]], seconds: float = 0.0) -> Verdict:
    """The verdict from the reports of every arm and seed: ``reports[arm][seed]`` is a report.json's content."""
    if claim.not_testable:
        return verdict(claim, (), ())
    both = [reports.get(metric.arm, {}) for metric in (claim.ours, claim.control)]
    seeds = sorted(set(both[0]) & set(both[1]), key=int)
    return verdict(
        claim,
        [claim.ours.read(both[0][seed]) for seed in seeds],
        [claim.control.read(both[1][seed]) for seed in seeds],
        seeds=[int(seed) for seed in seeds],
        seconds=seconds,
    )


def swapped(claim: Claim) -> Claim:
    """The claim with its two sides exchanged: a check that something is better and holds must not hold for this one."""
    return dataclasses.replace(claim, ours=claim.control, control=claim.ours)
