# SPDX-License-Identifier: Apache-2.0
"""Reads, checks, compares and writes uids of image-text pairs, and DataComp's uid files, which list a subset's pairs.

All code that handles uids calls this module. A uid is 32 hexadecimal digits, stored as a pair of unsigned 64-bit
numbers. A uid file is the sorted array of them, ``u8,u8``, as ``np.save`` writes it. DataComp's resharder looks up each
sample by ``np.searchsorted`` and checks only the dtype: with an unsorted file it loses samples without an error, and
with a duplicate uid it writes a sample twice. So this module neither writes (:func:`writing`, :func:`save_subset`) nor
accepts (:func:`verify_subset`) files that are not strictly increasing.

Source: the README, resharder.py and baselines of mlfoundations/datacomp.
"""

import binascii
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from recipes_lib.durable import whole
from recipes_lib.errors import DataError

DTYPE = np.dtype("u8,u8")
_UID = re.compile("[0-9a-f]{32}")


def is_uid(text: str) -> bool:
    """Whether a text is 32 hexadecimal digits in lower case, as uids are written. :func:`to_u8` reads upper case too."""
    return _UID.fullmatch(text) is not None


def to_u8(uids: Sequence[str]) -> np.ndarray:
    """Converts uids of 32 hexadecimal digits to ``u8,u8`` [n], in the same order.

    Raises: ``DataError`` naming the first uid that is malformed.
    """
    if all(len(uid) == 32 for uid in uids):
        try:
            return from_digits("".join(uids).encode("ascii"))
        except (UnicodeEncodeError, binascii.Error):
            pass  # the error below names the uid
    row, uid = next((row, uid) for row, uid in enumerate(uids) if not is_uid(uid.lower()))
    raise DataError(f"uid {uid!r} (row {row}) is not 32 hexadecimal digits; correct or leave out that sample.")


def from_digits(digits: bytes) -> np.ndarray:
    """Converts the concatenated digits of n uids: bytes [32 n] -> ``u8,u8`` [n]. Raises: ``binascii.Error``."""
    return np.frombuffer(binascii.unhexlify(digits), dtype=">u8").astype(np.uint64).view(DTYPE)


def of_halves(high: np.ndarray, low: np.ndarray) -> np.ndarray:
    """Combines the two 64-bit numbers of each uid: uint64 [n] each -> ``u8,u8`` [n]."""
    uids = np.empty(len(high), DTYPE)
    uids["f0"], uids["f1"] = high, low
    return uids


def to_hex(uids: np.ndarray) -> list[str]:
    """Converts uids to strings: ``u8,u8`` [n] -> n strings of 32 lower-case hexadecimal digits."""
    return [f"{high:016x}{low:016x}" for high, low in uids.tolist()]


def as_bytes(uids: np.ndarray) -> np.ndarray:
    """Copies uids to 16 bytes each, most significant byte first: ``u8,u8`` [n] -> ``S16`` [n].

    NumPy sorts and searches them in the same order and much faster. The bytes may end in zeros, so compare them as
    arrays, never as Python's bytes.
    """
    halves = np.stack([uids["f0"], uids["f1"]], axis=1)
    return halves.astype(">u8").view("S16")[:, 0]


def from_bytes(keys: np.ndarray) -> np.ndarray:
    """Inverts :func:`as_bytes`: contiguous ``S16`` [n] -> ``u8,u8`` [n]."""
    return keys.view(">u8").astype(np.uint64).view(DTYPE)


def repeated(keys: np.ndarray) -> np.ndarray:
    """The entries that equal the entry before them: sorted ``S16`` [n] -> ``S16`` [m]."""
    return keys[1:][keys[1:] == keys[:-1]]


@contextmanager
def writing(path: Path, count: int) -> Iterator[Callable[[np.ndarray], None]]:
    """Writes a uid file of ``count`` uids in parts; the context gives a function that appends a part, ``u8,u8`` [n].

    The file appears when the context ends without an error; otherwise an existing file stays as it was.

    Raises: ``ValueError`` if a uid is not greater than the one before it, or the number of uids is not ``count``.
    """
    written, last = 0, np.empty(0, DTYPE)

    def append(part: np.ndarray) -> None:
        nonlocal written, last
        keys = as_bytes(np.concatenate([last, part]))
        if not (keys[1:] > keys[:-1]).all():
            raise ValueError(f"the uids of {path} are not strictly increasing")
        file.write(part.tobytes())
        written, last = written + len(part), part[-1:] if len(part) else last

    with whole(path) as partial, partial.open("wb") as file:
        header = {"descr": npy.dtype_to_descr(DTYPE), "fortran_order": False, "shape": (count,)}
        npy.write_array_header_1_0(file, header)
        yield append
        if written != count:
            raise ValueError(f"{written} uids for {path}, which was to hold {count}")


def save_subset(path: Path, uids: Sequence[str] | np.ndarray) -> np.ndarray:
    """Writes a uid file and returns its content, sorted ``u8,u8`` [n].

    ``uids`` are strings, or ``u8,u8`` [n], in any order.

    Raises: ``DataError`` naming a uid that is malformed or occurs twice.
    """
    keys = as_bytes(uids if isinstance(uids, np.ndarray) else to_u8(uids))
    keys.sort()
    if len(twice := repeated(keys)):
        raise DataError(
            f"uid {to_hex(from_bytes(twice[:1]))[0]} is to be kept twice ({len(twice)} such rows); a resharder would write "
            "its sample twice. Remove the double from the pool."
        )
    subset = from_bytes(keys)
    with writing(path, len(subset)) as append:
        append(subset)
    return subset


def verify_subset(path: Path, pool: np.ndarray | None = None) -> np.ndarray:
    """Reads a uid file, and checks what DataComp's resharder does not check: ``u8,u8`` [n], strictly increasing.

    ``pool``: ``u8,u8`` [N], in any order; it must contain every uid of the file.

    Raises: ``DataError`` if the file is no uid file, is not strictly increasing, or has uids that the pool lacks.
    """
    if path.exists() and not path.is_file():  # reading a pipe would wait for ever
        raise DataError(f"{path} cannot be read as a uid file: it is no plain file. Write it with save_subset.")
    try:
        subset = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, MemoryError) as error:
        raise DataError(f"{path} cannot be read as a uid file ({error}). Write it with save_subset.") from None
    if not isinstance(subset, np.ndarray) or subset.dtype != DTYPE or subset.ndim != 1:
        what = f"{subset.dtype} {list(subset.shape)}" if isinstance(subset, np.ndarray) else "an archive"
        raise DataError(f"{path} holds {what}; a uid file holds u8,u8 [n]. Write it with save_subset.")
    keys = as_bytes(subset)
    wrong = np.flatnonzero(keys[1:] <= keys[:-1])
    if len(wrong):
        raise DataError(
            f"{path} is not strictly increasing: its first violation is at row {wrong[0] + 1}. A subset must be "
            "strictly increasing u8,u8; write it with save_subset."
        )
    if pool is not None:
        strangers = np.flatnonzero(times_kept(pool, subset) == 0)
        if len(strangers):
            raise DataError(
                f"{path} keeps {len(strangers)} uids that the pool does not have, the first "
                f"{to_hex(subset[strangers[:1]])[0]}. It was made from another pool."
            )
    return subset


def times_kept(subset: np.ndarray, uids: np.ndarray) -> np.ndarray:
    """How often each of ``uids`` occurs in ``subset``, which is how often a resharder writes its sample.

    Shapes: ``u8,u8`` [n] in any order, ``u8,u8`` [m] -> int64 [m].
    """
    keys, wanted = np.sort(as_bytes(subset)), as_bytes(uids)
    return np.searchsorted(keys, wanted, side="right") - np.searchsorted(keys, wanted, side="left")


def rows_kept(subset: np.ndarray, uids: np.ndarray) -> tuple[np.ndarray, int]:
    """The rows of ``uids`` that a subset keeps, and the number of the subset's uids that are not among ``uids``.

    Shapes: strictly increasing ``u8,u8`` [n], ``u8,u8`` [m] in any order -> int64 [k], ascending rows of ``uids``.
    """
    wanted, own = as_bytes(subset), as_bytes(uids)
    first, last = (np.searchsorted(wanted, own, side) for side in ("left", "right"))
    rows = np.flatnonzero(last > first)
    return rows, len(wanted) - len(np.unique(first[rows]))
