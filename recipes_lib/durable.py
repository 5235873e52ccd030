# SPDX-License-Identifier: Apache-2.0
"""Writes files completely or not at all, even if the process or the machine dies, and never through symbolic links.

Other users who may write into a run's folder could create a symbolic link there, under a name that the run is going to
write. No file is written through such a link.
"""

import fcntl
import os
import platform
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


def sync(path: Path) -> None:
    """Makes the system write a file, or a folder's list of names, to the disk now."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yields a new, empty, hidden file beside ``path`` to write to; without an error, that file then becomes ``path``.

    Anything with the hidden file's name, left by a killed process or put there by others, is removed first. A link at
    ``path`` is replaced, and the link's target stays unchanged.
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
    """Writes a text file in UTF-8, completely or not at all; an existing file is replaced."""
    with whole(path) as partial:
        partial.write_text(text, encoding="utf-8")


def append(path: Path) -> IO[str]:
    """Opens a text file for adding lines, and creates it if it does not exist.

    Raises: ``OSError`` if ``path`` is a symbolic link or cannot be written.
    """
    return open(path, "a", encoding="utf-8", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW, 0o666))


def lock(path: Path) -> int:
    """Locks the file ``path``, which is made, until the process ends in whatever way; closing the result unlocks it.

    It is a POSIX lock, not ``flock``: loader workers would inherit the latter through ``fork``, and they outlive a killed
    parent by seconds, in which nobody else could take the lock. A file system without locks gives none, and no error,
    since a lock only protects from a user's mistake.

    Raises: ``BlockingIOError`` with the holder's name as its text; ``OSError`` if ``path`` is a symbolic link or cannot
    be written.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # POSIX allows either error for a lock that is taken
        holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "another process"
        os.close(descriptor)
        raise BlockingIOError(holder) from None
    except OSError:
        pass  # a file system without locks
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"process {os.getpid()} on {platform.node()}".encode(), 0)
    return descriptor


def clear(path: Path) -> None:
    """Removes the file, or the folder and its contents, at ``path``; of a symbolic link only the link itself."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def kind(path: Path) -> str:
    """The kind of file at ``path`` in words, without following links: ``a file``, ``a folder``, ``nothing``, ...

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
