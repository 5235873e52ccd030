# SPDX-License-Identifier: Apache-2.0
"""The folder of a run: its config, its state, its results, and a lock against other processes.

It holds ``config.yaml``, ``state.json`` (``running``, ``interrupted``, ``done`` or ``failed``, and the step),
``data.json`` (which images the run learns from), ``metrics.jsonl``, ``timing.jsonl`` (where the time went),
``warnings.txt``, ``checkpoints/``, ``model.safetensors`` and ``report.json``. Only rank 0 writes, and nothing is written through a symbolic link.
"""

import contextlib
import json
import os
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
_FILES: tuple[str, ...] = ("config.yaml", "state.json", "data.json", "metrics.jsonl", "timing.jsonl", "warnings.txt")
_FILES += ("model.safetensors", "report.json", ".lock")
_FREE = ("data.on_damage", "train.timeout")
"""Fields of the config that may change when a run is resumed: they change how it is supervised, not what it trains."""


def default_path(recipe: str) -> Path:
    """The path ``runs/NAME-DATE`` in the working directory; a number is appended if it exists."""
    stem = f"{recipe}-{time.strftime('%Y%m%d-%H%M%S')}"
    path, number = Path("runs", stem), 2
    while path.exists():
        path, number = Path("runs", f"{stem}-{number}"), number + 1
    return path


def finished(path: Path) -> dict[str, Any] | None:
    """The report of a finished run folder, or ``None`` if the run is not finished."""
    if not (path / "state.json").is_file():
        return None
    run = RunFolder.open(path)
    return run.read_report() if run.state()["status"] == "done" else None


class RunFolder:
    """A run folder. ``with`` keeps it locked against other processes, and sets the run's state if an error ends it.

    If a mistake of the user is found before training starts, such as missing labels, a new folder is removed again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self._lock: int | None = None
        self._taken = False
        self._made: list[Path] = []

    @classmethod
    def create_or_continue(cls, path: Path, recipe: str, config: Any) -> Self:
        """Makes the folder, or opens that of an unfinished run with the same config, and locks it. All ranks call it.

        A field that ``config.yaml`` lacks, because an older version wrote it, counts as having its default value.

        Raises: ``RunError`` on every rank if ``path`` is not a run folder, is in use, is a finished run, or has another
        config; or if the ranks' configs differ. The folder is not changed then.
        """
        refuse_unordered(config)
        _refuse_unlike(to_yaml(recipe, config))
        folder = cls(path)
        from_main(lambda: folder._take(recipe, config))
        return folder

    @classmethod
    def open(cls, path: Path) -> Self:
        """Opens an existing run folder for reading.

        Raises: ``RunError`` if ``path`` is not a run folder.
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
            pass  # probably a full disk, which caused the first error too; that one is raised
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
        """The text of ``config.yaml``."""
        return (self.path / "config.yaml").read_text(encoding="utf-8")

    def read_config(self) -> dict[str, Any]:
        """The values of ``config.yaml``: ``recipe`` and the config's groups.

        Raises: ``RunError`` if the file is no YAML mapping, or names no recipe.
        """
        try:
            values = yaml.safe_load(self.config_text)
        except (yaml.YAMLError, ValueError, RecursionError):  # ValueError: no UTF-8, or impossible dates
            values = None
        if not isinstance(values, dict) or not isinstance(values.get("recipe"), str):
            raise RunError(f"{self.path / 'config.yaml'} cannot be read. Start anew with another --out.")
        return values

    def state(self) -> dict[str, Any]:
        """The state of the run: ``status`` (one of :data:`Status`) and ``step`` (that of the last checkpoint).

        A folder with a report but no ``state.json``, as ``recipes cook`` stores it, counts as a finished run.

        Raises: ``RunError`` if ``state.json`` cannot be read.
        """
        path = self.path / "state.json"
        if not path.exists():
            if (self.path / "report.json").is_file():
                return {"status": "done", "step": self.read_report().get("steps", 0)}
            return {"status": "interrupted", "step": 0}  # killed before it wrote the file, or a user removed the file
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
            status, step = state["status"], state["step"]
            if status not in _STATUSES or type(step) is not int or step < 0:
                raise ValueError
        except (ValueError, KeyError, TypeError, RecursionError):
            raise RunError(f"{path} cannot be read. Remove it: the run goes on from its last checkpoint.") from None
        return {"status": status, "step": step}

    def refuse_lost(self) -> None:
        """Refuses to start from step 0 if that would overwrite earlier work. Call it if the folder has no checkpoint.

        Raises: ``RunError`` if there was a checkpoint, trained weights or metrics of earlier steps.
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
        """Writes ``state.json`` on rank 0; without a ``step``, the step stays as it was."""
        if is_main() and step is None:
            step = self.state()["step"]
        self._write("state.json", json.dumps({"status": status, "step": step}) + "\n")

    def write_report(self, report: dict[str, Any]) -> None:
        """Writes ``report.json`` with the run's warnings, on rank 0."""
        if is_main() and (lines := self.warnings()):
            report = {**report, "warnings": lines}
        self._write("report.json", json.dumps(report, indent=2) + "\n")

    def read_report(self) -> dict[str, Any]:
        """The content of ``report.json``.

        Raises: ``RunError`` if the run has no report yet, or the file cannot be read.
        """
        path = self.path / "report.json"
        if not path.is_file():
            if (self.path / "state.json").exists() and self.state()["status"] == "done":
                raise RunError(f"{path} is gone. Score the weights again: recipes evaluate {self.path}")
            raise RunError(f"{self.path} has no report.json yet. Finish the run: recipes resume {self.path}")
        return self._read_json(path, "Score the weights again: recipes evaluate " + str(self.path))

    def write_data(self, record: dict[str, Any]) -> None:
        """Writes ``data.json``, a record of the images that the run learns from, on rank 0."""
        self._write("data.json", json.dumps(record) + "\n")

    def read_data(self) -> dict[str, Any] | None:
        """The content of ``data.json``; ``None`` if an older version made the folder, which wrote no such file."""
        path = self.path / "data.json"
        if not path.is_file():
            return None
        return self._read_json(path, "Remove it to go on with the images that are there now.")

    def warn(self, line: str) -> None:
        """Shows the user one line, on rank 0, and appends it to ``warnings.txt`` if this process holds the lock."""
        if not is_main():
            return
        line = " ".join(line.splitlines())
        terminal.aside().print(f"warning: {printable(line)}", markup=False, highlight=False, soft_wrap=True)
        if self._lock is not None and line not in self.warnings():
            # if the disk is full, the next checkpoint raises the error
            with contextlib.suppress(OSError), durable.append(self.path / "warnings.txt") as file:
                file.write(f"{line}\n")

    def warnings(self) -> list[str]:
        """The lines in ``warnings.txt``, each once."""
        path = self.path / "warnings.txt"
        return path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []

    def require_whole(self) -> None:
        """Raises ``RunError`` if the folder was removed, or replaced by another, since it was locked."""
        if self._gone():
            raise RunError(
                f"{self.path} was removed or replaced while the run was at work, and with it all that the run had "
                "kept. Nothing is written there any more. Start anew with another --out."
            )

    def stop_without_main(self) -> None:
        """Writes, on any rank, that the run was interrupted; rank 0 cannot do it if it is the one that hangs."""
        state = self.state()
        if state["status"] == "running":
            durable.write_text(self.path / "state.json", json.dumps({**state, "status": "interrupted"}) + "\n")

    def holds(self, recipe: str, config: Any) -> bool:
        """Whether the run is finished and has this recipe and config."""
        return self.state()["status"] == "done" and not self.differing(recipe, config)

    def differing(self, recipe: str, config: Any) -> list[str]:
        """The names of the fields in which the run's config differs from ``config``, except those that may change."""
        return [field for field, _, _ in self._differences(recipe, config) if field not in _FREE]

    def await_others(self) -> None:
        """Waits until all ranks have done their part. Raises: ``RunError`` if a rank has ended before."""
        try:
            barrier()
        except RuntimeError:  # torch's DistError is one
            raise RunError(
                "Another process ended before its share was done, and has said why; what is complete is kept. Go on: "
                f"recipes resume {self.path}"
            ) from None

    def unlock(self) -> None:
        """Releases the lock, so that another process can use the folder."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _take(self, recipe: str, config: Any) -> None:
        """Rank 0's part of :meth:`create_or_continue`."""
        if self.path.exists() and not self.path.is_dir():
            raise RunError(f"{self.path} is {durable.kind(self.path)}. Choose another --out.")
        there = [path.name for path in self.path.iterdir()] if self.path.is_dir() else []
        ours = {"config.yaml", ".config.yaml.partial", ".lock"}  # files that a process killed early may leave
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
        """Raises ``RunError`` if a link, a pipe or a device has the name of a file that the run writes."""
        for name in names:
            path = self.path / name
            of_ours = name in _FILES or (name.startswith(".") and name.endswith(".partial"))
            if of_ours and (found := durable.kind(path)) != "a file":
                raise RunError(f"{path} is {found}, and a run writes a file there. Remove it, or choose another --out.")
            if name == "checkpoints" and not path.is_dir():
                what = "a link to nothing" if path.is_symlink() else durable.kind(path)
                raise RunError(f"{path} is {what}, and a run keeps a folder there. Put the folder back.")

    def _gone(self) -> bool:
        """Whether the locked folder was removed from this path or replaced."""
        if self._lock is None or not self._taken:
            return False
        try:
            replaced = not os.path.samestat(os.stat(self.path / ".lock"), os.fstat(self._lock))
        except (FileNotFoundError, NotADirectoryError):
            replaced = False  # perhaps only the lock file was removed
        return replaced or not (self.path / "config.yaml").exists()

    def _take_back(self) -> None:
        """Removes the files and the folder that :meth:`_take` made."""
        for path in self._made:
            with contextlib.suppress(OSError):  # a folder with other files in it stays
                path.rmdir() if path == self.path else path.unlink()

    def _take_lock(self) -> None:
        try:
            self._lock = durable.lock(self.path / ".lock")
        except BlockingIOError as held:
            raise RunError(f"{self.path} is in use by {held}. Wait for it, or choose another --out.") from None

    def _refuse_other(self, recipe: str, config: Any) -> None:
        """Raises ``RunError`` if this is not an unfinished run of ``config``; updates the fields that may change."""
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
        """Each field in which the run's config differs from ``config``: its name, the run's value, the other value."""
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
    """Raises ``RunError`` on every rank if the ranks' configs differ; training would be wrong, or wait for ever."""
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
