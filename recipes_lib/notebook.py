# SPDX-License-Identifier: Apache-2.0
"""The first line of every chapter: what runs here, how long it takes, and settings that make its figures repeatable."""

import html
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from recipes_lib import __version__
from recipes_lib.config import to_dict

DOTS_PER_INCH = 110  # sharp on a page, and a figure stays within its 60 KB


def start(chapter: str, seconds: int, threads: int = 1) -> None:
    """Sets torch's threads and the figures' resolution, and shows versions, device and expected time.

    ``seconds`` is what the chapter takes on one core of a common machine; ``threads`` what it may use, since one
    thread gives the same bits every time. Raises: ``ValueError`` unless both are at least 1.
    """
    if seconds < 1 or threads < 1:
        raise ValueError(f"seconds = {seconds} and threads = {threads} must both be at least 1.")
    import matplotlib
    import torch

    torch.set_num_threads(threads)
    matplotlib.rcParams.update({"figure.dpi": DOTS_PER_INCH, "figure.facecolor": "white", "savefig.facecolor": "white"})
    facts = {
        "chapter": chapter,
        "takes": f"about {seconds} s on {threads} CPU core{'s' if threads > 1 else ''}",
        "device": _device(),
        "versions": f"recipes {__version__}, torch {torch.__version__}, Python {platform.python_version()}",
        "where": "Colab" if "google.colab" in sys.modules else f"{platform.system()}, {os.cpu_count()} cores",
    }
    _show(facts)


def settings(columns: Mapping[str, Any], fields: Mapping[str, Sequence[str]]) -> str:
    """A table as text: a row for each of a config's ``fields`` (group -> names), a column for each named config."""
    plain = {title: to_dict(config) for title, config in columns.items()}
    rows = [["setting", *plain]]
    for group, names in fields.items():
        rows += [[f"{group}.{name}", *(str(values[group][name]) for values in plain.values())] for name in names]
    widths = [max(map(len, column)) + 2 for column in zip(*rows, strict=True)]
    lines = (row[0].ljust(widths[0]) + "".join(map(str.rjust, row[1:], widths[1:])) for row in rows)
    return "\n".join(lines)


def _device() -> str:
    import torch

    if torch.cuda.is_available():
        return f"CPU; {torch.cuda.get_device_name()} is idle, since toy runs are too small for it"
    return "CPU, which is enough for this chapter"


def _show(facts: dict[str, str]) -> None:
    """One line of text, or in a browser a small table whose first column is its head."""
    from IPython.display import display

    rows = "".join(f"<tr><th scope='row'>{name}</th><td>{html.escape(fact)}</td></tr>" for name, fact in facts.items())
    line = " | ".join(f"{name}: {fact}" for name, fact in facts.items())
    display({"text/plain": line, "text/html": f"<table>{rows}</table>"}, raw=True)
