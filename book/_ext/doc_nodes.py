# SPDX-License-Identifier: Apache-2.0
"""Pieces of a page, as Sphinx's document tree has them: what the book's extensions put together."""

from collections.abc import Sequence

from docutils import nodes
from sphinx import addnodes


def paragraph(*children: nodes.Node | str, classes: Sequence[str] = ()) -> nodes.paragraph:
    """A paragraph of texts and inline nodes."""
    made = [nodes.Text(child) if isinstance(child, str) else child for child in children]
    return nodes.paragraph("", "", *made, classes=list(classes))


def page_link(page: str, text: str) -> addnodes.pending_xref:
    """A link to another page of the book, such as ``/book/ledger``; a page that is not there is a warning."""
    facts = {"refdomain": "std", "reftype": "doc", "refexplicit": True, "refwarn": True}
    return addnodes.pending_xref("", nodes.inline(text, text), reftarget=page, **facts)


def html(text: str) -> nodes.raw:
    """HTML as it is; builders of other formats leave it out."""
    return nodes.raw("", text, format="html")


def definitions(pairs: Sequence[tuple[str, nodes.Node | str]]) -> nodes.definition_list:
    """A list of names and what they are, which reads on a narrow screen too."""
    items = [
        nodes.definition_list_item("", nodes.term(name, name), nodes.definition("", paragraph(what)))
        for name, what in pairs
    ]
    return nodes.definition_list("", *items)


def table(
    headings: Sequence[str],
    widths: Sequence[int],
    rows: list[list[list[nodes.Node]]],
    classes: Sequence[str] = ("stacked",),
) -> nodes.table:
    """A table; in one whose rows are stacked where the screen is narrow, each cell begins with its heading."""
    if "stacked" in classes:
        labels = [[], *([paragraph(heading, classes=["stacked-label"])] for heading in headings[1:])]
        rows = [[[*label, *cell] for label, cell in zip(_copies(labels), row, strict=True)] for row in rows]
    columns = [nodes.colspec(colwidth=width) for width in widths]
    head = nodes.thead("", _row([[paragraph(heading)] for heading in headings]))
    group = nodes.tgroup("", *columns, head, nodes.tbody("", *map(_row, rows)), cols=len(headings))
    return nodes.table("", group, classes=["claims", *classes])


def _copies(labels: list[list[nodes.Node]]) -> list[list[nodes.Node]]:
    return [[node.deepcopy() for node in label] for label in labels]


def _row(cells: list[list[nodes.Node]]) -> nodes.row:
    return nodes.row("", *[nodes.entry("", *cell) for cell in cells])
