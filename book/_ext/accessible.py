# SPDX-License-Identifier: Apache-2.0
"""Makes the built pages usable with a screen reader and a keyboard, where Sphinx, MyST-NB and the theme fall short.

- A toggle is named by what it holds ("Show the solution"); MyST-NB calls each of them "Toggle hidden content".
- Roles that ARIA has given up, or that do not fit their element, go from the list of references.
- The sidebar is a landmark, and the name of a button holds the words that are on it.
"""

from pathlib import Path
from typing import Any

from docutils import nodes
from myst_nb.sphinx_ import HideCodeCellNode
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform

SETTING_UP, PLOTTING, CODE, OUTPUT, SOLUTION = "set-up code", "plotting code", "code", "output", "solution"

IN_PAGES = {
    ' role="doc-biblioentry"': "",
    '<div role="list" class="citation-list">': '<div class="citation-list">',
    '<div id="pst-primary-sidebar" class="bd-sidebar-primary bd-sidebar">': (
        '<div id="pst-primary-sidebar" class="bd-sidebar-primary bd-sidebar" role="complementary" aria-label="Sidebar">'
    ),
    ' data-mode="light" title="Light"': ' data-mode="light"',  # icons of one button, whose name is "Color mode"
    ' data-mode="dark"  title="Dark"': ' data-mode="dark"',
    ' data-mode="auto"  title="System Settings"': ' data-mode="auto"',
    'search-button__button pst-js-only" title="Search" aria-label="Search" data-bs-placement="bottom" '
    'data-bs-toggle="tooltip">\n <i': (
        'search-button__button pst-js-only" title="Search" data-bs-placement="bottom" data-bs-toggle="tooltip">\n <i'
    ),
}
"""What is written on the pages -> what takes its place."""


def what_is_hidden(cell: nodes.Element, part: nodes.Element) -> str:
    """What a toggle of a code cell holds; ``part`` is what it wraps."""
    if "solution" in cell["cell_metadata"].get("tags", []):
        return SOLUTION
    if not any(child.get("nb_element") == "cell_code_source" for child in part.children):
        return OUTPUT
    if "notebook.start(" in part.astext():
        return SETTING_UP
    return PLOTTING if any(cell.findall(nodes.image)) else CODE


class NameToggles(SphinxPostTransform):
    """Gives each toggle the name of what it holds."""

    default_priority = 200  # after MyST-NB has made the toggles, at 199
    formats = ("html",)

    def run(self, **kwargs: Any) -> None:
        """Called by Sphinx."""
        for cell in self.document.findall(nodes.container):
            for part in cell.children:
                if isinstance(part, HideCodeCellNode):
                    held = what_is_hidden(cell, part)
                    part["prompt_show"], part["prompt_hide"] = f"Show the {held}", f"Hide the {held}"


def _visit(translator: Any, node: HideCodeCellNode) -> None:
    """As MyST-NB's, but its summary is named by the words in it; those of the other state are not displayed."""
    words = "".join(
        f'<p class="{state} admonition-title">{translator.encode(node[prompt])}</p>\n'
        for state, prompt in (("collapsed", "prompt_show"), ("expanded", "prompt_hide"))
    )
    classes = " ".join(node["classes"])
    translator.body.append(f'<details class="admonition hide {classes}">\n<summary>\n{words}</summary>\n')


def _depart(translator: Any, node: HideCodeCellNode) -> None:
    translator.body.append("</details>\n")


def _mend(app: Sphinx, error: Exception | None) -> None:
    if error is None and app.builder.format == "html":
        for page in Path(app.outdir).rglob("*.html"):
            written = text = page.read_text(encoding="utf-8")
            for old, new in IN_PAGES.items():
                text = text.replace(old, new)
            if text != written:
                page.write_text(text, encoding="utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    """Sphinx calls this when it loads the extension."""
    app.setup_extension("myst_nb")
    app.add_node(HideCodeCellNode, override=True, html=(_visit, _depart))
    app.add_post_transform(NameToggles)
    app.connect("build-finished", _mend)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
