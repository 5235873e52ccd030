# SPDX-License-Identifier: Apache-2.0
"""Writes and reads score files: one parquet file per shard, which other tools can read too.

Columns: uid (32 hexadecimal digits), key (the pair's name in its shard), text, captions (list of strings), sieve
(float32), and clip (float32) if a CLIP was used. The footer has the hash of the config, the number of rows, and counts
from reading the shard: skipped pairs, and remarks about others, by reason. A file is written under another name and
then renamed, so it is complete or absent.
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
"""Names of the columns that are scores."""
BATCH = 1 << 16
"""Number of rows that are read at once."""
_FACTS = b"ssl-cookbook"


@dataclass(frozen=True)
class Scores:
    """The scores of n pairs, by column."""

    uids: list[str]
    keys: list[str]
    texts: list[str]
    captions: list[list[str]]
    """The captions as the captioner gave them, including phrases about the medium."""
    sieve: np.ndarray
    """Sieve's scores, float32 [n]."""
    clip: np.ndarray | None = None
    """CLIPScores, float32 [n]; ``None`` if no CLIP was used."""

    def __len__(self) -> int:
        return len(self.uids)


def join(parts: Sequence[Scores], *, clip: bool) -> Scores:
    """Concatenates scores. ``clip``: whether the result has that column, which is unknown if there are no parts."""
    empty = [np.empty(0, np.float32)]
    return Scores(
        *([row for part in parts for row in getattr(part, name)] for name in ("uids", "keys", "texts", "captions")),
        sieve=np.concatenate([part.sieve for part in parts] or empty),
        clip=np.concatenate([part.clip for part in parts] or empty) if clip else None,
    )


@dataclass(frozen=True)
class Facts:
    """The content of a score file's footer."""

    config_hash: str
    rows: int
    counts: dict[str, int]
    """Numbers of skipped pairs and of remarks about others, by reason."""
    signals: tuple[str, ...]
    """The columns of :data:`SIGNALS` that the file has."""


def write(path: Path, scores: Scores, *, config_hash: str, counts: Mapping[str, int]) -> None:
    """Writes a score file, completely or not at all. Equal arguments give equal bytes.

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
        # uids and scores hardly repeat, so a dictionary would be larger than the values
        how = {"compression": "zstd", "use_dictionary": False, "write_page_checksum": True}
        parquet.write_table(table, partial, row_group_size=BATCH, **how)


def facts(path: Path) -> Facts:
    """Reads only the footer of ``path``.

    Raises: ``DataError`` if the file is truncated or no score file.
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
    """Whether ``path`` exists; if it does, it is checked to be complete and of this config.

    Raises: ``RunError`` if another config made it; ``DataError`` if it is damaged.
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
    """Reads a score file into memory. Raises: ``DataError`` if it is truncated or no score file."""
    signals = facts(path).signals
    with _opened(path) as file:
        table = _tried(path, file.read)
    lists = {name: table[name].to_pylist() for name in ("uid", "key", "text", "captions")}
    clip = table["clip"].to_numpy() if "clip" in signals else None
    return Scores(lists["uid"], lists["key"], lists["text"], lists["captions"], table["sieve"].to_numpy(), clip)


def columns(path: Path, names: Sequence[str]) -> Iterator[dict[str, np.ndarray]]:
    """Reads some columns of a file, :data:`BATCH` rows at a time: float32 [n] each, ``uid`` as ``u8,u8`` [n].

    Raises: ``DataError`` if a column is missing, a uid malformed or the file damaged.
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
    """Converts a column of strings to ``u8,u8`` [n], without making a Python string per row."""
    pa, _ = _pyarrow()
    if not len(column):
        return np.empty(0, DTYPE)
    column = column.cast(pa.string())  # another tool may have rewritten the file with another string type
    _, ends, digits = column.buffers()
    ends = np.frombuffer(ends, np.int32)[column.offset : column.offset + len(column) + 1]
    if column.null_count == 0 and (np.diff(ends) == 32).all():
        try:
            return from_digits(memoryview(digits)[ends[0] : ends[-1]])
        except (binascii.Error, ValueError):
            pass  # the error below names the uid
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
    """The result of ``call``; pyarrow's errors become a ``DataError``."""
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
