# SPDX-License-Identifier: Apache-2.0
"""DataComp's uid files: which samples of a pool a subset keeps, as the pool's resharder reads it.

A uid is 32 hexadecimal digits, as a pair of unsigned 64-bit numbers; a file is the sorted array of them, ``u8,u8``, as
``np.save`` writes it. The resharder looks each sample up by ``np.searchsorted`` and checks nothing but the dtype: an
unsorted file loses samples unseen, and a uid that stands there twice gives its sample twice. So files that are not
strictly increasing are neither written nor accepted here.

Source: the README, resharder.py and baselines of mlfoundations/datacomp.
"""

import binascii
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from recipes_lib.durable import whole
from recipes_lib.errors import DataError

DTYPE = np.dtype("u8,u8")


def to_u8(uids: Sequence[str]) -> np.ndarray:
    """uids of 32 hexadecimal digits -> ``u8,u8`` [n], in the same order.

    Raises: ``DataError`` naming the first that is none.
    """
    if all(len(uid) == 32 for uid in uids):
        try:
            return from_digits("".join(uids).encode("ascii"))
        except (UnicodeEncodeError, binascii.Error):
            pass  # found and named below
    row, uid = next((row, uid) for row, uid in enumerate(uids) if not _is_uid(uid))
    raise DataError(f"uid {uid!r} (row {row}) is not 32 hexadecimal digits; correct or leave out that sample.")


def from_digits(digits: bytes) -> np.ndarray:
    """n uids' digits, one after another: bytes [32 n] -> ``u8,u8`` [n]. Raises: ``binascii.Error``."""
    return np.frombuffer(binascii.unhexlify(digits), dtype=">u8").astype(np.uint64).view(DTYPE)


def _is_uid(uid: str) -> bool:
    return len(uid) == 32 and all(letter in "0123456789abcdefABCDEF" for letter in uid)


def to_hex(uids: np.ndarray) -> list[str]:
    """``u8,u8`` [n] -> n times 32 lower-case hexadecimal digits."""
    return [f"{high:016x}{low:016x}" for high, low in uids.tolist()]


def as_bytes(uids: np.ndarray) -> np.ndarray:
    """Sixteen bytes a uid, most significant first, which NumPy sorts and searches in the same order and far faster.

    ``u8,u8`` [n] -> ``S16`` [n], a copy. The bytes may end in zeros: compare them as arrays, never as Python's bytes.
    """
    halves = np.stack([uids["f0"], uids["f1"]], axis=1)
    return halves.astype(">u8").view("S16")[:, 0]


def from_bytes(keys: np.ndarray) -> np.ndarray:
    """The inverse of :func:`as_bytes`: contiguous ``S16`` [n] -> ``u8,u8`` [n]."""
    return keys.view(">u8").astype(np.uint64).view(DTYPE)


def save_subset(path: Path, uids: Sequence[str] | np.ndarray) -> np.ndarray:
    """Writes a uid file and returns what it holds: sorted ``u8,u8`` [n].

    ``uids`` in any order: strings, or ``u8,u8`` [n].

    Raises: ``DataError`` naming a uid that is malformed or comes twice.
    """
    keys = as_bytes(uids if isinstance(uids, np.ndarray) else to_u8(uids))
    keys.sort()
    subset = from_bytes(keys)
    twice = np.flatnonzero(subset[1:] == subset[:-1])
    if len(twice):
        raise DataError(
            f"uid {to_hex(subset[twice[:1]])[0]} is to be kept twice ({len(twice)} such rows); a resharder would write "
            "its sample twice. Remove the double from the pool."
        )
    with whole(path) as partial, partial.open("wb") as file:
        np.save(file, subset)
    return subset


def verify_subset(path: Path, pool: np.ndarray | None = None) -> np.ndarray:
    """Reads a uid file as a resharder would, and checks what that one does not: ``u8,u8`` [n], strictly increasing.

    ``pool``: ``u8,u8`` [N], in any order; every uid of the file must be among them.

    Raises: ``DataError`` where the file is no uid file, is not strictly increasing or leaves the pool.
    """
    if path.exists() and not path.is_file():  # a pipe would be waited for
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
    """How often each of ``uids`` stands in ``subset``: how often a resharder writes its sample.

    Shapes: ``u8,u8`` [n] in any order, ``u8,u8`` [m] -> int64 [m].
    """
    keys, wanted = np.sort(as_bytes(subset)), as_bytes(uids)
    return np.searchsorted(keys, wanted, side="right") - np.searchsorted(keys, wanted, side="left")
