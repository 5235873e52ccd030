# SPDX-License-Identifier: Apache-2.0
"""Stages: the work of a run that trains no backbone, done in parts so that the run can be resumed.

Training has checkpoints (:mod:`recipes_lib.training.loop`). A stage has parts instead: the scores of a shard, the
answers for a batch, the weights of a network. Each part is written completely or not at all
(:mod:`recipes_lib.durable`), and a resumed run skips the parts that are there. This module has the functions that all
stages share:

- :func:`start` joins the processes of the run;
- :func:`keep` makes sure that the run folder stays once it has a part;
- :class:`Stage` writes a JSON line per part into ``metrics.jsonl`` and shows the progress of the stage;
- :func:`finished` says whether a stage with its own folder, such as the training of a captioner, is done;
- :func:`tell_how_to_go_on` adds to ``Interrupted`` the command that resumes the run.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from recipes_lib import durable, terminal
from recipes_lib.distributed import collectives, world
from recipes_lib.errors import Interrupted
from recipes_lib.training.folder import RunFolder

_PATIENCE = timedelta(days=2)  # processes take different times for their parts, and the first waits for the last


def start(device: Literal["auto", "cpu", "cuda"], threads: int | None) -> world.World:
    """Joins the processes of a run, among which the parts are divided.

    ``threads``: number of CPU threads of torch; ``None``: torch's own choice.

    Raises: ``LaunchError`` as :func:`recipes_lib.distributed.world.start`.
    """
    if threads:
        torch.set_num_threads(threads)
    return world.start(device, patience=_PATIENCE)


def keep(run: RunFolder) -> None:
    """Creates ``metrics.jsonl``, so that ``RunFolder`` does not delete the folder when an error ends the run.

    Call it just before the first part is written, on any rank.
    """
    durable.append(run.path / "metrics.jsonl").close()


class Stage:
    """A stage at work: writes JSON lines into ``metrics.jsonl``, and shows a bar in a terminal, or else one line.

    ``name`` is the stage's name, ``total`` its number of parts, and ``unit`` what a part is called; the line, shown at
    the end, is like "net plain: 120 steps, 3 s, loss 0.41". Only rank 0 writes and shows anything. A stage that had
    nothing left to do shows no line.
    """

    def __init__(self, run: RunFolder, name: str, total: int, unit: str) -> None:
        self._path = run.path / "metrics.jsonl"
        self._name, self._total, self._unit = name, total, unit
        self._done, self._more = 0, ""
        self._console = terminal.aside(quiet=not collectives.is_main())
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[more]}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )

    def __enter__(self) -> Self:
        self._began = time.perf_counter()
        self._bar.start()
        self._task = self._bar.add_task(self._name, total=self._total, more=self._unit)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        if error is None and self._done and not self._console.is_terminal:
            line = f"{self._name}: {self._done} {self._unit}, {self.seconds:.0f} s{self._more}"
            self._console.print(line, highlight=False, soft_wrap=True)

    @property
    def seconds(self) -> float:
        """Seconds since this start of the stage."""
        return time.perf_counter() - self._began

    def show(self, done: int, more: str = "") -> None:
        """Shows that ``done`` parts are complete, with the text ``more`` beside the number."""
        self._done, self._more = done, f", {more}" if more else ""
        self._bar.update(self._task, completed=done, more=self._unit + self._more)

    def note(self, line: dict[str, Any]) -> None:
        """Appends a line to ``metrics.jsonl`` and flushes it."""
        if collectives.is_main():
            with durable.append(self._path) as file:
                file.write(json.dumps(line) + "\n")


def finished(folder: Path, recipe: str, config: Any) -> bool:
    """Whether a stage's own ``folder`` is a finished run of ``config``, which does not have to be repeated.

    Raises: ``RunError`` if the folder's files cannot be read.
    """
    return (folder / "config.yaml").is_file() and RunFolder.open(folder).holds(recipe, config)


@contextmanager
def tell_how_to_go_on(what: str, command: str) -> Iterator[None]:
    """Replaces the text of ``Interrupted``: ``what`` was stopped and is kept, and the ``command`` that resumes it."""
    try:
        yield
    except Interrupted:
        raise Interrupted(f"{what} Go on: {command}") from None
