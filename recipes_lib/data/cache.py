# SPDX-License-Identifier: Apache-2.0
"""Caches rendered image sets on disk, so that they are rendered once: safetensors files named by their contents.

A file is written under another name and then moved into place. So a reader never sees half a file, and two writers of
the same set do not disturb each other. The file contains a checksum of its tensors, so that a damaged file is noticed
and rendered again.
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
    """The cache folder: the environment's ``RECIPES_CACHE``, or ``~/.cache/ssl-cookbook``.

    A user without a home directory gets a temporary folder, and a warning that names it.
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
    """The result of ``make`` for these arguments, read from disk if an earlier call has stored it.

    ``arguments`` must contain everything that the result depends on, also the version of the code. A damaged file is
    made again, and without a writable folder nothing is stored; both give one warning.
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
    """The file can be read, but its contents are not those that were written."""


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
