# SPDX-License-Identifier: Apache-2.0
"""Pages of results: one self-contained HTML file with tables and figures, without scripts, for light and dark screens."""

import base64
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from recipes_lib import durable, plots
from recipes_lib.errors import printable
from recipes_lib.evaluation.csv_tables import Rows, as_csv
from recipes_lib.factors import inference

MOST_ROWS = 50
"""Largest number of rows in a page's tables; CSV files have all."""
MOST_ARMS = len(plots.PALETTE)
"""Largest number of models that are drawn separately, by colour and marker; for more models, their spread is drawn."""
LONGEST_NAME = 60
"""Largest number of characters of a name in a figure; a longer name loses its middle."""

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
figure { margin: 1.5rem 0; } figure img { max-width: 100%; height: auto; background: white; }
figcaption, .aside { font-size: .9rem; opacity: .8; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid color-mix(in srgb, currentColor 25%, transparent); }
th:first-child, td:first-child, .words :is(th, td):last-child { text-align: left; }
"""


@dataclass(frozen=True)
class Picture:
    """A figure of a page, as a PNG file, with its alternative text and its caption."""

    name: str
    """Name of its file, without the suffix."""
    png: bytes
    alt: str
    caption: str


def picture(name: str, figure: Figure, alt: str, caption: str) -> Picture:
    """Draws ``figure`` as a PNG file, the same bytes at every call."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=plots.STYLE["figure.dpi"], metadata={"Software": None})
    return Picture(name, file.getvalue(), alt, caption)


def shown(name: str) -> str:
    """A user's name prepared for a figure: not read as a formula, not left out of the legend, and not too long."""
    text = printable(name)
    text = text if len(text) <= LONGEST_NAME else f"{text[: LONGEST_NAME // 2]}...{text[-LONGEST_NAME // 2 :]}"
    hidden = " " if text.startswith("_") else ""  # matplotlib's legends leave such labels out
    return hidden + text.replace("$", r"\$")


def intervals(
    ax: Axes, models: Sequence[str], values: np.ndarray, low: np.ndarray, high: np.ndarray, *, none: float
) -> Axes:
    """Draws a value with its interval for each row and model, one marker per model; for many models, their spread.

    Shapes: ``values``, ``low`` and ``high`` float64 [models, rows]; row 0 is at the bottom. ``none`` is the value that
    stands for no effect, marked by a line.
    """
    heights = np.arange(values.shape[1])
    if len(models) <= MOST_ARMS:
        offsets = np.linspace(-0.3, 0.3, len(models)) if len(models) > 1 else [0.0]
        for place, (model, offset) in enumerate(zip(models, offsets, strict=True)):
            look = plots.style(place)
            ax.hlines(heights + offset, low[place], high[place], color=look["color"], linewidth=1)
            ax.plot(values[place], heights + offset, linestyle="none", **look, markersize=4, label=shown(model))
        if len(models) > 1:
            ax.legend(loc="lower right")  # this corner is free if values decrease from top to bottom
    else:
        spread, look = inference.spread(values), plots.style(0)
        ax.hlines(heights, spread["min"], spread["max"], color=look["color"], linewidth=1, label="all models")
        ax.hlines(heights, spread["q1"], spread["q3"], color=look["color"], linewidth=5, alpha=0.5, label="middle half")
        ax.plot(spread["median"], heights, linestyle="none", **look, markersize=4, label="median")
        ax.legend()
    ax.axvline(none, color=plots.BASELINE, linestyle="--", linewidth=1.2, zorder=0)
    return ax


def named_rows(ax: Axes, names: Sequence[str], *, xlabel: str) -> Axes:
    """Names the rows of a figure, the first one at the bottom, on an opaque white ground."""
    ax.figure.set_facecolor("white")
    ax.set_facecolor("white")
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(-0.7, len(names) - 0.3)
    ax.set_xlabel(xlabel)
    return ax


def by_row(rows: int) -> tuple[Figure, Axes]:
    """A figure with room for ``rows`` named rows."""
    figure = Figure(figsize=(plots.WIDTH, 1.4 + 0.34 * rows), layout="constrained")
    return figure, figure.add_subplot()


def document(title: str, parts: Iterable[str]) -> str:
    """The page as HTML; ``parts`` are the HTML of its body."""
    head = "<meta charset='utf-8'><meta name='viewport' content='width=device-width, initial-scale=1'>"
    head += f"<title>{html.escape(title)}</title><style>{STYLE}</style>"
    return f"<!doctype html>\n<html lang='en'><head>{head}</head>\n<body>\n" + "\n".join(parts) + "\n</body></html>\n"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, words: bool = False) -> str:
    """A table in HTML. ``words``: the last column is text, not numbers."""
    more = f"<p class='aside'>The first {MOST_ROWS} of {len(rows):,}.</p>" if len(rows) > MOST_ROWS else ""
    head = "".join(f"<th scope='col'>{html.escape(name)}</th>" for name in header)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(value)}</td>" for value in row) + "</tr>" for row in rows[:MOST_ROWS]
    )
    look = " class='words'" if words else ""
    return f"{more}<div class='wide'><table{look}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def figure(shown: Picture) -> str:
    """A figure in HTML, with the image inside."""
    source = f"data:image/png;base64,{base64.b64encode(shown.png).decode()}"
    image = f"<img src='{source}' alt='{html.escape(shown.alt, quote=True)}'>"
    return f"<figure>{image}<figcaption>{html.escape(shown.caption)}</figcaption></figure>"


def figured(value: float | None, digits: int = 4) -> str:
    """A number in a table; a dash if there is none."""
    return "-" if value is None else f"{value:.{digits}f}"


def write(out: Path, text: str, tables: Mapping[str, Rows], pictures: Sequence[Picture]) -> Path:
    """Writes CSV tables, ``plots/`` and ``index.html`` into the folder ``out``; returns the page."""
    for name, rows in tables.items():
        durable.write_text(out / f"{name}.csv", as_csv(rows))
    (out / "plots").mkdir(exist_ok=True)
    for one in pictures:
        with durable.whole(out / "plots" / f"{one.name}.png") as partial:
            partial.write_bytes(one.png)
    durable.write_text(out / "index.html", text)
    return out / "index.html"
