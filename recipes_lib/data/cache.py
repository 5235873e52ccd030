# SPDX-License-Identifier: Apache-2.0
"""Rendered sets kept on disk, so that they are rendered once: safetensors files named by what they hold.

A file is written aside and moved into place, so that a reader never sees half of one and two writers of the same set
do each other no harm; it carries a checksum of its tensors, so that a damaged one is noticed and rendered again.
"""

import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

Tensors = dict[str, Tensor]


def folder() -> Path:
    """Where rendered sets are kept: ``RECIPES_CACHE`` of the environment, or ``~/.cache/ssl-cookbook``.

    For a user without a home directory it is a temporary folder, which a warning names.
    """
    if named := os.environ.get("RECIPES_CACHE"):
        return Path(named)
    try:
        return Path.home() / ".cache" / "ssl-cookbook"
    except RuntimeError:
        place = Path(tempfile.gettempdir()) / f"ssl-cookbook-{os.getuid()}"
        warnings.warn(f"There is no home directory: pictures are cached in {place}; set RECIPES_CACHE.", stacklevel=3)
        return place


def cached(make: Callable[[], Tensors], arguments: dict[str, int | str]) -> Tensors:
    """What ``make`` returned for these arguments, from disk where an earlier call left it.

    ``arguments`` must tell apart everything that ``make`` depends on, the version of its code included. A damaged
    file is made again, and a folder that cannot be written to is done without; each says so in one warning.
    """
    text = json.dumps(arguments, sort_keys=True)
    path = folder() / f"pantry-{hashlib.sha256(text.encode()).hexdigest()[:20]}.safetensors"
    try:
        return _read(path, text)
    except FileNotFoundError:
        pass
    except (_DamagedError, SafetensorError, OSError) as error:
        warnings.warn(f"The cached pictures {path} are damaged ({error}); rendering them again.", stacklevel=3)
    tensors = make()
    try:
        _write(path, tensors, text)
    except OSError as error:
        warnings.warn(f"The pictures were not cached in {path.parent} ({error}); set RECIPES_CACHE.", stacklevel=3)
    return tensors


class _DamagedError(Exception):
    """The file can be read, and is not what was written."""


def _checksum(tensors: Tensors) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _read(path: Path, text: str) -> Tensors:
    if not path.exists():
        raise FileNotFoundError(path)
    with safe_open(path, "pt") as file:
        facts = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if facts.get("arguments") != text:
        raise _DamagedError("it holds another set")
    if facts.get("sha256") != _checksum(tensors):
        raise _DamagedError("its checksum does not fit")
    return tensors


def _write(path: Path, tensors: Tensors, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, aside = tempfile.mkstemp(dir=path.parent, prefix=".pantry-")
    os.close(handle)
    try:
        tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
        save_file(tensors, aside, metadata={"arguments": text, "sha256": _checksum(tensors)})
        os.replace(aside, path)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise
