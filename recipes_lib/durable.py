# SPDX-License-Identifier: Apache-2.0
"""Files that are either whole or not there, whatever kills the process or the machine, and that are never links.

Whoever may write into a run's folder could lay a symbolic link there under a name that the run is about to write. No
file is written through one.
"""

import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


def sync(path: Path) -> None:
    """Has the system put a file, or a folder's list of names, on the disk itself."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Gives a new, empty file beside ``path`` to write to; on leaving without an error that file becomes ``path``.

    What has the hidden file's name, left by a killed process or laid there, is removed first; a link at ``path`` is
    replaced, and what it points to stays as it is.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        clear(partial)
        os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666))
        yield partial
        sync(partial)
        os.replace(partial, path)
        sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes or replaces a text file."""
    with whole(path) as partial:
        partial.write_text(text, encoding="utf-8")


def append(path: Path) -> IO[str]:
    """A text file, open to add lines to; it is made where there is none.

    Raises: ``OSError`` where ``path`` is a link, or cannot be written.
    """
    return open(path, "a", encoding="utf-8", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW, 0o666))


def clear(path: Path) -> None:
    """Removes what is at ``path``, a folder with all that is in it; a link itself, not what it points to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def kind(path: Path) -> str:
    """What is at ``path``, in words, links not followed: ``a file``, ``a folder``, ``a symbolic link``, ``nothing``, ...

    >>> kind(Path("/dev/null"))
    'a device'
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return "nothing"
    names = {stat.S_IFREG: "a file", stat.S_IFDIR: "a folder", stat.S_IFLNK: "a symbolic link"}
    names |= {
        stat.S_IFIFO: "a named pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    return names.get(stat.S_IFMT(mode), "a special file")
