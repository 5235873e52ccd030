# SPDX-License-Identifier: Apache-2.0
"""The meshes of pybullet's random objects, and the simulator that renders them.

Source: Coumans and Bai, PyBullet, pybullet.org, zlib licence; ``pybullet_data/random_urdfs``. The objects are those on
which Bousmalis et al., arXiv 1709.07857, trained a robot to grasp.
"""

import functools
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import numpy as np

from recipes_lib.errors import DataError

_WAY_OUT = "pip install 'ssl-cookbook[objects]'"


def missing() -> str | None:
    """The reason why the objects cannot be rendered on this machine, or None if they can."""
    if find_spec("pybullet") is None or find_spec("pybullet_data") is None:
        return f"The 3-D objects and their renderer are in pybullet, which is not installed: {_WAY_OUT}"
    if not (_folder() / "000" / "000.obj").is_file():
        return f"{_folder()} has no objects. Get pybullet again: pip install --force-reinstall pybullet"
    return None


@functools.lru_cache(maxsize=1024)
def path(mesh: int) -> Path:
    """The mesh's file (Wavefront .obj). Raises: ``DataError`` if pybullet is not installed."""
    if (reason := missing()) is not None:
        raise DataError(reason)
    return _folder() / f"{mesh:03d}" / f"{mesh:03d}.obj"


@functools.lru_cache(maxsize=1024)
def vertices(mesh: int) -> np.ndarray:
    """The corners of a mesh, in its file's units: float64 [V, 3], the third axis points up."""
    lines = path(mesh).read_text().splitlines()
    return np.array([line.split()[1:4] for line in lines if line.startswith("v ")], dtype=np.float64)


@contextmanager
def simulator() -> Iterator[tuple[ModuleType, int]]:
    """pybullet and the number of a new connection to it, which the process does not share with others."""
    path(0)
    pybullet = _silently_imported()
    client = pybullet.connect(pybullet.DIRECT)
    try:
        yield pybullet, client
    finally:
        pybullet.disconnect(client)


def _folder() -> Path:
    return Path(find_spec("pybullet_data").origin).parent / "random_urdfs"


@functools.cache
def _silently_imported() -> ModuleType:
    """pybullet. Its first import prints when it was built, from C, so that only the file descriptor can be turned away."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(1), os.dup(2)]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        import pybullet
    finally:
        for place, old in zip((1, 2), kept, strict=True):
            os.dup2(old, place)
            os.close(old)
        os.close(nowhere)
    return pybullet
