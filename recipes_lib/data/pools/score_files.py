# SPDX-License-Identifier: Apache-2.0
"""Scores of image-text pairs on disk: one parquet file for each shard, which tools of other makers read too.

Columns: uid (32 hexadecimal digits), key (the pair's name in its shard), text, captions (list of strings), sieve
(float32), and clip (float32) where a CLIP took part. The footer says which config made the file, how many rows it has
and what was counted while its shard was read: pairs passed over, by reason, and what was noted of others. A file is written aside and moved into place: it is either
whole or not there.
"""

import binascii
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from recipes_lib.data.pools.uids import DTYPE, from_digits, to_u8
from recipes_lib.durable import whole
from recipes_lib.errors import DataError, RunError

SIGNALS = ("sieve", "clip")
"""The columns that are scores."""
BATCH = 1 << 16
"""Rows that are read at a time."""
_FACTS = b"ssl-cookbook"


@dataclass(frozen=True)
class Scores:
    """Scored pairs, a column each."""

    uids: list[str]
    keys: list[str]
    texts: list[str]
    captions: list[list[str]]
    """As the captioner gave them, medium phrases included."""
    sieve: np.ndarray
    """float32 [n]."""
    clip: np.ndarray | None = None
    """float32 [n], or None where no CLIP took part."""

    def __len__(self) -> int:
        return len(self.uids)


def join(parts: Sequence[Scores], *, clip: bool) -> Scores:
    """One after another. ``clip``: whether the column is there, which no part could say if there is no part."""
    empty = [np.empty(0, np.float32)]
    return Scores(
        *([row for part in parts for row in getattr(part, name)] for name in ("uids", "keys", "texts", "captions")),
        sieve=np.concatenate([part.sieve for part in parts] or empty),
        clip=np.concatenate([part.clip for part in parts] or empty) if clip else None,
    )


@dataclass(frozen=True)
class Facts:
    """What a file's footer says."""

    config_hash: str
    rows: int
    counts: dict[str, int]
    """What its shard's reader counted: pairs passed over, by reason, and what was noted of others."""
    signals: tuple[str, ...]
    """The columns of :data:`SIGNALS` that it has."""


def write(path: Path, scores: Scores, *, config_hash: str, counts: Mapping[str, int]) -> None:
    """Writes a file whole. Equal arguments give equal bytes.

    Raises: ``DataError`` for a malformed uid; ``ValueError`` for columns of different lengths.
    """
    pa, parquet = _pyarrow()
    to_u8(scores.uids)
    columns = {
        "uid": pa.array(scores.uids, pa.string()),
        "key": pa.array(scores.keys, pa.string()),
        "text": pa.array(scores.texts, pa.string()),
        "captions": pa.array(scores.captions, pa.list_(pa.string())),
        "sieve": pa.array(np.asarray(scores.sieve, np.float32)),
    }
    if scores.clip is not None:
        columns["clip"] = pa.array(np.asarray(scores.clip, np.float32))
    facts = {"config_hash": config_hash, "rows": len(scores), "counts": dict(sorted(counts.items()))}
    table = pa.table(columns).replace_schema_metadata({_FACTS: json.dumps(facts, sort_keys=True)})
    with whole(path) as partial:
        # uids and scores hardly repeat: a dictionary of them is longer than themselves
        how = {"compression": "zstd", "use_dictionary": False, "write_page_checksum": True}
        parquet.write_table(table, partial, row_group_size=BATCH, **how)


def facts(path: Path) -> Facts:
    """What the footer of ``path`` says; the rest is not read.

    Raises: ``DataError`` where the file is truncated or no score file.
    """
    with _opened(path) as file:
        metadata, names = file.metadata, file.schema_arrow.names
        try:
            said = json.loads((metadata.metadata or {})[_FACTS])
            found = Facts(
                said["config_hash"],
                said["rows"],
                said["counts"],
                tuple(name for name in SIGNALS if name in names),
            )
        except (KeyError, TypeError, ValueError):
            raise DataError(f"{path} is a parquet file, but no score file. Move it away.") from None
        if found.rows != metadata.num_rows or not {"uid", "sieve"} <= set(names):
            raise _damaged(path, f"{metadata.num_rows} rows of {found.rows}, columns {', '.join(names)}")
        return found


def complete(path: Path, config_hash: str) -> bool:
    """Whether ``path`` is there; if so, it is whole and of this config.

    Raises: ``RunError`` where another config made it; ``DataError`` where it is damaged.
    """
    if not path.exists():
        return False
    found = facts(path).config_hash
    if found != config_hash:
        raise RunError(
            f"{path} was scored with config {found}, and this run's is {config_hash}. Score into another folder, or move "
            "the old files away."
        )
    return True


def read(path: Path) -> Scores:
    """A whole file in memory. Raises: ``DataError`` where it is truncated or no score file."""
    signals = facts(path).signals
    with _opened(path) as file:
        table = _tried(path, file.read)
    lists = {name: table[name].to_pylist() for name in ("uid", "key", "text", "captions")}
    clip = table["clip"].to_numpy() if "clip" in signals else None
    return Scores(lists["uid"], lists["key"], lists["text"], lists["captions"], table["sieve"].to_numpy(), clip)


def columns(path: Path, names: Sequence[str]) -> Iterator[dict[str, np.ndarray]]:
    """Some columns of a file, :data:`BATCH` rows at a time: float32 [n] each, ``uid`` as ``u8,u8`` [n].

    Raises: ``DataError`` where a column is absent, a uid malformed or the file damaged.
    """
    with _opened(path) as file:
        absent = [name for name in names if name not in file.schema_arrow.names]
        if absent:
            raise DataError(
                f"{path} has no column {absent[0]!r}; it has: {', '.join(file.schema_arrow.names)}. Score its shard again "
                "with that signal, or give it no weight."
            )
        batches = file.iter_batches(BATCH, columns=list(names), use_threads=False)
        while (batch := _tried(path, lambda: next(batches, None))) is not None:
            yield {
                name: _uids(path, batch[name]) if name == "uid" else batch[name].to_numpy(zero_copy_only=False)
                for name in names
            }


def _uids(path: Path, column: Any) -> np.ndarray:
    """A column of strings -> ``u8,u8`` [n], without a Python string for each."""
    pa, _ = _pyarrow()
    if not len(column):
        return np.empty(0, DTYPE)
    column = column.cast(pa.string())  # another tool may have written the file anew, with a string type of its own
    _, ends, digits = column.buffers()
    ends = np.frombuffer(ends, np.int32)[column.offset : column.offset + len(column) + 1]
    if column.null_count == 0 and (np.diff(ends) == 32).all():
        try:
            return from_digits(memoryview(digits)[ends[0] : ends[-1]])
        except (binascii.Error, ValueError):
            pass  # found and named below
    try:
        return to_u8([uid or "" for uid in column.to_pylist()])
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def _opened(path: Path) -> Any:
    _, parquet = _pyarrow()
    if not path.is_file():
        raise DataError(f"{path} is not there. Score its shard first.")
    return _tried(path, lambda: parquet.ParquetFile(path, page_checksum_verification=True))


def _tried(path: Path, call: Any) -> Any:
    """What ``call`` returns, its errors told in our words."""
    pa, _ = _pyarrow()
    try:
        return call()
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, str(error).partition("\n")[0]) from None


def _damaged(path: Path, what: str) -> DataError:
    return DataError(f"{path} is truncated or damaged ({what}). Remove it, and its shard is scored again.")


def _pyarrow() -> tuple[ModuleType, ModuleType]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DataError("Score files need pyarrow, which is not installed: pip install 'ssl-cookbook[text]'.") from None
    return pyarrow, pyarrow.parquet
