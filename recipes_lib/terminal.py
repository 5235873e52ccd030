# SPDX-License-Identifier: Apache-2.0
"""Standard error, where progress and warnings go: a run goes on where it cannot be written any more.

A terminal that was closed, a pipe whose reader has ended or a full disk under ``2>FILE`` must not cost a run its work.
"""

import io
import os
import sys
from typing import TextIO

from rich.console import Console
from rich.file_proxy import FileProxy


def aside(*, quiet: bool = False) -> Console:
    """The console for progress and warnings, which are no results: standard error; text is shown as it is, without mark-up."""
    return Console(file=_Stderr(), quiet=quiet, markup=False)


def _stderr() -> TextIO | None:
    """``sys.stderr`` of the moment; none where it was closed before Python started.

    While a progress bar is shown, rich puts a proxy in its place that writes to the bar's console. That console is one of
    ours, so what it is given has to go past the proxy, or the two would call each other for ever.
    """
    return sys.stderr.rich_proxied_file if isinstance(sys.stderr, FileProxy) else sys.stderr


class _Stderr(io.TextIOBase):
    """:func:`_stderr`; from the first error on, what is written is dropped."""

    @property
    def encoding(self) -> str:  # what rich draws its bars with depends on it
        return getattr(_stderr(), "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        place = _stderr()
        return place is not None and place.isatty()

    def fileno(self) -> int:
        return _stderr().fileno()

    def write(self, text: str) -> int:
        if (place := _stderr()) is not None:
            try:
                return place.write(text)
            except (OSError, ValueError):
                _give_up()
        return len(text)

    def flush(self) -> None:
        if (place := _stderr()) is not None:
            try:
                place.flush()
            except (OSError, ValueError):
                _give_up()


def complain(line: str) -> None:
    """Writes a line to standard error, as it is."""
    place = _Stderr()
    place.write(line + "\n")
    place.flush()


def _give_up() -> None:
    """Sends what this process still writes to standard error nowhere.

    On the level of the system, since Python tries once more at its end to write what it could not, and fails with
    exit code 120; and since threads and libraries write there too.
    """
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, _stderr().fileno())
        os.close(nowhere)
    except (OSError, ValueError):
        sys.stderr = None  # a stand-in without a number: a notebook's, a test's
