# SPDX-License-Identifier: Apache-2.0
"""Claims of papers as checks that can fail, the rule that decides them, and the chapters that make them. No torch here.

A claim compares two metrics, seed by seed: ours, and that of a control arm. It holds if the mean difference reaches a
margin that was fixed before the run and no seed has a difference in the other direction. A claim that ours is no worse
holds if the mean shortfall is within the margin and the shortfall of every seed is below twice the margin. There are no
p-values, because three to five runs are too few for them.
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
"""How a paper's number was read, the most reliable way first."""
FEWEST_SEEDS = 3  # per chapter; two seeds both point the claimed way by chance in 1 of 4 cases
MOST_SEEDS = 5  # with more seeds, even a true effect often has one seed that points the other way


@dataclass(frozen=True)
class Metric:
    """The place of a metric: the arm that was run, and the dotted path in its ``report.json``."""

    arm: str
    path: str

    def read(self, report: Mapping[str, Any]) -> float:
        """The metric's value in ``report``. Raises: ``ValueError`` naming the part of the path that is missing."""

        def step(place: Any, key: str) -> Any:
            if not isinstance(place, Mapping) or key not in place:
                raise ValueError(f"arm {self.arm}: the report has no {self.path} ({key!r} is missing).")
            return place[key]

        return float(reduce(step, self.path.split("."), report))


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One statement of a paper, with everything that decides it, fixed before the run."""

    id: str
    """Chapter and short name, such as ``msn.collapse``."""
    statement: str
    """One sentence that can be false."""
    metric: str
    """The quantity that is compared, in plain words."""
    better: Literal["higher", "lower"]
    """The direction in which ``ours`` has to differ from ``control``."""
    margin: float
    """Smallest mean difference, in the metric's unit, above 0; at most half of the effect seen in a pilot."""
    ours: Metric | None
    """The metric of the claimed method; ``None`` for a claim that is not testable at this scale."""
    control: Metric | None
    """The metric of the control; ``None`` for a claim that is not testable at this scale."""
    control_arm: str
    """The control, in plain words."""
    paper: Mapping[str, Any]
    """``value`` and ``control`` (the paper's numbers for both arms, ``None`` if no such number was read), ``where``
    (table or section, model and data) and ``read`` (how the number was read, one of :data:`READINGS`)."""
    full_scale: str
    """The command that runs ours at the paper's scale."""
    full_scale_control: str = ""
    """The command that runs the control; empty if the command of ours gives both metrics."""
    control_tuning: str = ""
    """What was tuned for ours and for the control, with how many runs, on which seeds and which split of the data."""
    setting: str = "at toy scale"
    """Where the verdict was reached, in words that follow "holds"."""
    unit: str = "seed"
    """The unit of pairing: a seed, or a disjoint third of the images."""
    no_worse: bool = False
    """True: ours need not be better. Its mean may be worse than the control's by at most the margin."""
    not_testable: str = ""
    """The reason why no run at this scale can decide the claim; empty for a claim that is checked."""
    version: int = 1
    """Version number, which goes up when the statement, the margin or an arm changes."""

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
        """1 if ours has to be higher than the control, -1 if it has to be lower."""
        return 1 if self.better == "higher" else -1

    @property
    def name(self) -> str:
        """The id without the chapter's name."""
        return self.id.partition(".")[2]

    @property
    def rule(self) -> str:
        """The rule of this claim in words: the metric, the direction that counts for the claim, and the margin."""
        if self.no_worse:
            return f"{self.metric}; holds where ours falls short by at most {self.margin:g} on average"
        return f"{self.metric}; counts for the claim when {self.better}, by at least {self.margin:g} on average"


class Facts(TypedDict, total=False):
    """The fields of :class:`Claim` that :func:`higher`, :func:`lower` and :func:`no_worse` take by name."""

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

    Claims of a chapter can share fields: ``accuracy = functools.partial(higher, metric="accuracy", ...)``.
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
    """The claim that ours is worse than the control by at most a margin; ``better`` says which direction is better."""
    claim = higher if better == "higher" else lower
    return dataclasses.replace(claim(id, statement, ours=ours, control=control, by=by, **facts), no_worse=True)


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A run of a recipe: the chapter's own recipe or any other."""

    recipe: str
    preset: str = "toy"
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the preset to replace, by dotted name: ``{"optim.lr": 1e-3}``. The seed is set for each run."""


@dataclass(frozen=True)
class Measurement:
    """A function of the seed that returns a report, for what a chapter measures without a run of a recipe."""

    function: str
    """The function as ``"module:function"``. It is named and not imported, so that a chapter's claims need no torch."""
    fingerprint: "str | Arm | None" = None
    """The source of a fingerprint, which shows whether the numerics changed: a function as ``"module:function"``, or an
    arm whose fingerprint is used; ``None`` if other tests check the report."""
    needs_data: bool = False
    """Whether it needs data that may not be shipped. It then runs only if ``RECIPES_DATA`` is set, and only aggregates
    are stored."""


@dataclass(frozen=True, kw_only=True)
class Chapter:
    """The claims of a chapter, and the arms and seeds that are run to check them."""

    name: str
    arms: Mapping[str, Arm] = field(default_factory=dict)
    measurements: Mapping[str, Measurement] = field(default_factory=dict)
    """Arms that call a function instead of running a recipe."""
    claims: tuple[Claim, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    shown: tuple[str, ...] = ()
    """Names of arms that the chapter shows, although no claim uses them."""
    headline: tuple[str, ...]
    """Ids of the three to five most important claims."""

    def __post_init__(self) -> None:
        if faults := [*self._faults_of_arms(), *self._faults_of_claims()]:
            raise ValueError("\n".join(f"chapter {self.name}: {fault}" for fault in faults))

    @property
    def every_arm(self) -> tuple[str, ...]:
        """The names of all arms, followed by those of all measurements."""
        return (*self.arms, *self.measurements)

    @property
    def needs_data(self) -> frozenset[str]:
        """The names of the measurements that need data that may not be shipped."""
        return frozenset(name for name, measurement in self.measurements.items() if measurement.needs_data)

    @property
    def others(self) -> tuple[Claim, ...]:
        """The claims that are not in ``headline``, in their order."""
        return tuple(claim for claim in self.claims if claim.id not in self.headline)

    @property
    def headlines(self) -> tuple[Claim, ...]:
        """The claims of ``headline``, in the order given there."""
        return tuple(self[identity] for identity in self.headline)

    def __getitem__(self, identity: str) -> Claim:
        """The claim with this id. Raises: ``KeyError`` if there is none."""
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
    """A claim with its metrics, and the outcome of the rule."""

    claim: Claim
    ours: tuple[float, ...]
    control: tuple[float, ...]
    seeds: tuple[int, ...]
    seconds: float
    """Wall-clock seconds of the runs that gave the metrics."""
    outcome: str
    """One of ``HOLDS``, ``DOES_NOT_HOLD`` and ``NOT_TESTABLE``."""
    beyond: int
    """Number of seeds whose difference reaches the margin; for ``no_worse``, whose shortfall is within the margin."""
    arms: tuple[str, str] = field(default=("ours", "control"))

    @property
    def line(self) -> str:
        """The verdict in one line without any trained number, so that a notebook's check can compare it."""
        if self.claim.not_testable:
            return f"claim {self.claim.id}: {self.words} ({self.claim.not_testable})"
        where = "within" if self.claim.no_worse else "beyond"
        counted = f"{self.beyond} of {len(self.seeds)} {self.claim.unit}s"
        return f"claim {self.claim.id}: {self.words} ({counted} {where} the margin)"

    @property
    def words(self) -> str:
        """The outcome and its setting, such as ``holds at toy scale``."""
        return f"{self.outcome} {self.claim.setting}"

    @property
    def in_margins(self) -> tuple[float, ...]:
        """The difference from the control for each seed, in units of the margin; above 0 if it supports the claim."""
        return tuple(
            self.claim.sign * (a - b) / self.claim.margin for a, b in zip(self.ours, self.control, strict=True)
        )

    @property
    def record(self) -> dict[str, Any]:
        """The data for the ledger, which a notebook stores in the metadata of the output with the verdict's line."""
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
    """Applies the rule to ``ours`` and ``control``, which are paired by seed. ``seeds`` defaults to 0, 1, 2, ...

    A claim holds if mean(difference) >= margin and every difference has the claimed sign (0 does not). A ``no_worse``
    claim holds if mean(difference) >= -margin and every difference is above -2 margin.

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
    """The verdict from the reports of all arms and seeds: ``reports[arm][seed]`` is a ``report.json``'s content."""
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
    """The claim with ours and control exchanged. If a claim that ours is better holds, its exchange must not hold."""
    return dataclasses.replace(claim, ours=claim.control, control=claim.ours)
