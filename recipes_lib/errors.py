# SPDX-License-Identifier: Apache-2.0
"""The errors that a user can fix; each line names the field, the value, what is allowed, and what to do.

The command line prints a ``UserError`` without a traceback and exits with its ``exit_code``. Any other error is a fault
of this library and keeps its traceback.
"""

import difflib
import errno
import math
import signal
from collections.abc import Iterable

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""The signals that ask a run to stop, so that it can be resumed later: Ctrl-C, a scheduler's signal at the end of its
time, and earlier warnings of it (submitit's is SIGUSR2)."""


class UserError(Exception):
    """A mistake that the user can fix. Its text is one complete line per fault."""

    exit_code = 2


class ConfigError(UserError):
    """A config value that is not allowed."""


class DataError(UserError):
    """Data that is missing, damaged or of the wrong kind."""


class DamagedImage(DataError):
    """An image file that cannot be read. Unlike other errors, it may occur in only one process of a run."""


class RunError(UserError):
    """A run folder, a checkpoint or a weights file that cannot be used for what was asked."""


class LaunchError(RunError):
    """Wrong settings of this process's rank, world size or address; it may be the only process that notices."""


class Diverged(UserError):
    """Training stopped because a loss was not finite."""


class OutputClosed(UserError):
    """Standard output cannot be written: it is closed, or its disk is full."""


class Interrupted(UserError):
    """Training was asked to stop. Its last checkpoint is complete, and ``recipes resume`` continues from it."""

    exit_code = 3


LONGEST_LINE = 800
"""Length of the longest error line, in characters; a longer one, such as one with a long path, loses its middle."""


def printable(line: str) -> str:
    """``line`` for a terminal: escape sequences and lone surrogates are spelled out, and long lines shortened.

    >>> printable("a\\x1b[31mb")
    'a\\\\x1b[31mb'
    """
    shown = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in line)
    if len(shown) <= LONGEST_LINE:
        return shown
    half = (LONGEST_LINE - 5) // 2
    return f"{shown[:half]} ... {shown[-half:]}"


def path_fault(error: Exception) -> str | None:
    """The error line for a path that no file can have, if ``error`` is about one; else None.

    Any path argument may be such a name, so the check is made here and not for each argument.
    """
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        named = error.filename or error.filename2 or ""
        return f"{named} is too long for a file's name: use at most 255 bytes per part and 4,096 in all."
    if isinstance(error, UnicodeEncodeError) and error.reason.startswith("surrogates"):
        return f"{error.object} is not text that a file's name can have: a character of it is half a surrogate pair."
    if isinstance(error, ValueError) and "embedded null" in str(error):
        return "A file's name holds a null character, which no file can have. Remove it from the path."
    return None


def nearest(name: str, options: Iterable[str]) -> str:
    """A sentence that names the nearest valid option, if one is similar, and all options.

    >>> nearest("toi", ["toy", "laptop"])
    "Did you mean 'toy'? There are: toy, laptop."
    """
    options = list(options)
    close = difflib.get_close_matches(name, options, n=1, cutoff=0.5)
    guess = f"Did you mean {close[0]!r}? " if close else ""
    return f"{guess}There are: {', '.join(options)}."


class Faults:
    """Collects the faults of a config, so that a user reads all of them at once.

    >>> faults = Faults()
    >>> faults.need(0.5 < 0, "loss.temperature", 0.5, "above 0", "The paper uses 0.1.")
    >>> faults.raise_any()
    Traceback (most recent call last):
    ...
    recipes_lib.errors.ConfigError: loss.temperature = 0.5 is not allowed: use a value above 0. The paper uses 0.1.
    """

    def __init__(self) -> None:
        self.lines: list[str] = []

    def need(
        self, condition: bool, field: str, value: object, allowed: str, hint: str = "", *, most: int = 2**31 - 1
    ) -> None:
        """Adds a fault of ``field`` unless ``condition`` holds. ``allowed`` completes "use a value ...".

        An infinite value is a fault in every field, and so is an integer beyond ``most``: no size or count is so large,
        and later arithmetic would overflow.
        """
        parts = value if isinstance(value, tuple) else (value,)
        if any(part in (math.inf, -math.inf) for part in parts):
            self.lines.append(f"{field} = {value} is not allowed: use a finite value {allowed}. {hint}".rstrip())
        elif any(isinstance(part, int) and abs(part) > most for part in parts):
            self.lines.append(
                f"{field} = {value} is not allowed: use a value {allowed}, at most {most:,}. {hint}".rstrip()
            )
        elif not condition:
            self.lines.append(f"{field} = {value} is not allowed: use a value {allowed}. {hint}".rstrip())

    def add(self, line: str) -> None:
        """Adds a fault as a complete line."""
        self.lines.append(line)

    def raise_any(self) -> None:
        """Raises one ``ConfigError`` with one line per fault; does nothing if there is no fault."""
        if self.lines:
            raise ConfigError("\n".join(self.lines))
