# SPDX-License-Identifier: Apache-2.0
"""The ledger: what the chapters put to the test and what came out, read from the executed notebooks.

``recipes_lib.claims.check`` leaves a record in its output's metadata (``recipes_claim``); this extension reads those
records and renders them, so nothing in the ledger is typed by hand:

- ``{ledger}`` makes the table of all claims; ``:chapter:`` and ``:verdict:`` choose some of them;
- ``{claim} msn.learns`` makes the table of one claim;
- ``{papers}`` makes the table of the claims whose paper has a figure, that figure beside ours;
- the role ``{chapter}`` with a chapter's name says how long it takes and how many of its claims hold.

A claim that ``recipes_lib/recipes/NAME/claims.py`` lists in ``CLAIMS`` and no notebook records, a record of no such claim, and
a claim recorded twice are warnings, hence errors in our build.
"""

import importlib
import importlib.util
import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective, SphinxRole

from recipes_lib.claim import DOES_NOT_HOLD, HOLDS, NOT_TESTABLE
from recipes_lib.recipes import MENU

logger = logging.getLogger(__name__)

NOTEBOOKS = "notebooks"
HEADINGS = ("Claim", "Paper says", "Control arm", "Ours", "Verdict")
WIDTHS = (34, 16, 18, 16, 16)  # per cent
REQUIRED = (
    "id",
    "statement",
    "metric",
    "better",
    "margin",
    "seeds",
    "ours",
    "control",
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


@dataclass(frozen=True)
class Record:
    """One claim as a chapter's notebook recorded it."""

    chapter: str
    values: dict[str, Any]

    @property
    def id(self) -> str:
        """The claim's id, ``chapter.what``."""
        return self.values["id"]


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
    """The ids that ``recipes_lib.recipes.CHAPTER.claims`` lists; none where the chapter has no such module."""
    name = f"recipes_lib.recipes.{chapter}.claims"
    if importlib.util.find_spec(name) is None:
        return []
    return [claim.id for claim in importlib.import_module(name).CLAIMS]


def faults_of(chapter: str, recorded: list[str], declared: list[str]) -> list[str]:
    """A line for each claim without a record, record without a claim, and claim recorded twice."""
    lines = [f"{chapter}: claim {claim} has no record in the notebook" for claim in declared if claim not in recorded]
    lines += [
        f"{chapter}: record {claim} belongs to no claim" for claim in dict.fromkeys(recorded) if claim not in declared
    ]
    return lines + [f"{chapter}: claim {claim} is recorded twice" for claim in declared if recorded.count(claim) > 1]


def _load(app: Sphinx) -> None:
    """Reads every notebook before the pages are read, and checks it against the claims' modules."""
    root = Path(app.srcdir)
    app.env.recipes_claims = {}
    for notebook in sorted((root / NOTEBOOKS).glob("*.ipynb")):
        chapter = notebook.stem
        records = read_records(notebook)
        for line in faults_of(chapter, [record.id for record in records], declared_ids(chapter)):
            logger.warning(line, type="claims", location=f"{NOTEBOOKS}/{chapter}")
        app.env.recipes_claims.update({record.id: record for record in records})


def _figures(values: list[float] | None, unit: str) -> str:
    """Mean, spread and number of seeds or thirds as text: ``0.310 ± 0.020 (3 seeds)``."""
    if not values:
        return "not run"
    mean = f"{statistics.fmean(values):.3g}"
    if len(values) == 1:
        return f"{mean} (1 {unit})"
    return f"{mean} ± {statistics.stdev(values):.2g} ({len(values)} {unit}s)"


def _paper(paper: dict[str, Any]) -> str:
    """The paper's figures, where they stand and how they were read; where there is none, what the paper has instead."""
    if paper.get("value") is None:
        return paper["where"]
    control = "" if paper.get("control") is None else f", control {paper['control']}"
    return f"{paper['value']}{control}; {paper['where']} ({paper['read']})"


def _paragraph(*children: nodes.Node | str) -> nodes.paragraph:
    made = [nodes.Text(child) if isinstance(child, str) else child for child in children]
    return nodes.paragraph("", "", *made)


def _chapter_link(record: Record, text: str) -> addnodes.pending_xref:
    return addnodes.pending_xref(
        "",
        nodes.inline(text, text),
        refdomain="std",
        reftype="doc",
        reftarget=f"/{NOTEBOOKS}/{record.chapter}",
        refexplicit=True,
        refwarn=True,
    )


def _cells(record: Record) -> list[list[nodes.Node]]:
    """The cells of a claim, in the order of ``HEADINGS``."""
    values = record.values
    counts = f"counts when {values['better']}, by at least"
    rule = f"{values['metric']}; {'no worse by more than' if values.get('no_worse') else counts} {values['margin']:g}"
    colour = {HOLDS: "success", DOES_NOT_HOLD: "danger"}.get(values["verdict"], "secondary")
    words = f"{values['verdict']} {values['setting']}"
    verdict = nodes.inline(words, words, classes=["claim-verdict", f"claim-{colour}"])
    return [
        [
            _paragraph(_chapter_link(record, record.id)),
            _paragraph(values["statement"]),
            _paragraph(nodes.emphasis(rule, rule)),
        ],
        [_paragraph(_paper(values["paper"]))],
        [_paragraph(_figures(values["control"], values["unit"])), _paragraph(values["control_arm"])],
        [_paragraph(_figures(values["ours"], values["unit"])), _paragraph(f"{values['seconds']:.0f} s of computing")],
        [_paragraph(verdict), *([_paragraph(values["reason"])] if values.get("reason") else [])],
    ]


def _full_scale(record: Record) -> nodes.row:
    """The row below a claim: what was tuned, and the commands of both arms at the paper's scale."""
    status = record.values.get("measured", "not run")
    parts = [(f"At full scale ({status})", record.values["full_scale"])]
    if record.values["full_scale_control"]:
        parts.append(("Its control", record.values["full_scale_control"]))
    lines = [_paragraph(nodes.strong(name, name), ": ", nodes.literal(command, command)) for name, command in parts]
    if record.values["control_tuning"]:
        lines.insert(0, _paragraph(nodes.strong("Tuning", "Tuning"), f": {record.values['control_tuning']}"))
    return nodes.row("", nodes.entry("", *lines, morecols=len(HEADINGS) - 1))


def table(records: list[Record]) -> nodes.table:
    """The claims as a table with a head row and two rows a claim."""
    rows = [made for record in records for made in (_row(_cells(record)), _full_scale(record))]
    return _table(HEADINGS, WIDTHS, rows)


def papers_table(records: list[Record]) -> nodes.table:
    """The claims whose paper has a figure: that figure, where it stands and how it was read, beside ours."""
    rows = []
    for record in records:
        values, paper = record.values, record.values["paper"]
        if paper.get("value") is None:
            continue
        pairs = [
            [_paragraph(f"{ours}"), *([] if control is None else [_paragraph(f"control: {control}")])]
            for ours, control in (
                (paper["value"], paper.get("control")),
                (_figures(values["ours"], values["unit"]), _figures(values["control"], values["unit"])),
            )
        ]
        source = [_paragraph(paper["where"]), _paragraph(nodes.emphasis(paper["read"], paper["read"]))]
        rows.append(
            _row(
                [
                    [_paragraph(_chapter_link(record, record.id)), _paragraph(values["statement"])],
                    pairs[0],
                    source,
                    pairs[1],
                ]
            )
        )
    return _table(("Claim", "The paper", "Where, and how it was read", "Here"), (34, 18, 26, 22), rows)


def _row(cells: list[list[nodes.Node]]) -> nodes.row:
    return nodes.row("", *[nodes.entry("", *cell) for cell in cells])


def _table(headings: tuple[str, ...], widths: tuple[int, ...], rows: list[nodes.row]) -> nodes.table:
    columns = [nodes.colspec(colwidth=width) for width in widths]
    head = nodes.thead("", _row([[_paragraph(heading)] for heading in headings]))
    group = nodes.tgroup("", *columns, head, nodes.tbody("", *rows), cols=len(headings))
    return nodes.table("", group, classes=["claims"])


class LedgerDirective(SphinxDirective):
    """``{ledger}``: the table of all claims, or of those of one chapter or verdict."""

    option_spec = {  # noqa: RUF012 - docutils wants a plain dict
        "chapter": directives.unchanged_required,
        "verdict": lambda text: directives.choice(text, (HOLDS, DOES_NOT_HOLD, NOT_TESTABLE)),
    }

    def run(self) -> list[nodes.Node]:
        """Makes the nodes; called by docutils."""
        records = list(self.env.recipes_claims.values())
        if "chapter" in self.options:
            records = [record for record in records if record.chapter == self.options["chapter"]]
        if "verdict" in self.options:
            records = [record for record in records if record.values["verdict"] == self.options["verdict"]]
        _depend_on_notebooks(self.env)
        return [table(records)] if records else [_paragraph("No claim is recorded here yet.")]


class ClaimDirective(SphinxDirective):
    """``{claim} ID``: the table of one claim."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Makes the nodes; called by docutils."""
        wanted = self.arguments[0]
        _depend_on_notebooks(self.env)
        if wanted not in self.env.recipes_claims:
            known = ", ".join(self.env.recipes_claims) or "none"
            logger.warning(
                "no record of claim %s; there are: %s", wanted, known, location=self.get_location(), type="claims"
            )
            return []
        return [table([self.env.recipes_claims[wanted]])]


class PapersDirective(SphinxDirective):
    """``{papers}``: the papers' figures beside ours."""

    def run(self) -> list[nodes.Node]:
        """Makes the nodes; called by docutils."""
        _depend_on_notebooks(self.env)
        return [papers_table(list(self.env.recipes_claims.values()))]


def header_seconds(notebook: Path) -> int:
    """The seconds that a chapter's own first cell names: both read them from the menu."""
    return MENU[notebook.stem].seconds


class ChapterRole(SphinxRole):
    """``{chapter}`` with a chapter's name: its minutes and its verdicts in one phrase."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """Makes the nodes; called by docutils."""
        notebook = Path(self.env.srcdir) / NOTEBOOKS / f"{self.text}.ipynb"
        _depend_on_notebooks(self.env)
        if not notebook.exists():
            logger.warning("no executed notebook %s", notebook.name, location=self.get_location(), type="claims")
            return [], []
        verdicts = [
            record.values["verdict"] for record in self.env.recipes_claims.values() if record.chapter == self.text
        ]
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
    app.add_directive("ledger", LedgerDirective)
    app.add_directive("claim", ClaimDirective)
    app.add_directive("papers", PapersDirective)
    app.add_role("chapter", ChapterRole())
    app.connect("builder-inited", _load)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
