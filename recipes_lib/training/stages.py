# SPDX-License-Identifier: Apache-2.0
"""Stages: the work of a run that trains no backbone, done in parts so that it goes on after a stop.

Training has checkpoints (:mod:`recipes_lib.training.loop`). A stage has parts instead: a shard's scores, a batch's answers, a
network's weights. Each part is written whole or not at all (:mod:`recipes_lib.durable`), and a run that goes on skips the parts
that are there. What all stages share is here:

- :func:`start` joins the processes of the run;
- :func:`keep` makes sure that the run folder stays once a part is in it;
- :class:`Stage` writes a JSON line for each part into ``metrics.jsonl`` and shows how far the stage is;
- :func:`finished` tells whether a stage with a folder of its own, such as the training of a captioner, is done;
- :func:`tell_how_to_go_on` is what an interrupted user reads.
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

_PATIENCE = timedelta(days=2)  # parts take processes unequally long, and the first to finish waits for the last


def start(device: Literal["auto", "cpu", "cuda"], threads: int | None) -> world.World:
    """Joins the processes of a run whose parts are shared out among them. ``threads``: of torch; ``None``: its own choice.

    Raises: ``LaunchError`` as :func:`recipes_lib.distributed.world.start`.
    """
    if threads:
        torch.set_num_threads(threads)
    return world.start(device, patience=_PATIENCE)


def keep(run: RunFolder) -> None:
    """Creates ``metrics.jsonl``, so that ``RunFolder`` does not delete the folder when an error ends the run.

    To be called just before the first part is written; any rank may call it.
    """
    durable.append(run.path / "metrics.jsonl").close()


class Stage:
    """A stage at work: JSON lines in ``metrics.jsonl``; a bar on a terminal, elsewhere one line at the end.

    ``name`` and ``total`` parts, which are called ``unit``: "net plain: 120 steps, 3 s, loss 0.41". Nothing is written or
    shown on ranks above 0, and no line is shown of a stage that had nothing left to do.
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
        """Since the stage began, or went on."""
        return time.perf_counter() - self._began

    def show(self, done: int, more: str = "") -> None:
        """``done`` of all parts are complete; ``more`` is shown beside that number."""
        self._done, self._more = done, f", {more}" if more else ""
        self._bar.update(self._task, completed=done, more=self._unit + self._more)

    def note(self, line: dict[str, Any]) -> None:
        """Appends a line to ``metrics.jsonl``, flushed when this returns."""
        if collectives.is_main():
            with durable.append(self._path) as file:
                file.write(json.dumps(line) + "\n")


def finished(folder: Path, recipe: str, config: Any) -> bool:
    """Whether a stage's own ``folder`` is a finished run of ``config``, to be read and not done again.

    Raises: ``RunError`` where the folder's files cannot be read.
    """
    return (folder / "config.yaml").is_file() and RunFolder.open(folder).holds(recipe, config)


@contextmanager
def tell_how_to_go_on(what: str, command: str) -> Iterator[None]:
    """Has the stage's ``Interrupted`` say ``what`` was stopped and is kept, and the ``command`` that goes on with it."""
    try:
        yield
    except Interrupted:
        raise Interrupted(f"{what} Go on: {command}") from None
