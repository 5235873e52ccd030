# SPDX-License-Identifier: Apache-2.0
"""A run's folder: what it was asked to do, how far it is, and who may write to it.

``config.yaml``, ``state.json`` (``running``, ``interrupted``, ``done`` or ``failed``, and the step), ``data.json`` (which
images it learns from), ``metrics.jsonl``, ``warnings.txt``, ``checkpoints/``, ``model.safetensors`` and ``report.json``.
Only rank 0 writes, and nothing is written through a link.
"""

import contextlib
import fcntl
import json
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, get_args

import yaml

from recipes_lib import durable, terminal
from recipes_lib.config import dotted, from_dict, refuse_unordered, to_dict, to_yaml
from recipes_lib.distributed.collectives import barrier, from_main, gather_objects, is_main, left_alone
from recipes_lib.errors import ConfigError, Interrupted, RunError, UserError, printable

Status = Literal["running", "interrupted", "done", "failed"]

_STATUSES = get_args(Status)
_FILES: tuple[str, ...] = ("config.yaml", "state.json", "data.json", "metrics.jsonl", "warnings.txt")
_FILES += ("model.safetensors", "report.json", ".lock")
_FREE = ("data.on_damage", "train.timeout")
"""Fields that may change from one start of a run to the next: they say how it is watched, not what is trained."""


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
        self._taken = False
        self._made: list[Path] = []

    @classmethod
    def create_or_continue(cls, path: Path, recipe: str, config: Any) -> Self:
        """Makes the folder, or takes over an unfinished run of the same config, and locks it. All ranks call it.

        A field that ``config.yaml`` lacks, of an older version, counts as one of its default.

        Raises: ``RunError`` on every rank where ``path`` is something else, is in use, is a finished run, or holds a
        run of another config; or where the ranks' configs differ. Nothing in it is changed then.
        """
        refuse_unordered(config)
        _refuse_unlike(to_yaml(recipe, config))
        folder = cls(path)
        from_main(lambda: folder._take(recipe, config))
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
            if self._gone():
                pass
            elif isinstance(error, UserError) and self._made and not (self.path / "metrics.jsonl").exists():
                self._take_back()
            elif is_main() and error is not None and self.state()["status"] == "running":
                stopped = isinstance(error, (KeyboardInterrupt, SystemExit, Interrupted)) or left_alone(error)
                self.set_state("interrupted" if stopped else "failed")
        except RunError:
            pass  # a full disk is the likely reason for both; the first error is the one to tell
        finally:
            self.unlock()
        if isinstance(error, KeyboardInterrupt):
            raise Interrupted(f"Interrupted. Go on: recipes resume {self.path}") from None
        if left_alone(error):
            raise Interrupted(
                f"Another process of this run has ended, or does not answer ({str(error).strip().splitlines()[0]}). "
                f"Go on: recipes resume {self.path}"
            ) from None

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
        except (yaml.YAMLError, ValueError, RecursionError):  # ValueError: bytes that are no text, impossible dates
            values = None
        if not isinstance(values, dict) or not isinstance(values.get("recipe"), str):
            raise RunError(f"{self.path / 'config.yaml'} cannot be read. Start anew with another --out.")
        return values

    def state(self) -> dict[str, Any]:
        """``status`` (one of :data:`Status`) and ``step`` (optimiser steps that a checkpoint holds).

        A folder that has a report and no ``state.json``, as those that are shown as cooked earlier, is a finished run.

        Raises: ``RunError`` where ``state.json`` cannot be read.
        """
        path = self.path / "state.json"
        if not path.exists():
            if (self.path / "report.json").is_file():
                return {"status": "done", "step": self.read_report().get("steps", 0)}
            return {"status": "interrupted", "step": 0}  # killed before its first line, or removed to go on
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
            status, step = state["status"], state["step"]
            if status not in _STATUSES or type(step) is not int or step < 0:
                raise ValueError
        except (ValueError, KeyError, TypeError, RecursionError):
            raise RunError(f"{path} cannot be read. Remove it: the run goes on from its last checkpoint.") from None
        return {"status": status, "step": step}

    def refuse_lost(self) -> None:
        """To be called where no checkpoint is there to go on from.

        Raises: ``RunError`` where there was one, or where work is there that a start from step 0 would overwrite.
        """
        step, metrics = self.state()["step"], self.path / "metrics.jsonl"
        without_state = not (self.path / "state.json").exists()
        if step:
            fault = f"state.json says that step {step} is kept, and {self.checkpoints} holds no checkpoint"
        elif (self.path / "model.safetensors").exists():
            fault = "it holds trained weights and no checkpoint"
        elif without_state and metrics.is_file() and metrics.stat().st_size:
            fault = "it holds metrics of earlier steps, but neither state.json nor a checkpoint"
        else:
            return
        raise RunError(
            f"{self.path} cannot go on: {fault}. Put the checkpoints back, or start anew with another --out; "
            "nothing here is overwritten."
        )

    def set_state(self, status: Status, step: int | None = None) -> None:
        """Notes how far the run is; without a ``step``, as far as it was. Nothing is written on ranks above 0."""
        if is_main() and step is None:
            step = self.state()["step"]
        self._write("state.json", json.dumps({"status": status, "step": step}) + "\n")

    def write_report(self, report: dict[str, Any]) -> None:
        """Writes ``report.json``, with the run's warnings. Nothing is written on ranks above 0."""
        if is_main() and (lines := self.warnings()):
            report = {**report, "warnings": lines}
        self._write("report.json", json.dumps(report, indent=2) + "\n")

    def read_report(self) -> dict[str, Any]:
        """What ``report.json`` says.

        Raises: ``RunError`` where the run has not reported yet, or where the file cannot be read.
        """
        path = self.path / "report.json"
        if not path.is_file():
            if (self.path / "state.json").exists() and self.state()["status"] == "done":
                raise RunError(f"{path} is gone. Score the weights again: recipes evaluate {self.path}")
            raise RunError(f"{self.path} has no report.json yet. Finish the run: recipes resume {self.path}")
        return self._read_json(path, "Score the weights again: recipes evaluate " + str(self.path))

    def write_data(self, record: dict[str, Any]) -> None:
        """Writes ``data.json``: which images the run learns from. Nothing is written on ranks above 0."""
        self._write("data.json", json.dumps(record) + "\n")

    def read_data(self) -> dict[str, Any] | None:
        """What ``data.json`` says; None in the folder of a version that wrote none."""
        path = self.path / "data.json"
        if not path.is_file():
            return None
        return self._read_json(path, "Remove it to go on with the images that are there now.")

    def warn(self, line: str) -> None:
        """Tells the user a line, on rank 0, and keeps it in ``warnings.txt`` where this process holds the run."""
        if not is_main():
            return
        line = " ".join(line.splitlines())
        terminal.aside().print(f"warning: {printable(line)}", markup=False, highlight=False, soft_wrap=True)
        if self._lock is not None and line not in self.warnings():
            # a disk that is full is told of by the next checkpoint
            with contextlib.suppress(OSError), durable.append(self.path / "warnings.txt") as file:
                file.write(f"{line}\n")

    def warnings(self) -> list[str]:
        """The lines that :meth:`warn` kept, each once."""
        path = self.path / "warnings.txt"
        return path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []

    def require_whole(self) -> None:
        """Raises ``RunError`` where the folder was removed, or another was put in its place, since it was locked."""
        if self._gone():
            raise RunError(
                f"{self.path} was removed or replaced while the run was at work, and with it all that the run had "
                "kept. Nothing is written there any more. Start anew with another --out."
            )

    def stop_without_main(self) -> None:
        """Notes, on any rank, that the run was interrupted: rank 0 may be the one that does not answer."""
        state = self.state()
        if state["status"] == "running":
            durable.write_text(self.path / "state.json", json.dumps({**state, "status": "interrupted"}) + "\n")

    def holds(self, recipe: str, config: Any) -> bool:
        """Whether the run is finished, and of this config."""
        return self.state()["status"] == "done" and not self.differing(recipe, config)

    def differing(self, recipe: str, config: Any) -> list[str]:
        """The fields that make this a run of another config."""
        return [field for field, _, _ in self._differences(recipe, config) if field not in _FREE]

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

    def _take(self, recipe: str, config: Any) -> None:
        """Rank 0's part of :meth:`create_or_continue`."""
        if self.path.exists() and not self.path.is_dir():
            raise RunError(f"{self.path} is {durable.kind(self.path)}. Choose another --out.")
        there = [path.name for path in self.path.iterdir()] if self.path.is_dir() else []
        ours = {"config.yaml", ".config.yaml.partial", ".lock"}  # what a process killed early may leave
        if "config.yaml" not in there and not ours.issuperset(there):
            raise RunError(f"{self.path} holds other files and is not a run folder. Choose another --out.")
        self._refuse_foreign(there)
        new = [] if self.path.exists() else [self.path]
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._take_lock()
        except OSError as error:
            raise RunError(f"{self.path} cannot be written: {error.strerror}. Choose another --out.") from error
        try:
            if "config.yaml" in there:
                self._refuse_other(recipe, config)
            else:
                made = (".lock", "state.json", "data.json", "warnings.txt", "config.yaml")
                self._made = [*(self.path / name for name in made), *new]
                self._write("config.yaml", to_yaml(recipe, config))
                self.set_state("running", 0)
            self._taken = True
        except RunError:
            self.unlock()
            raise

    def _refuse_foreign(self, names: list[str]) -> None:
        """Raises ``RunError`` where a link, a pipe or a device has a name that the run writes to."""
        for name in names:
            path = self.path / name
            of_ours = name in _FILES or (name.startswith(".") and name.endswith(".partial"))
            if of_ours and (found := durable.kind(path)) != "a file":
                raise RunError(f"{path} is {found}, and a run writes a file there. Remove it, or choose another --out.")
            if name == "checkpoints" and not path.is_dir():
                what = "a link to nothing" if path.is_symlink() else durable.kind(path)
                raise RunError(f"{path} is {what}, and a run keeps a folder there. Put the folder back.")

    def _gone(self) -> bool:
        """Whether the folder that was locked is no longer the one at this path."""
        if self._lock is None or not self._taken:
            return False
        try:
            replaced = not os.path.samestat(os.stat(self.path / ".lock"), os.fstat(self._lock))
        except (FileNotFoundError, NotADirectoryError):
            replaced = False  # the lock alone may have been removed
        return replaced or not (self.path / "config.yaml").exists()

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
        lock = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
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

    def _refuse_other(self, recipe: str, config: Any) -> None:
        """Raises ``RunError`` where this is not an unfinished run of ``config``; writes the fields that may change."""
        state = self.state()
        if state["status"] == "done":
            raise RunError(f"{self.path} is finished: its {state['step']} steps are done. Choose another --out.")
        differences = list(self._differences(recipe, config))
        for field, was, now in differences:
            if field not in _FREE:
                raise RunError(
                    f"{self.path} was started with another config: {field} was {was} and is now {now}. "
                    f"Choose another --out, or go on as it was: recipes resume {self.path}"
                )
        if differences:
            self._write("config.yaml", to_yaml(recipe, config))

    def _differences(self, recipe: str, config: Any) -> Iterator[tuple[str, Any, Any]]:
        """Each field in which the run's config is another than ``config``: its name, the run's value and the other."""
        values = self.read_config()
        was = values.pop("recipe")
        if was != recipe:
            yield "recipe", was, recipe
            return
        try:
            before = dotted(to_dict(from_dict(type(config), values)))
        except ConfigError as error:
            raise RunError(f"{self.path / 'config.yaml'}: {error}") from None
        now = dotted(to_dict(config))
        for field in {**now, **before}:
            pair = before.get(field, "absent"), now.get(field, "absent")
            if pair[0] != pair[1]:
                yield field, *pair

    def _read_json(self, path: Path, advice: str) -> dict[str, Any]:
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError):
            values = None
        if not isinstance(values, dict):
            raise RunError(f"{path} cannot be read. {advice}")
        return values

    def _write(self, name: str, text: str) -> None:
        if not is_main():
            return
        self.require_whole()
        try:
            durable.write_text(self.path / name, text)
        except OSError as error:
            raise RunError(f"{self.path / name} could not be written: {error.strerror}.") from error


def _refuse_unlike(text: str) -> None:
    """Raises ``RunError`` on every rank where the ranks' configs differ: they would train on, wrongly, or wait for ever."""
    first, *others = gather_objects(text)
    for rank, other in enumerate(others, start=1):
        if other != first:
            here, there = (dotted(yaml.safe_load(part)) for part in (first, other))
            fields = (name for name in {**here, **there} if here.get(name, "absent") != there.get(name, "absent"))
            field = next(fields)
            raise RunError(
                f"The processes were started with different configs: {field} is {here.get(field, 'absent')} in process 0 "
                f"and {there.get(field, 'absent')} in process {rank}. Start all of them with the same command."
            )
