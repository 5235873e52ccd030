# SPDX-License-Identifier: Apache-2.0
"""What the chapters put to the test, and what came out: the box before the runs, and the ledger after them.

``recipes_lib.claims.verdicts`` leaves a record in each output's metadata (``recipes_claim``); this extension reads those
records and renders them, so nothing in the ledger is typed by hand:

- ``{claims} msn`` makes the box of a chapter's claims from ``recipes_lib/recipes/msn/claims.py``, headlines first;
- ``{ledger}`` makes a summary by chapter, a filter by verdict, and a section for each chapter with a card for each claim;
- ``{papers}`` makes the table of the claims whose paper has a number, that number beside ours;
- the role ``{chapter}`` with a chapter's name says how long it takes and how many of its claims hold.

A claim of a chapter that no notebook records, a record of no such claim, and a claim recorded twice are warnings, hence
errors in our build.
"""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import doc_nodes
from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective, SphinxRole

from recipes_lib import recipes
from recipes_lib.claim import DOES_NOT_HOLD, HOLDS, NOT_TESTABLE, Chapter, Claim

logger = logging.getLogger(__name__)

NOTEBOOKS = "notebooks"
BOX_TITLE = "What this chapter puts to the test"
REQUIRED = (
    "id",
    "statement",
    "metric",
    "better",
    "margin",
    "seeds",
    "ours",
    "control",
    "beyond",
    "control_arm",
    "control_tuning",
    "paper",
    "verdict",
    "setting",
    "unit",
    "seconds",
    "full_scale",
    "full_scale_control",
)
KINDS = {HOLDS: "held", DOES_NOT_HOLD: "fell", NOT_TESTABLE: "untested"}
"""Verdict -> what a card is called in the style sheet."""
SUMMARY = {HOLDS: "held", DOES_NOT_HOLD: "did not hold", NOT_TESTABLE: "not testable"}


@dataclass(frozen=True)
class Record:
    """One claim as a chapter's notebook recorded it."""

    chapter: str
    values: dict[str, Any]

    @property
    def id(self) -> str:
        """The claim's id, ``chapter.what``."""
        return self.values["id"]

    @property
    def verdict(self) -> str:
        """*holds*, *does not hold* or *not testable*."""
        return self.values["verdict"]


def read_records(notebook: Path) -> list[Record]:
    """The claim records in the outputs' metadata of an executed notebook, in their order.

    Raises: ``ValueError`` naming the notebook and the keys that a record lacks.
    """
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    found = [output["metadata"]["recipes_claim"] for output in outputs if "recipes_claim" in output.get("metadata", {})]
    for values in found:
        lacking = [key for key in REQUIRED if key not in values]
        if lacking:
            raise ValueError(f"{notebook.name}: claim record {values.get('id')!r} lacks {', '.join(lacking)}")
    return [Record(notebook.stem, values) for values in found]


def declared_ids(chapter: str) -> list[str]:
    """The ids of the claims that the chapter's recipe states; none where no recipe bears the chapter's name."""
    return [claim.id for claim in recipes.chapter(chapter).claims] if chapter in recipes.MENU else []


def faults_of(chapter: str, recorded: list[str], declared: list[str]) -> list[str]:
    """A line for each claim without a record, record without a claim, and claim recorded twice."""
    lines = [f"{chapter}: claim {claim} has no record in the notebook" for claim in declared if claim not in recorded]
    lines += [
        f"{chapter}: record {claim} belongs to no claim" for claim in dict.fromkeys(recorded) if claim not in declared
    ]
    return lines + [f"{chapter}: claim {claim} is recorded twice" for claim in declared if recorded.count(claim) > 1]


def _load(app: Sphinx) -> None:
    """Reads every notebook before the pages are read, and checks it against the chapters' claims."""
    root = Path(app.srcdir)
    app.env.recipes_claims = {}
    order = list(recipes.MENU)
    for notebook in sorted(
        (root / NOTEBOOKS).glob("*.ipynb"), key=lambda path: order.index(path.stem) if path.stem in order else 0
    ):
        chapter = notebook.stem
        records = read_records(notebook)
        for line in faults_of(chapter, [record.id for record in records], declared_ids(chapter)):
            logger.warning(line, type="claims", location=f"{NOTEBOOKS}/{chapter}")
        app.env.recipes_claims.update({record.id: record for record in records})


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _metrics(values: list[float], unit: str) -> str:
    """The mean, how many seeds it is of, and each of them: ``0.62, the mean of 3 seeds (0.6, 0.62, 0.64)``."""
    if not values:
        return "not run"
    if len(values) == 1:
        return f"{_number(values[0])} (1 {unit})"
    each = ", ".join(map(_number, values))
    return f"{_number(statistics.fmean(values))}, the mean of {len(values)} {unit}s ({each})"


def _paper(paper: dict[str, Any]) -> str:
    """The paper's numbers, where they stand and how they were read; where there is none, what the paper has instead."""
    if paper.get("value") is None:
        return paper["where"]
    control = "" if paper.get("control") is None else f", control {paper['control']}"
    return f"{paper['value']}{control}; {paper['where']} ({paper['read']})"


def _chapter_link(record: Record) -> addnodes.pending_xref:
    return doc_nodes.page_link(f"/{NOTEBOOKS}/{record.chapter}", record.id)


def card(record: Record) -> nodes.container:
    """One claim: its verdict, the numbers of both arms, the paper's, and, behind a toggle, tuning and commands."""
    values = record.values
    colour = {HOLDS: "success", DOES_NOT_HOLD: "danger"}.get(record.verdict, "secondary")
    words = f"{record.verdict} {values['setting']}"
    verdict = nodes.inline(words, words, classes=["claim-verdict", f"claim-{colour}"])
    counts = f"counts when {values['better']}, by at least"
    rule = f"{values['metric']}; {'no worse by more than' if values.get('no_worse') else counts} {values['margin']:g}"
    within = "within" if values.get("no_worse") else "beyond"
    count = f"{values['beyond']} of {len(values['seeds'])} {values['unit']}s {within} the margin"
    shown = [
        ("Compared", rule),
        ("Ours", _metrics(values["ours"], values["unit"])),
        ("Control", f"{_metrics(values['control'], values['unit'])}: {values['control_arm']}"),
        ("The paper", _paper(values["paper"])),
    ]
    hidden = [("Tuning", values["control_tuning"])] if values["control_tuning"] else []
    for name, command in (("Ours at full scale", "full_scale"), ("Its control", "full_scale_control")):
        if values[command]:
            hidden.append((name, nodes.literal(values[command], values[command])))
    hidden.append(("Computing", f"{values['seconds']:,.0f} s for all of the runs above"))
    return nodes.container(
        "",
        doc_nodes.paragraph(
            _chapter_link(record), " ", verdict, f" ({values['reason'] if values.get('reason') else count})"
        ),
        doc_nodes.paragraph(nodes.strong(values["statement"], values["statement"])),
        doc_nodes.definitions(shown),
        doc_nodes.html(f"<details><summary>Tuning and commands of {record.id}</summary>"),
        doc_nodes.definitions(hidden),
        doc_nodes.html("</details>"),
        classes=["claim-card", f"claim-{KINDS[record.verdict]}"],
    )


def papers_table(records: list[Record]) -> nodes.table:
    """The claims whose paper has a number: that number, where it stands and how it was read, beside ours."""
    rows = []
    for record in records:
        values, paper = record.values, record.values["paper"]
        if paper.get("value") is None:
            continue
        pairs = [
            [doc_nodes.paragraph(f"{ours}"), *([] if control is None else [doc_nodes.paragraph(f"control: {control}")])]
            for ours, control in (
                (paper["value"], paper.get("control")),
                (_mean(values["ours"]), _mean(values["control"])),
            )
        ]
        source = [
            doc_nodes.paragraph(paper["where"]),
            doc_nodes.paragraph(nodes.emphasis(paper["read"], paper["read"])),
        ]
        rows.append(
            [
                [doc_nodes.paragraph(_chapter_link(record)), doc_nodes.paragraph(values["statement"])],
                pairs[0],
                source,
                pairs[1],
            ]
        )
    return doc_nodes.table(("Claim", "The paper", "Where, and how it was read", "Here"), (34, 18, 30, 18), rows)


def _mean(values: list[float]) -> str:
    return _number(statistics.fmean(values)) if values else "not run"


def anchor(chapter: str) -> str:
    """The anchor of a chapter's section on the ledger's page: ``ledger-local-sgd``."""
    return nodes.make_id(f"ledger-{chapter}")


def title_of(chapter: str) -> str:
    """A chapter's title as the menu has it."""
    return recipes.MENU[chapter].title if chapter in recipes.MENU else chapter


def summary(records: list[Record]) -> nodes.table:
    """How many claims of each chapter held, did not hold and could not be tested; the chapters link to their sections."""
    chapters = dict.fromkeys(record.chapter for record in records)
    rows = []
    for chapter in (*chapters, None):
        mine = [record.verdict for record in records if chapter in (None, record.chapter)]
        name = nodes.strong("all", "all")
        if chapter is not None:
            name = nodes.reference("", title_of(chapter), refid=anchor(chapter), internal=True)
        rows.append(
            [[doc_nodes.paragraph(name)], *([doc_nodes.paragraph(str(mine.count(verdict)))] for verdict in SUMMARY)]
        )
    return doc_nodes.table(("Chapter", *SUMMARY.values()), (55, 15, 15, 15), rows, classes=("claim-summary",))


def choice(records: list[Record]) -> nodes.raw:
    """Buttons that hide the cards of other verdicts, by the style sheet alone; without it all cards are shown."""
    verdicts = [record.verdict for record in records]
    kinds = [("all", "all", len(verdicts))]
    kinds += [(KINDS[verdict], words, verdicts.count(verdict)) for verdict, words in SUMMARY.items()]
    buttons = "".join(
        f'<label><input type="radio" name="claim-filter" id="show-{kind}"{" checked" * (kind == "all")}> '
        f"{words} ({count})</label>"
        for kind, words, count in kinds
    )
    return doc_nodes.html(f'<fieldset class="claim-filter"><legend>Claims to show</legend>{buttons}</fieldset>')


class LedgerDirective(SphinxDirective):
    """``{ledger}``: summary, filter, and a section of cards for each chapter."""

    def run(self) -> list[nodes.Node]:
        """Makes the nodes; called by docutils."""
        records = list(self.env.recipes_claims.values())
        _depend_on_notebooks(self.env)
        if not records:
            return [doc_nodes.paragraph("No claim is recorded here yet.")]
        return [summary(records), choice(records), *map(self._section, dict.fromkeys(r.chapter for r in records))]

    def _section(self, chapter: str) -> nodes.section:
        title = title_of(chapter)
        section = nodes.section("", nodes.title(title, title), ids=[anchor(chapter)], names=[anchor(chapter)])
        self.state.document.note_explicit_target(section, section)
        section += [card(record) for record in self.env.recipes_claims.values() if record.chapter == chapter]
        return section


class PapersDirective(SphinxDirective):
    """``{papers}``: the papers' numbers beside ours."""

    def run(self) -> list[nodes.Node]:
        """Makes the nodes; called by docutils."""
        _depend_on_notebooks(self.env)
        return [papers_table(list(self.env.recipes_claims.values()))]


class ClaimsDirective(SphinxDirective):
    """``{claims} NAME``: the box of what a chapter puts to the test, before any run."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Makes the nodes; called by docutils."""
        name = self.arguments[0]
        if name not in recipes.MENU:
            known = ", ".join(recipes.MENU)
            logger.warning("no chapter %s has claims; there are: %s", name, known, location=self.get_location())
            return []
        chapter = recipes.chapter(name)
        title = nodes.title(BOX_TITLE, BOX_TITLE)
        intro = doc_nodes.paragraph(
            "Each claim has a control arm, and a margin that was fixed before the claim was checked. It holds where the "
            "mean difference from the control reaches the margin and no seed points the other way. The verdicts stand at "
            "the end of the chapter, and in ",
            doc_nodes.page_link("/book/ledger", "the ledger"),
            ".",
        )
        box = nodes.admonition("", title, intro, claim_list(chapter.headlines, chapter), classes=["important"])
        if chapter.others:
            count = len(chapter.others)
            label = "One more claim" if count == 1 else f"{count} more claims"
            box += [
                doc_nodes.html(f"<details><summary>{label}</summary>"),
                claim_list(chapter.others, chapter),
                doc_nodes.html("</details>"),
            ]
        return [box]


def claim_list(claims: Sequence[Claim], chapter: Chapter) -> nodes.bullet_list:
    """A point for each claim: its statement; under it how it is judged, its control, and the number of seeds."""
    items = []
    for claim in claims:
        how = f" {claim.rule}. Control: {claim.control_arm}. {len(chapter.seeds)} {claim.unit}s."
        if claim.not_testable:
            how = f" not testable here: {claim.not_testable}."
        identity = nodes.literal(claim.id, claim.id)
        items.append(
            nodes.list_item(
                "",
                doc_nodes.paragraph(nodes.strong(claim.statement, claim.statement)),
                doc_nodes.paragraph(identity, ":", how, classes=["claim-facts"]),
            )
        )
    return nodes.bullet_list("", *items)


def header_seconds(notebook: Path) -> int:
    """The seconds that a chapter's own first cell names: both read them from the menu."""
    return recipes.MENU[notebook.stem].seconds


class ChapterRole(SphinxRole):
    """``{chapter}`` with a chapter's name: its minutes and its verdicts in one phrase."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """Makes the nodes; called by docutils."""
        notebook = Path(self.env.srcdir) / NOTEBOOKS / f"{self.text}.ipynb"
        _depend_on_notebooks(self.env)
        if not notebook.exists():
            logger.warning("no executed notebook %s", notebook.name, location=self.get_location(), type="claims")
            return [], []
        verdicts = [record.verdict for record in self.env.recipes_claims.values() if record.chapter == self.text]
        phrase = f"about {header_seconds(notebook)} s on one core"
        if verdicts:
            held = sum(verdict == HOLDS for verdict in verdicts)
            phrase += f"; {held} of {len(verdicts)} claims hold in our tests"
        return [nodes.Text(phrase)], []


def _depend_on_notebooks(env: Any) -> None:
    """A page that shows records is read again when a notebook changes."""
    for notebook in (Path(env.srcdir) / NOTEBOOKS).glob("*.ipynb"):
        env.note_dependency(str(notebook))


def setup(app: Sphinx) -> dict[str, bool]:
    """Sphinx calls this when it loads the extension."""
    app.add_directive("claims", ClaimsDirective)
    app.add_directive("ledger", LedgerDirective)
    app.add_directive("papers", PapersDirective)
    app.add_role("chapter", ChapterRole())
    app.connect("builder-inited", _load)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
