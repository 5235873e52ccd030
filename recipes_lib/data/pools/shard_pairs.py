# SPDX-License-Identifier: Apache-2.0
"""Many shards as one data set for training: pairs are numbered, and read when they are needed.

The place of each image and text is found in one pass per shard and stored on disk in an index with 46 bytes per pair
(0.6 GB for 12.8 million pairs). The pass reads a few thousand pairs per second, so the first run on a large pool begins
with about an hour of indexing; later runs use the stored index.
"""

import hashlib
import json
import os
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image
from torch import Tensor

from recipes_lib.data import cache
from recipes_lib.data.images import Checked
from recipes_lib.data.pools import samples, uids
from recipes_lib.data.pools.shard_order import ShardOrder
from recipes_lib.data.pools.shards import OnDamage, complaint, remarks
from recipes_lib.errors import DamagedImage, DataError

_VERSION = 2
"""Version of the index; raise it when :mod:`recipes_lib.data.pools.samples` accepts other samples than before."""
_ROW = np.dtype([("high", "u8"), ("low", "u8"), ("image", "u8"), ("text", "u8"),
                 ("image_bytes", "u4"), ("text_bytes", "u4"), ("shard", "u4"),
                 ("has_uid", "?"), ("in_json", "?")])  # fmt: skip


@dataclass(frozen=True)
class ShardPairs:
    """A data set of pairs in shards; :meth:`index` makes it."""

    shards: tuple[Path, ...]
    rows: np.ndarray
    """The index, a structured array [N]: uid, shard, places of image and text, whether there is a uid, and whether the
    text is the caption in the JSON. It is an array because the reference counts of a list would make each loader
    process copy the memory."""
    counts: Counter = field(default_factory=Counter)
    """Numbers of skipped pairs and of remarks, by reason."""
    window: int = 16
    """Number of shards whose pairs are shuffled together."""
    labels: None = None
    class_names: tuple[str, ...] = ()

    @classmethod
    def index(cls, shards: Iterable[Path], *, on_damage: OnDamage, window: int = 16) -> "ShardPairs":
        """Indexes all pairs of the shards, in order. Texts and uids are checked, images are not; see :meth:`check`.

        Pairs without a uid, and pairs with the uid of an earlier pair, are kept and counted.

        Raises: ``DataError`` if no pair is left, a shard is missing or, with ``on_damage`` = stop, at the first fault.
        """
        shards, counts, tables = tuple(shards), Counter(), []
        for number, path in enumerate(shards):
            if not path.is_file():
                raise DataError(f"Shard {path} is missing. Copy it again, or leave it out.")
            table, found, first = _indexed(path)
            if first and on_damage == "stop":
                raise DataError(first)
            table["shard"] = number
            counts.update(found)
            tables.append(table)
        if not sum(map(len, tables)):
            why = "; ".join(f"{reason} {number:,}" for reason, number in sorted(counts.items()))
            raise DataError(
                f"None of the {len(shards):,} shards holds a pair that can be read ({why or 'all are empty'}). Copy them again."
            )
        rows = np.concatenate(tables)
        named = rows[rows["has_uid"]]
        own = np.sort(uids.as_bytes(uids.of_halves(named["high"], named["low"])))
        if twice := len(uids.repeated(own)):
            counts["uid of an earlier pair"] = twice
        return cls(shards, rows, counts, window)

    def __len__(self) -> int:
        return len(self.rows)

    def open(self, index: int) -> Image.Image:
        """Decodes the image at ``index`` to RGB.

        Raises: ``DamagedImage`` naming the shard and the uid of an image that cannot be read.
        """
        try:
            return samples.decode(self._bytes(index, "image"), self._name(index)).image
        except samples.FaultError as error:
            raise DamagedImage(complaint(self._path(index), error.fault)) from None

    def text(self, index: int) -> str:
        """The text at ``index``."""
        data = self._bytes(index, "text")
        return json.loads(data)["caption"] if self.rows["in_json"][index] else data.decode()

    def uid(self, index: int) -> str | None:
        """The uid at ``index``, 32 hexadecimal digits; ``None`` if the pair has none."""
        if not self.rows["has_uid"][index]:
            return None
        row = self.rows[index : index + 1]
        return uids.to_hex(uids.of_halves(row["high"], row["low"]))[0]

    def select(self, indices: Tensor) -> "ShardPairs":
        """The pairs at ``indices`` (int64 [n], in that order)."""
        return replace(self, rows=self.rows[indices.numpy()])

    def subset(self, wanted: np.ndarray) -> "ShardPairs":
        """The pairs, possibly none, whose uids are in ``wanted``: ``u8,u8`` [n], strictly increasing.

        ``counts`` of the result has the number of wanted uids that are in none of the shards.

        Raises: ``DataError`` if pairs have no uid.
        """
        if nameless := int((~self.rows["has_uid"]).sum()):
            raise DataError(
                f"A subset chooses pairs by their uids, and {nameless:,} of the {len(self):,} pairs have none. Add a uid to "
                "their JSON, or train without data.subset."
            )
        here, absent = uids.rows_kept(wanted, uids.of_halves(self.rows["high"], self.rows["low"]))
        counts = self.counts + Counter({"subset uid not in the shards": absent})
        return replace(self, rows=self.rows[here], counts=counts)

    def order(self, seed: int, epoch: int) -> ShardOrder:
        """The order of an epoch, which depends only on (seed, epoch); ``order[a:b]`` gives int64 indices."""
        return ShardOrder(self._runs, seed, epoch, self.window)

    def check(self, threads: int) -> Checked:
        """Decodes every image once; returns the faults by index, and the counts of remarks."""
        block = 256

        def among(first: int) -> list[tuple[int, str | tuple[str, ...]]]:
            return [(index, self._outcome(index)) for index in range(first, min(first + block, len(self)))]

        # threads, not processes: Pillow releases Python's lock, and a process forked beside torch's threads may hang
        faults, found = {}, Counter()
        with ThreadPoolExecutor(threads) as pool:
            for index, outcome in chain.from_iterable(pool.map(among, range(0, len(self), block))):
                if isinstance(outcome, str):
                    faults[index] = outcome
                else:
                    found.update(outcome)
        return Checked(faults, found)

    @cached_property
    def _runs(self) -> np.ndarray:
        """The first position of each run of pairs from the same shard, and the number of pairs: int64 [runs + 1]."""
        shard = self.rows["shard"]
        return np.concatenate([[0], np.flatnonzero(shard[1:] != shard[:-1]) + 1, [len(shard)]])

    def _outcome(self, index: int) -> str | tuple[str, ...]:
        """The reason why the image cannot be decoded (a string), or the remarks of decoding it (a tuple)."""
        try:
            return samples.decode(self._bytes(index, "image"), "").remarks
        except samples.FaultError as error:
            return error.fault.reason

    def _name(self, index: int) -> str:
        """The name of the pair at ``index`` in an error line."""
        uid = self.uid(index)
        return f"the pair with uid {uid}" if uid else f"the pair at byte {int(self.rows['image'][index]):,}"

    def _path(self, index: int) -> Path:
        return self.shards[self.rows["shard"][index]]

    def _bytes(self, index: int, part: str) -> bytes:
        with self._path(index).open(
            "rb"
        ) as file:  # opened each time, since forked workers would share an open file's position
            return samples.read(file, (int(self.rows[part][index]), int(self.rows[f"{part}_bytes"][index])))


def _indexed(path: Path) -> tuple[np.ndarray, dict[str, int], str]:
    """The rows of one shard, counts by reason, and its first fault's line (or ""); from a stored index if possible."""
    state = path.stat()
    name = json.dumps([str(path.resolve()), state.st_size, state.st_mtime_ns, _VERSION])
    kept = cache.folder() / f"shard-{hashlib.sha256(name.encode()).hexdigest()[:20]}.npz"
    try:
        with np.load(kept, allow_pickle=False) as file:
            return file["rows"].astype(_ROW), *json.loads(bytes(file["faults"]))
    except (FileNotFoundError, NotADirectoryError):
        pass
    except Exception as error:  # zipfile, zlib, json and numpy raise different errors for a damaged file
        warnings.warn(f"The index {kept} is damaged ({type(error).__name__}); making it again.", stacklevel=4)
    rows, counts, first = _look_through(path)
    try:
        _keep(kept, rows, json.dumps([counts, first]))
    except OSError as error:
        warnings.warn(f"The index was not kept in {kept.parent} ({error}); set RECIPES_CACHE.", stacklevel=4)
    return rows, counts, first


def _look_through(path: Path) -> tuple[np.ndarray, dict[str, int], str]:
    rows, counts, first = [], Counter(), ""
    for entry in samples.entries(path):
        if not isinstance(entry, samples.Entry):
            counts[entry.reason] += 1
            if isinstance(entry, samples.Fault):
                first = first or complaint(path, entry)
            continue
        counts.update([*remarks(entry.text), *["no uid"] * (entry.uid is None)])
        in_json, uid = "txt" not in entry.places, entry.uid or "0" * 32
        (image, image_bytes), (text, text_bytes) = entry.places["image"], entry.places["json" if in_json else "txt"]
        (halves,) = uids.to_u8([uid]).tolist()
        rows.append((*halves, image, text, image_bytes, text_bytes, 0, entry.uid is not None, in_json))
    return np.array(rows, _ROW), dict(counts), first


def _keep(path: Path, rows: np.ndarray, faults: str) -> None:
    """Writes the index under another name and then renames it, so that no reader sees an incomplete file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, aside = tempfile.mkstemp(dir=path.parent, prefix=".shard-")
    try:
        with os.fdopen(handle, "wb") as file:
            _save(file, rows, faults)
        os.replace(aside, path)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise


def _save(file: BinaryIO, rows: np.ndarray, faults: str) -> None:
    np.savez(file, rows=rows, faults=np.frombuffer(faults.encode(), np.uint8))
