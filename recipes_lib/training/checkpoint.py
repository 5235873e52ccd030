# SPDX-License-Identifier: Apache-2.0
"""Writes and reads checkpoints: each is complete or absent, its checksums are verified, and nothing is unpickled.

``folder/step-000100/`` holds ``model.safetensors``, ``optimizer.safetensors`` and ``manifest.json``, which has the size
and SHA-256 of both files, the step, and all state that is not a tensor (``facts``). A checkpoint is written under a
hidden name in the same folder, synced to the disk, then renamed. If ranks differ, it has more files:
:mod:`recipes_lib.training.rank_checkpoints`.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from recipes_lib import durable
from recipes_lib.distributed.collectives import is_main
from recipes_lib.errors import RunError

_FILES = ("model.safetensors", "optimizer.safetensors")


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint whose checksums were verified."""

    step: int
    """Number of complete optimiser steps."""
    path: Path
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    """Tensors of :func:`flatten_optimizer`, on the CPU."""
    facts: dict[str, Any]
    """State that is not a tensor, as JSON values."""


class _Damaged(Exception):
    """The reason why a checkpoint cannot be used."""


def save(
    folder: Path, step: int, model: Mapping[str, Tensor], optimizer: Mapping[str, Tensor], facts: dict, keep: int
) -> Path:
    """Writes a checkpoint on rank 0, removes all but the ``keep`` newest, and returns its path.

    ``facts`` must consist of JSON values. Call it in ``collectives.from_main``, so that every rank raises on a failure.

    Raises: ``RunError`` if it cannot be written (a full disk), naming the last good checkpoint; no partial file stays.
    """
    if is_main():
        begin(folder, step)
        complete(folder, step, model, optimizer, facts, keep, {})
    return folder / _name(step)


def begin(folder: Path, step: int) -> None:
    """First half of :func:`save`: makes the folder :func:`partial`, and removes the remains of killed processes."""
    with disk_errors(folder, step):
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder)
        partial(folder, step).mkdir()


def sweep(folder: Path) -> None:
    """Removes the remains of processes that were killed while they wrote or removed a checkpoint."""
    for path in folder.glob(".step-*"):
        with contextlib.suppress(OSError):  # if this matters, making the new checkpoint fails and names the path
            durable.clear(path)


def partial(folder: Path, step: int) -> Path:
    """The hidden folder in which the files of a checkpoint are written before it is complete."""
    return folder / f".{_name(step)}.partial"


def complete(
    folder: Path,
    step: int,
    model: Mapping[str, Tensor],
    optimizer: Mapping[str, Tensor],
    facts: dict,
    keep: int,
    others: Mapping[str, dict],
) -> None:
    """Second half of :func:`save`. ``others``: results of :func:`write_file` for further files in :func:`partial`."""
    path, hidden = folder / _name(step), partial(folder, step)
    with disk_errors(folder, step):
        files = {file: write_file(hidden / file, kept) for file, kept in zip(_FILES, (model, optimizer), strict=True)}
        durable.write_text(hidden / "manifest.json", _manifest(step, files | dict(others), facts))
        durable.sync(hidden)
        _remove(path)  # an older checkpoint of the same step, which may be damaged
        os.rename(hidden, path)
        durable.sync(folder)
        # checkpoints of later steps are damaged: otherwise training would have continued from them
        older = [other for other in _steps(folder) if other <= step]
        for other in set(_steps(folder)) - set(older[-keep:]):
            _remove(folder / _name(other))


@contextlib.contextmanager
def disk_errors(folder: Path, step: int) -> Iterator[None]:
    """Turns an error of the disk into a ``RunError`` that says what to do, and removes the partial checkpoint."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial(folder, step), ignore_errors=True)
        last = newest_step(folder)
        full = (errno.ENOSPC, errno.EDQUOT)  # safetensors gives the error number only in its text
        space = getattr(error, "errno", None) in full or any(f"os error {number}" in str(error) for number in full)
        raise RunError(
            f"The checkpoint of step {step} could not be written to {folder}: {error}. "
            + (f"The last good one is {_name(last)}: " if last is not None else "There is none before it: ")
            + ("free some space" if space else "mend that")
            + ", then start again with `recipes resume`."
        ) from error


def latest(folder: Path, warn: Callable[[str], None]) -> Checkpoint | None:
    """Reads the newest checkpoint whose checksums match; ``None`` if there is no checkpoint.

    ``warn`` gets one line per newer checkpoint that is truncated or altered.

    Raises: ``RunError`` if all checkpoints are damaged.
    """
    step = find(folder, warn)
    return None if step is None else read(folder, step)


def find(folder: Path, warn: Callable[[str], None]) -> int | None:
    """The step of the checkpoint that :func:`latest` reads; warns and raises as it does."""
    damaged: list[str] = []
    for step in reversed(_steps(folder)):
        try:
            _check(folder / _name(step), step)
        except _Damaged as fault:
            damaged.append(f"{_name(step)} ({fault})")
            continue
        for line in damaged:
            warn(f"A checkpoint in {folder} is damaged and left out: {line}. Going on from {_name(step)}.")
        return step
    if damaged:
        raise RunError(
            f"Every checkpoint in {folder} is damaged: {'; '.join(damaged)}. "
            "Restore one from a copy, or start anew with another --out."
        )
    return None


def read(folder: Path, step: int) -> Checkpoint:
    """Reads the checkpoint of ``step``, whose checksums :func:`find` has verified."""
    path = folder / _name(step)
    facts = json.loads((path / "manifest.json").read_text(encoding="utf-8"))["facts"]
    model, optimizer = (load_file(path / name) for name in _FILES)
    return Checkpoint(step, path, model, optimizer, facts)


def newest_step(folder: Path) -> int | None:
    """The step of the newest checkpoint whose checksums match; ``None`` if there is none."""
    for step in reversed(_steps(folder)):
        with contextlib.suppress(_Damaged):
            _check(folder / _name(step), step)
            return step
    return None


def flatten_optimizer(
    optimizer: torch.optim.Optimizer, named: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Splits an optimiser's state into tensors with names ``parameter/key``, and all other state as JSON values.

    ``named`` is ``dict(module.named_parameters())`` and contains all parameters of the optimiser. A tensor that several
    states share, such as a table of 8-bit codes, is copied, because a safetensors file cannot hold a tensor twice.
    """
    names = {parameter: name for name, parameter in named.items()}
    tensors, values, seen = {}, {}, set()
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if not isinstance(value, Tensor):
                values[f"{names[parameter]}/{key}"] = value
                continue
            tensors[f"{names[parameter]}/{key}"] = value.clone() if id(value) in seen else value
            seen.add(id(value))
    groups = [{**group, "params": [names[weight] for weight in group["params"]]} for group in optimizer.param_groups]
    return tensors, {"kind": type(optimizer).__name__, "groups": groups, "values": values}


def restore_optimizer(optimizer: torch.optim.Optimizer, named: Mapping[str, Tensor], saved: Checkpoint) -> None:
    """Loads into ``optimizer`` the state that :func:`flatten_optimizer` gave, bit for bit.

    Raises: ``RunError`` if ``optimizer`` is of another class, or its parameter groups have other parameters.
    """
    kind = type(optimizer).__name__
    was = saved.facts.get("kind", kind)  # a checkpoint of an older version lacks it
    if was != kind:
        raise RunError(
            f"The optimiser state in {saved.path} is of {was}, and this run has {kind}. Put optim.name back in the run's "
            "config.yaml, or start anew with another --out."
        )
    names = {parameter: name for name, parameter in named.items()}
    ours = [[names[weight] for weight in group["params"]] for group in optimizer.param_groups]
    theirs = [group["params"] for group in saved.facts["groups"]]
    if ours != theirs:
        differing = sorted({name for group in ours for name in group} ^ {name for group in theirs for name in group})
        raise RunError(
            f"The optimiser state in {saved.path} belongs to other parameters: "
            + (f"only one side has {', '.join(differing[:5])}." if differing else "they are grouped in another way.")
        )
    index = {name: position for position, name in enumerate(name for group in theirs for name in group)}
    state: dict[int, dict[str, Any]] = {}
    for place, value in {**saved.optimizer, **saved.facts["values"]}.items():
        name, key = place.rsplit("/", 1)
        state.setdefault(index[name], {})[key] = value
    groups = [
        {key: tuple(value) if isinstance(value, list) else value for key, value in group.items()}  # JSON has no tuples
        | {"params": [index[name] for name in group["params"]]}
        for group in saved.facts["groups"]
    ]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def write_weights(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes or replaces a safetensors file.

    Raises: ``RunError`` if the disk is full or the path cannot be written.
    """
    try:
        write_file(path, tensors)
    except (OSError, SafetensorError) as error:
        raise RunError(f"The weights could not be written to {path}: {error}.") from error


def read_weights(path: Path) -> dict[str, Tensor]:
    """Reads the tensors of a safetensors file onto the CPU.

    Raises: ``RunError`` for a file that is missing, truncated or not a safetensors file, and for every pickle.
    """
    if not path.is_file():
        raise RunError(f"There is no weights file {path}.")
    try:
        return load_file(path)
    except SafetensorError as error:
        with path.open("rb") as file:
            head = file.read(2)
        # torch.save puts its pickle into a zip file ("PK"); a bare pickle begins with 0x80
        if head == b"PK" or head[:1] == b"\x80" or path.suffix in (".pt", ".pth", ".bin", ".pkl", ".ckpt"):
            raise RunError(
                f"{path} is a pickle, which can run any code when it is read: only safetensors files are taken as "
                "weights. If you trust it, convert it with safetensors.torch.save_file(torch.load(FILE, weights_only=True), NEW)."
            ) from None
        raise RunError(f"{path} is not a whole safetensors file ({error}). Copy it again.") from None


def _name(step: int) -> str:
    return f"step-{step:06d}"


def _steps(folder: Path) -> list[int]:
    """The steps of all checkpoints in ``folder``, oldest first; their checksums are not verified."""
    names = (re.fullmatch(r"step-(\d{6,})", path.name) for path in (folder.iterdir() if folder.is_dir() else ()))
    return sorted(int(name[1]) for name in names if name)


def write_file(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> dict:
    """Writes or replaces a safetensors file; returns its size and checksum for the manifest."""
    with durable.whole(path) as hidden:
        mode = hidden.stat().st_mode
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, hidden, metadata)
        hidden.chmod(mode)  # safetensors writes a file that only its owner can read
    return {"bytes": path.stat().st_size, "sha256": _digest(path)}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _manifest(step: int, files: dict[str, dict], facts: dict) -> str:
    content = {"step": step, "files": files, "facts": facts}
    return json.dumps({**content, "sha256": _content_digest(content)}, indent=1)


def _content_digest(content: dict) -> str:
    """The checksum of the manifest's own content, which detects, for instance, an altered learning rate."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _check(path: Path, step: int) -> None:
    """Raises ``_Damaged`` if any file of a checkpoint is missing, truncated or altered."""
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        checksum = manifest.pop("sha256")
        if checksum != _content_digest(manifest) or manifest["step"] != step:
            raise _Damaged("manifest.json was altered")
        for name in {**dict.fromkeys(_FILES), **manifest["files"]}:
            if Path(name).name != name:  # for instance /dev/zero, which would be read for ever
                raise _Damaged(f"manifest.json names {name!r}, which is no file of this checkpoint")
            wanted, size = manifest["files"][name], (path / name).stat().st_size
            if size != wanted["bytes"]:
                raise _Damaged(f"{name} has {size:,} bytes of {wanted['bytes']:,}")
            if _digest(path / name) != wanted["sha256"]:
                raise _Damaged(f"{name} was altered: its checksum differs")
    except OSError as error:
        raise _Damaged(f"{Path(error.filename or path).name}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise _Damaged("manifest.json cannot be read") from None


def _remove(path: Path) -> None:
    """Removes a checkpoint. It is renamed first, so that a kill leaves no incomplete checkpoint under its name."""
    if path.exists():
        doomed = path.with_name(f".{path.name}.doomed")
        os.rename(path, doomed)
        shutil.rmtree(doomed, ignore_errors=True)
