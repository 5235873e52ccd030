# SPDX-License-Identifier: Apache-2.0
"""The map of systems as a table: the directive ``{systems}``, made from ``recipes_lib.systems``.

The column of the cost comes from the stored figures of the chapter ``families``, which its measurement ``cost`` made.
"""

import json
from pathlib import Path

from doc_nodes import definitions, page_link, paragraph, table
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from recipes_lib.recipes import MENU
from recipes_lib.systems import SYSTEMS, System

STORED = "data/claims/families.json"
TRAITS = {
    "teacher": "teacher",
    "stop_gradient": "stop-gradient",
    "predictor": "predictor",
    "negatives": "negatives",
    "masking": "masking",
    "batch_coupled": "coupled to the batch",
}
"""Field of a system -> what the table calls it."""


def costs(root: Path) -> dict[str, float]:
    """Operations of a training step per image, SimCLR's being 1, of the methods of the families."""
    figures = json.loads((root / STORED).read_text(encoding="utf-8"))["figures"]["cost"]
    return next(iter(figures.values()))["cost"]


def ingredients(system: System) -> str:
    """The ingredients that a system has, in words."""
    return ", ".join(words for name, words in TRAITS.items() if getattr(system, name)) or "none of these"


class SystemsDirective(SphinxDirective):
    """``{systems}``: a row for each method of the book."""

    def run(self) -> list[nodes.Node]:
        """Makes the nodes; called by docutils."""
        root = Path(self.env.srcdir)
        self.env.note_dependency(str(root / STORED))
        found = costs(root)
        rows = []
        for name, system in SYSTEMS.items():
            cost = f"{found[name]:.1f}" if name in found else "not compared"
            rows.append(
                [
                    [paragraph(page_link(f"/notebooks/{system.chapter}", system.title))],
                    [paragraph(system.family)],
                    [paragraph(system.terms)],
                    [paragraph(system.guard)],
                    [paragraph(ingredients(system))],
                    [paragraph(cost)],
                ]
            )
        heads = ("method", "family", "terms of the loss", "what prevents collapse", "has", "operations per image")
        return [table(heads, (12, 14, 28, 18, 20, 8), rows)]


class WhoHasDirective(SphinxDirective):
    """``{who-has}``: for each ingredient, the methods that have it."""

    def run(self) -> list[nodes.Node]:
        """Makes the nodes; called by docutils."""
        pairs = [
            (words, ", ".join(system.title for system in SYSTEMS.values() if getattr(system, name)))
            for name, words in TRAITS.items()
        ]
        return [definitions(pairs)]


def setup(app: Sphinx) -> dict[str, bool]:
    """Sphinx calls this when it loads the extension."""
    missing = {system.chapter for system in SYSTEMS.values()} - set(MENU)
    if missing:
        raise ValueError(f"recipes_lib.systems names chapters that are not in the menu: {sorted(missing)}")
    app.add_directive("systems", SystemsDirective)
    app.add_directive("who-has", WhoHasDirective)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
