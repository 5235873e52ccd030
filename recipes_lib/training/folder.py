# SPDX-License-Identifier: Apache-2.0
"""A run's folder: what it was asked to do, how far it is, and who may write to it.

``config.yaml``, ``state.json`` (``running``, ``interrupted``, ``done`` or ``failed``, and the step), ``metrics.jsonl``,
``checkpoints/``, ``model.safetensors`` and ``report.json``. Only rank 0 writes.
"""

import contextlib
import fcntl
import json
import os
import platform
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import yaml
from rich.console import Console

from recipes_lib import durable
from recipes_lib.config import to_yaml
from recipes_lib.distributed.collectives import barrier, from_main, is_main
from recipes_lib.errors import Interrupted, RunError, UserError

Status = Literal["running", "interrupted", "done", "failed"]


def default_path(recipe: str) -> Path:
    """``runs/NAME-DATE`` in the working directory, a name that is not taken."""
    stem = f"{recipe}-{time.strftime('%Y%m%d-%H%M%S')}"
    path, number = Path("runs", stem), 2
    while path.exists():
        path, number = Path("runs", f"{stem}-{number}"), number + 1
    return path


class RunFolder:
    """A run folder; ``with`` keeps it locked against other processes, and marks the run if it ends by an error.

    A user's mistake that comes to light before training starts (labels that are missing, say) leaves no new folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self._lock: int | None = None
        self._made: list[Path] = []

    @classmethod
    def create_or_continue(cls, path: Path, recipe: str, config: Any) -> Self:
        """Makes the folder, or takes over an unfinished run of the same config, and locks it. All ranks call it.

        Raises: ``RunError`` on every rank where ``path`` is something else, is in use, is a finished run, or holds a
        run of another config; nothing in it is changed then.
        """
        folder = cls(path)
        from_main(lambda: folder._take(to_yaml(recipe, config)))
        return folder

    @classmethod
    def open(cls, path: Path) -> Self:
        """An existing run folder, to read from.

        Raises: ``RunError`` where ``path`` is none.
        """
        if not (path / "config.yaml").is_file():
            raise RunError(
                f"{path} is not a run folder: it has no config.yaml. Runs are in ./runs unless --out said else."
            )
        return cls(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if isinstance(error, UserError) and self._made and not (self.path / "metrics.jsonl").exists():
                self._take_back()
            elif is_main() and error is not None and self.state()["status"] == "running":
                stopped = isinstance(error, (KeyboardInterrupt, SystemExit, Interrupted))
                self.set_state("interrupted" if stopped else "failed", self.state()["step"])
        except RunError:
            pass  # a full disk is the likely reason for both; the first error is the one to tell
        finally:
            self.unlock()
        if isinstance(error, KeyboardInterrupt):
            raise Interrupted(f"Interrupted. Go on: recipes resume {self.path}") from None

    @property
    def config_text(self) -> str:
        """What ``config.yaml`` says."""
        return (self.path / "config.yaml").read_text(encoding="utf-8")

    def read_config(self) -> dict[str, Any]:
        """``config.yaml`` as values: ``recipe`` and the config's groups.

        Raises: ``RunError`` where it is no YAML mapping, or names no recipe.
        """
        try:
            values = yaml.safe_load(self.config_text)
        except (yaml.YAMLError, UnicodeDecodeError):
            values = None
        if not isinstance(values, dict) or not isinstance(values.get("recipe"), str):
            raise RunError(f"{self.path / 'config.yaml'} cannot be read. Start anew with another --out.")
        return values

    def state(self) -> dict[str, Any]:
        """``status`` (one of :data:`Status`) and ``step`` (optimiser steps that a checkpoint holds).

        Raises: ``RunError`` where ``state.json`` cannot be read.
        """
        path = self.path / "state.json"
        if not path.exists():  # killed before its first line, or removed to go on from the checkpoints
            return {"status": "interrupted", "step": 0}
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
            return {"status": state["status"], "step": state["step"]}
        except (ValueError, KeyError, TypeError):
            raise RunError(f"{path} cannot be read. Remove it: the run goes on from its last checkpoint.") from None

    def set_state(self, status: Status, step: int) -> None:
        """Notes how far the run is. Nothing is written on ranks above 0."""
        self._write("state.json", json.dumps({"status": status, "step": step}) + "\n")

    def write_report(self, report: dict[str, Any]) -> None:
        """Writes ``report.json``. Nothing is written on ranks above 0."""
        self._write("report.json", json.dumps(report, indent=2) + "\n")

    def read_report(self) -> dict[str, Any]:
        """What ``report.json`` says.

        Raises: ``RunError`` where the run has not reported yet.
        """
        path = self.path / "report.json"
        if not path.is_file():
            raise RunError(f"{self.path} has no report.json yet. Finish the run: recipes resume {self.path}")
        return json.loads(path.read_text(encoding="utf-8"))

    def warn(self, line: str) -> None:
        """Tells the user a line, on rank 0."""
        if is_main():
            Console(stderr=True).print(f"warning: {line}", markup=False, highlight=False, soft_wrap=True)

    def await_others(self) -> None:
        """Returns when all ranks have done their shares. Raises: ``RunError`` where one of them has ended before."""
        try:
            barrier()
        except RuntimeError:  # torch's DistError is one
            raise RunError(
                "Another process ended before its share was done, and has said why; what is complete is kept. Go on: "
                f"recipes resume {self.path}"
            ) from None

    def unlock(self) -> None:
        """Lets other processes train here again."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _take(self, text: str) -> None:
        """Rank 0's part of :meth:`create_or_continue`."""
        if self.path.exists() and not self.path.is_dir():
            raise RunError(f"{self.path} is a file. Choose another --out.")
        there = [path.name for path in self.path.iterdir()] if self.path.is_dir() else []
        ours = {"config.yaml", ".config.yaml.partial", ".lock"}  # what a process killed early may leave
        if "config.yaml" not in there and not ours.issuperset(there):
            raise RunError(f"{self.path} holds other files and is not a run folder. Choose another --out.")
        new = [] if self.path.exists() else [self.path]
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._take_lock()
        except OSError as error:
            raise RunError(f"{self.path} cannot be written: {error.strerror}. Choose another --out.") from error
        try:
            if (self.path / "config.yaml").is_file():
                self._refuse_other(yaml.safe_load(text))
            else:
                self._made = [self.path / ".lock", self.path / "state.json", self.path / "config.yaml", *new]
                self._write("config.yaml", text)
                self.set_state("running", 0)
        except RunError:
            self.unlock()
            raise

    def _take_back(self) -> None:
        """Removes what :meth:`_take` made."""
        for path in self._made:
            with contextlib.suppress(OSError):  # something else lies in the folder: it stays
                path.rmdir() if path == self.path else path.unlink()

    def _take_lock(self) -> None:
        """Holds ``.lock`` until the process ends, however it ends.

        POSIX locks, not ``flock``: loader workers inherit the latter through ``fork`` and outlive a killed parent by
        seconds, in which the run could not be resumed.
        """
        lock = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # the two that POSIX allows for a lock that is taken
            holder = os.pread(lock, 200, 0).decode(errors="replace").strip() or "another process"
            os.close(lock)
            raise RunError(f"{self.path} is in use by {holder}. Wait for it, or choose another --out.") from None
        except OSError:
            pass  # a file system without locks: they guard against a slip of the user, so go on
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"process {os.getpid()} on {platform.node()}".encode(), 0)
        self._lock = lock

    def _refuse_other(self, wanted: dict[str, Any]) -> None:
        state = self.state()
        if state["status"] == "done":
            raise RunError(f"{self.path} is finished: its {state['step']} steps are done. Choose another --out.")
        was, now = _dotted(self.read_config()), _dotted(wanted)
        for field in {**now, **was}:
            if was.get(field, "absent") != now.get(field, "absent"):
                raise RunError(
                    f"{self.path} was started with another config: {field} was {was.get(field, 'absent')} and is now "
                    f"{now.get(field, 'absent')}. Choose another --out, or go on as it was: recipes resume {self.path}"
                )

    def _write(self, name: str, text: str) -> None:
        if not is_main():
            return
        try:
            durable.write_text(self.path / name, text)
        except OSError as error:
            raise RunError(f"{self.path / name} could not be written: {error.strerror}.") from error


def _dotted(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested groups as one level: {"optim": {"lr": 1}} -> {"optim.lr": 1}."""
    flat = {}
    for key, value in values.items():
        flat |= _dotted(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
