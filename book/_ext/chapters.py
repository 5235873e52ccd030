# SPDX-License-Identifier: Apache-2.0
"""How chapters depend on each other and what they look like, from the menu and the executed notebooks.

- The role ``{needs}`` with a chapter's name links the chapters to read first.
- The directive ``{chapter-map}`` draws all chapters, each with an arrow from those to read before it.
- The role ``{thumbnail}`` with a chapter's name shows the chapter's first figure, small.

What to read first stands once, in ``recipes_lib.recipes.MENU``.
"""

import base64
import html
import io
import json
from collections.abc import Iterator
from pathlib import Path

from doc_nodes import page_link
from docutils import nodes
from PIL import Image
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective, SphinxRole

from recipes_lib.recipes import MENU

logger = logging.getLogger(__name__)

NOTEBOOKS = "notebooks"
THUMBNAIL = (400, 225)
"""Pixels of a thumbnail: twice what a card shows, for sharp screens."""
THUMBNAIL_BYTES = 30_000
BOX, GAP, COLUMN = (380, 40), 14, 440
"""Of the map: width and height of a box, between boxes of a column, from column to column; in units of the drawing."""


class NeedsRole(SphinxRole):
    """``{needs}`` with a chapter's name: links to the chapters to read first, or "no other chapter"."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """Makes the nodes; called by docutils."""
        if self.text not in MENU:
            logger.warning("no chapter %s in the menu", self.text, location=self.get_location(), type="chapters")
            return [], []
        made: list[nodes.Node] = []
        needs = MENU[self.text].needs
        for place, name in enumerate(needs):
            if place:
                made.append(nodes.Text(" and " if place == len(needs) - 1 else ", "))
            made.append(page_link(f"/{NOTEBOOKS}/{name}", MENU[name].title))
        return made or [nodes.Text("no other chapter")], []


def depth(name: str) -> int:
    """How many chapters stand one before the other on the longest way to this one; 0 where none is needed."""
    return max((depth(need) + 1 for need in MENU[name].needs), default=0)


def places() -> dict[str, tuple[float, float]]:
    """Where the box of each chapter has its upper left corner: a column per depth, in the order of the menu."""
    columns: dict[int, list[str]] = {}
    for name in MENU:
        columns.setdefault(depth(name), []).append(name)
    pitch = BOX[1] + GAP
    height = max(map(len, columns.values())) * pitch
    return {
        name: (column * COLUMN, place * height / len(names) + (height / len(names) - pitch) / 2)
        for column, names in columns.items()
        for place, name in enumerate(names)
    }


class ChapterMap(SphinxDirective):
    """``{chapter-map}``: the chapters and what each of them builds upon, as a drawing with links."""

    def run(self) -> list[nodes.Node]:
        """Makes the nodes; called by docutils."""
        if self.env.app.builder.format != "html":
            return []
        addresses = {
            name: self.env.app.builder.get_relative_uri(self.env.docname, f"{NOTEBOOKS}/{name}") for name in MENU
        }
        return [nodes.raw("", draw(addresses), format="html")]


def draw(addresses: dict[str, str]) -> str:
    """The map as HTML; ``addresses``: where the page of each chapter is."""
    at = places()
    wide = max(x for x, _ in at.values()) + BOX[0] + 4
    high = max(y for _, y in at.values()) + BOX[1] + 4
    lines = [
        '<figure class="chapter-map">',
        f'<svg viewBox="-2 -2 {wide:g} {high:g}" role="group" aria-label="Map of the chapters" font-size="15">',
        f'<rect x="-2" y="-2" width="{wide:g}" height="{high:g}" fill="#ffffff"/>',
        *(f'<path class="need" d="{curve}" fill="none" stroke="#1b3a57" stroke-width="2"/>' for curve in _curves(at)),
    ]
    for name, (x, y) in at.items():
        middle = f'x="{x + BOX[0] / 2:g}" y="{y + BOX[1] / 2 + 5:g}" text-anchor="middle" fill="#1b3a57"'
        rim = 'rx="8" fill="#e8f1f8" stroke="#0072b2" stroke-width="2"'
        lines.append(
            f'<a href="{addresses[name]}"><rect x="{x:g}" y="{y:g}" width="{BOX[0]}" height="{BOX[1]}" {rim}/>'
            f"<text {middle}>{html.escape(MENU[name].title)}</text></a>"
        )
    return "\n".join(
        [*lines, "</svg>", "<figcaption>An arrow leads from a chapter to those that use it.</figcaption></figure>"]
    )


def _curves(at: dict[str, tuple[float, float]]) -> Iterator[str]:
    """A path with a tip from the right side of each chapter that is needed to the left side of the one that needs it."""
    for name, entry in MENU.items():
        x, y = at[name][0], at[name][1] + BOX[1] / 2
        for need in entry.needs:
            left, level = at[need][0] + BOX[0], at[need][1] + BOX[1] / 2
            bend = (x - left) / 2
            yield (
                f"M{left:g} {level:g} C{left + bend:g} {level:g} {x - bend:g} {y:g} {x - 2:g} {y:g} m-8 -5 l8 5 l-8 5"
            )


def first_figure(notebook: Path) -> tuple[bytes, str]:
    """The first figure of an executed notebook as PNG, and the words that describe it.

    Raises: ``ValueError`` where the notebook has no figure.
    """
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                alt = cell["metadata"].get("mystnb", {}).get("image", {}).get("alt", "")
                return base64.b64decode("".join(output["data"]["image/png"])), alt
    raise ValueError(f"{notebook.name} has no figure to make a thumbnail of.")


def thumbnail(png: bytes) -> bytes:
    """A figure as a small PNG on white; fewer colours where it would be too large."""
    figure = Image.open(io.BytesIO(png)).convert("RGB")
    figure.thumbnail(THUMBNAIL, Image.Resampling.LANCZOS)
    sheet = Image.new("RGB", THUMBNAIL, "white")
    sheet.paste(figure, ((THUMBNAIL[0] - figure.width) // 2, (THUMBNAIL[1] - figure.height) // 2))
    for colours in (128, 64, 32, 16):
        small = io.BytesIO()
        sheet.quantize(colours).save(small, "PNG", optimize=True)
        if len(small.getvalue()) <= THUMBNAIL_BYTES:
            break
    return small.getvalue()


class ThumbnailRole(SphinxRole):
    """``{thumbnail}`` with a chapter's name: the chapter's first figure, small."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """Makes the nodes; called by docutils."""
        if self.text not in MENU:
            logger.warning("no chapter %s in the menu", self.text, location=self.get_location(), type="chapters")
            return [], []
        notebook = Path(self.env.srcdir) / NOTEBOOKS / f"{self.text}.ipynb"
        self.env.note_dependency(str(notebook))
        up = "../" * self.env.docname.count("/")
        alt = html.escape(first_figure(notebook)[1], quote=True)
        image = f'<img class="thumbnail" src="{up}_images/{_file(self.text)}" alt="{alt}" loading="lazy">'
        return [nodes.raw("", image, format="html")], []


def _file(name: str) -> str:
    return f"thumbnail-{name}.png"


def _write_thumbnails(app: Sphinx, error: Exception | None) -> None:
    if error is None and app.builder.format == "html":
        folder = Path(app.outdir) / "_images"
        folder.mkdir(exist_ok=True)
        for notebook in (Path(app.srcdir) / NOTEBOOKS).glob("*.ipynb"):
            if notebook.stem in MENU:
                (folder / _file(notebook.stem)).write_bytes(thumbnail(first_figure(notebook)[0]))


def setup(app: Sphinx) -> dict[str, bool]:
    """Sphinx calls this when it loads the extension."""
    app.add_role("needs", NeedsRole())
    app.add_role("thumbnail", ThumbnailRole())
    app.add_directive("chapter-map", ChapterMap)
    app.connect("build-finished", _write_thumbnails)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
