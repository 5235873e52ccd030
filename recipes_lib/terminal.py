# SPDX-License-Identifier: Apache-2.0
"""Writes progress and warnings to standard error; a run continues if standard error cannot be written any more.

A closed terminal, a pipe whose reader has ended, or a full disk under ``2>FILE`` must not end a run.
"""

import io
import os
import sys
from typing import TextIO

from rich.console import Console
from rich.file_proxy import FileProxy


def aside(*, quiet: bool = False) -> Console:
    """The console for progress and warnings: it writes to standard error and does not interpret mark-up."""
    return Console(file=_Stderr(), quiet=quiet, markup=False)


def _stderr() -> TextIO | None:
    """The current ``sys.stderr``; None if it was closed before Python started.

    While a progress bar is shown, rich replaces ``sys.stderr`` by a proxy that writes to the bar's console. That
    console is one of ours, so it must bypass the proxy, or the two would call each other for ever.
    """
    return sys.stderr.rich_proxied_file if isinstance(sys.stderr, FileProxy) else sys.stderr


class _Stderr(io.TextIOBase):
    """A stream to :func:`_stderr` that drops everything after the first error."""

    @property
    def encoding(self) -> str:  # rich chooses the characters of its bars by the encoding
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
    """Writes a line to standard error, unchanged."""
    place = _Stderr()
    place.write(line + "\n")
    place.flush()


def _give_up() -> None:
    """Redirects standard error of this process to the null device.

    This is done at the level of the system, for two reasons: at its end Python tries again to write what it could not,
    and would fail with exit code 120; and threads and libraries write to standard error too.
    """
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, _stderr().fileno())
        os.close(nowhere)
    except (OSError, ValueError):
        sys.stderr = None  # a stream without a file descriptor, as in a notebook or a test
