# SPDX-License-Identifier: Apache-2.0
"""Where the time of a run goes: a line in ``timing.jsonl`` for the steps up to each checkpoint.

It is a file of its own because ``metrics.jsonl`` depends on nothing but the config: a resumed run, or one on a slower
machine, writes the same there.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from recipes_lib import durable
from recipes_lib.distributed.collectives import is_main
from recipes_lib.training.log import disk_errors


class Timing:
    """Counts the seconds of the steps since the last line, and how many of them went into waiting or watching."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "timing.jsonl"
        self._restart()

    def _restart(self) -> None:
        self._began, self._steps = time.perf_counter(), 0
        self._spent = {"data": 0.0, "watch": 0.0}

    @contextmanager
    def of(self, what: Literal["data", "watch"]) -> Iterator[None]:
        """Counts the seconds inside the context: ``data`` waits for a batch, ``watch`` measures ``eval.watch``."""
        began = time.perf_counter()
        yield
        self._spent[what] += time.perf_counter() - began

    def step(self) -> None:
        """Counts a step."""
        self._steps += 1

    def write(self, step: int) -> None:
        """Writes the line of the steps up to ``step``, on rank 0, and starts counting anew.

        Raises: ``RunError`` if the disk is full.

        ``seconds`` are all seconds of these ``steps``; ``data_seconds`` and ``watch_seconds`` are parts of them.
        """
        parts = {f"{what}_seconds": round(seconds, 4) for what, seconds in self._spent.items()}
        line = {"step": step, "steps": self._steps, "seconds": round(time.perf_counter() - self._began, 4), **parts}
        if is_main():
            with disk_errors(self._path), durable.append(self._path) as file:
                file.write(json.dumps(line) + "\n")
        self._restart()
