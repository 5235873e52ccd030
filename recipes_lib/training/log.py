# SPDX-License-Identifier: Apache-2.0
"""The log of a run: one JSON line per step in ``metrics.jsonl``, and progress in the terminal."""

import contextlib
import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from recipes_lib import durable, terminal
from recipes_lib.distributed.collectives import is_main
from recipes_lib.errors import ConfigError, RunError
from recipes_lib.training.folder import RunFolder

_SILENCE = 300.0  # seconds between lines without a terminal, so that a cluster's log does not look dead


class RunLog:
    """Writes a run's metrics and shows its progress, on rank 0. Steps count from 0.

    At the start, lines of steps that will be repeated, and an incomplete last line, are removed.

    Raises: ``RunError`` if ``metrics.jsonl`` cannot be written; ``ConfigError`` if TensorBoard is asked for but not
    installed.
    """

    def __init__(self, folder: RunFolder, steps: int, start: int, *, tensorboard: bool = False) -> None:
        self._path = folder.path / "metrics.jsonl"
        self._board_path = folder.path / "tensorboard"
        self._steps, self._start, self._done = steps, start, start
        self._tensorboard = tensorboard
        self._loss = math.nan
        self._console = terminal.aside()

    def __enter__(self) -> Self:
        if is_main():
            self._board = _writer(self._board_path, self._start) if self._tensorboard else None
            with disk_errors(self._path):
                _truncate(self._path, self._start)
                self._file: IO[str] = durable.append(self._path)
            self._began = self._told = time.monotonic()
            self._bar = Progress(
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("steps, {task.fields[rate]:.1f}/s,"),
                TimeRemainingColumn(),
                TextColumn("left, loss {task.fields[loss]:.4f}"),
                console=self._console,
                disable=not self._console.is_terminal,
            )
            self._bar.start()
            self._task = self._bar.add_task("", total=self._steps, completed=self._start, rate=0.0, loss=math.nan)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not is_main():
            return
        self._bar.stop()
        with contextlib.suppress(OSError):  # `step` flushes each line, so it has raised the error of a full disk
            self._file.close()
            if self._board is not None:
                self._board.close()
        if not self._console.is_terminal and self._done > self._start:
            self._tell()

    def step(self, step: int, metrics: dict[str, float]) -> None:
        """Writes the metrics of a step, which include ``loss``. A metric that is not finite becomes ``null``."""
        if not is_main():
            return
        line = {"step": step, **{name: value if math.isfinite(value) else None for name, value in metrics.items()}}
        with disk_errors(self._path):
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
        if self._board is not None:
            with disk_errors(self._board_path):
                for name, value in metrics.items():
                    self._board.add_scalar(name, value, step)
        self._done, self._loss = step + 1, metrics["loss"]
        if self._console.is_terminal:
            self._bar.update(self._task, completed=self._done, rate=self._rate(), loss=self._loss)
        elif time.monotonic() - self._told > _SILENCE:
            self._tell()

    def _rate(self) -> float:
        return (self._done - self._start) / max(time.monotonic() - self._began, 1e-9)

    def _tell(self) -> None:
        """Prints one line of progress, where no terminal shows a bar."""
        self._told = time.monotonic()
        self._console.print(
            f"{self._done} of {self._steps} steps, {self._told - self._began:.0f} s, {self._rate():.1f} steps/s, "
            f"loss {self._loss:.4f}",
            highlight=False,
            soft_wrap=True,
        )


def _truncate(path: Path, start: int) -> None:
    """Removes all lines except the complete ones of steps before ``start``."""
    if not path.exists():
        return
    with (
        durable.whole(path) as partial,
        path.open(encoding="utf-8", errors="replace") as old,
        partial.open("w", encoding="utf-8") as new,
    ):
        new.writelines(line for line in old if _step_of(line) < start)


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"]) if line.endswith("\n") else math.inf
    except (ValueError, KeyError, TypeError):
        return math.inf


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Inside the context, an error of the disk becomes a ``RunError`` that names the file at ``path``."""
    try:
        yield
    except OSError as error:
        raise RunError(
            f"{path} could not be written: {error.strerror}. The run's checkpoints are as they were."
        ) from error


def _writer(path: Path, start: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ConfigError(
            "train.tensorboard needs TensorBoard, which is not installed: pip install 'ssl-cookbook[track]', or leave it off."
        ) from None
    return SummaryWriter(str(path), purge_step=start)
