# SPDX-License-Identifier: Apache-2.0
"""Selects the best share of a pool from its score files, in bounded memory, with exactly the result of one large sort.

Each step reads all files, 65,536 rows at a time, and keeps no row:

1. It finds the minimum, the maximum and the number of rows of each score, and refuses scores that are not finite.
2. It finds the last kept row. A histogram of the first 16 bits of the fused score gives the bin in which this row lies,
   the next histogram the bin within that bin, and so on until a bin has few rows, which are sorted. The bits of the uid
   follow those of the score, so a pool of equal scores needs no more memory than any other.
3. It compares every row with the last kept row. The uids are processed in ranges, in increasing order: each range is
   sorted, searched for duplicates and appended to the subset.

For 128 million rows, step 1 reads 1 GB of scores, step 2 reads them three to four times, and step 3 reads the uids (4
GB) and the scores once per range. With ``memory_rows`` = 2**24 rows of 16 bytes, and twice as much during a sort, there
are 8 ranges and at most 0.8 GB in memory. The speed is that of reading parquet files: one process needs minutes.

Source: the rule is that of :mod:`recipes_lib.data.pools.selection`; the uid file that of
:mod:`recipes_lib.data.pools.uids`.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from recipes_lib.data.pools import score_files, selection, uids
from recipes_lib.durable import whole
from recipes_lib.errors import DataError

_DIGIT = 16
"""Number of bits per histogram, which has 2^16 = 65,536 bins."""
_FEW = 1 << 16
"""Number of rows in a bin up to which the bin is sorted and not divided further."""


@dataclass(frozen=True)
class Manifest:
    """The facts about a subset that ``subset.json`` stores."""

    config_hash: str
    """Hash of the config that scored the pool."""
    files: int
    """Number of score files."""
    pool: int
    """Number of pairs with scores."""
    counts: dict[str, int]
    """Numbers of pairs that could not be read and have no scores, and of remarks about others, by reason."""
    fraction: float
    """Share of the pool that was asked for."""
    kept: int
    """Number of pairs in the subset."""
    weights: dict[str, float]
    """Weight of each score in the fused score."""
    ranges: dict[str, tuple[float, float]]
    """Lowest and highest value of each score in the pool."""
    constant: list[str]
    """Names of scores that are equal for all pairs, and so had no effect."""
    threshold: float
    """The lowest fused score in the subset; of the pairs with this score, those with the lowest uids were kept."""
    sha256: str
    """Checksum of ``subset.npy``."""


def select(
    files: Sequence[Path], fraction: float, weights: Mapping[str, float], out: Path, *, memory_rows: int = 1 << 24
) -> Manifest:
    """Writes ``subset.npy`` and ``subset.json`` into the folder ``out``: the pairs with the highest fused scores.

    ``memory_rows``: largest number of uids in memory. The order of ``files`` does not matter.

    Raises: ``ValueError`` for a fraction or weights that are not allowed; ``DataError`` if files come from different
    configs, lack a score, have scores that are not finite or duplicate uids, or are damaged.
    """
    selection.check_weights(weights)
    files = sorted(files)
    pool = _Pool(files, {name: weight for name, weight in weights.items() if weight}, *_facts(files))
    if not pool.rows:
        why = "; ".join(f"{reason} {number:,}" for reason, number in pool.counts.items()) or "the shards are empty"
        raise DataError(f"No pair of the pool could be read ({why}), so there is none to select. Mend the shards.")
    count = selection.number_kept(pool.rows, fraction)
    pool.measure()
    last = _last_kept(pool, count)
    out.mkdir(parents=True, exist_ok=True)
    with uids.writing(out / "subset.npy", count) as append:
        _write_kept(pool, last, append, -(-pool.rows // memory_rows))
    with (out / "subset.npy").open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    manifest = Manifest(
        config_hash=pool.config_hash,
        files=len(files),
        pool=pool.rows,
        counts=pool.counts,
        fraction=fraction,
        kept=count,
        weights=dict(weights),
        ranges=pool.ranges,
        constant=[name for name, (low, high) in pool.ranges.items() if low == high],
        threshold=float(np.uint64(_ONES - last[0]).view(np.float64)),
        sha256=digest,
    )
    with whole(out / "subset.json") as partial:
        partial.write_text(json.dumps(asdict(manifest), indent=2) + "\n", encoding="utf-8")
    return manifest


def _facts(files: Sequence[Path]) -> tuple[str, int, dict[str, int]]:
    """The config hash that all files share, their number of rows, and the counts from reading their shards."""
    rows, counts = 0, Counter()
    first: score_files.Facts | None = None
    for path in files:
        found = score_files.facts(path)
        first = first or found
        if found.config_hash != first.config_hash:
            raise DataError(
                f"{files[0]} was scored with config {first.config_hash}, {path} with {found.config_hash}. Select from the "
                "files of one config."
            )
        rows += found.rows
        counts.update(found.counts)
    if first is None:
        raise DataError("There are no score files to select from. Score the pool first.")
    return first.config_hash, rows, dict(sorted(counts.items()))


_ONES = 0xFFFF_FFFF_FFFF_FFFF


class _Pool:
    """The rows of all files as three 64-bit words each: one for the score and two for the uid. The lowest are kept."""

    def __init__(
        self,
        files: Sequence[Path],
        weights: Mapping[str, float],
        config_hash: str,
        rows: int,
        counts: dict[str, int],
    ) -> None:
        self.files, self.weights = files, weights
        self.config_hash, self.rows, self.counts = config_hash, rows, counts
        self.ranges: dict[str, tuple[float, float]] = {}

    def measure(self) -> None:
        """Finds the range of each score. Raises: ``DataError`` naming files with scores that are not finite."""
        low = dict.fromkeys(self.weights, np.inf)
        high = dict.fromkeys(self.weights, -np.inf)
        wrong: Counter[tuple[str, str]] = Counter()
        for path in self.files:
            for batch in score_files.columns(path, list(self.weights)):
                for name, scores in batch.items():
                    bad = int((~np.isfinite(scores)).sum())
                    if bad:
                        wrong[str(path), name] += bad
                    elif len(scores):
                        low[name], high[name] = min(low[name], scores.min()), max(high[name], scores.max())
        if wrong:
            said = ", ".join(f"{path} ({count} of {name})" for (path, name), count in list(wrong.items())[:5])
            more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
            raise DataError(f"Scores that are not finite numbers in {said}{more}. Score these shards again.")
        self.ranges = {name: (float(low[name]), float(high[name])) for name in self.weights}

    def batches(self, *, with_uids: bool) -> Iterator[tuple[Path, list[np.ndarray]]]:
        """Each file with batches of its rows: the score's word and, ``with_uids``, the uid's two; uint64 [n] each."""
        for path in self.files:
            for batch in score_files.columns(path, [*self.weights, *(["uid"] if with_uids else [])]):
                parts = {name: selection.rescaled(batch[name], *self.ranges[name]) for name in self.weights}
                fused = selection.weighted_sum(parts, self.weights)
                # float64 numbers of at least 0 are ordered like their bits; inverted, the best scores are the lowest
                words = [np.uint64(_ONES) - fused.view(np.uint64)]
                yield path, words + ([batch["uid"]["f0"], batch["uid"]["f1"]] if with_uids else [])


def _last_kept(pool: _Pool, count: int) -> tuple[int, int, int]:
    """The words of the row at position ``count`` (from 1) in the order of all rows, which is the last one to keep."""
    place, rows = count - 1, pool.rows  # its position (from 0) among the rows that begin with the digits found so far
    found: list[int] = [0, 0, 0]
    level = 0
    while rows > _FEW and level < 3 * 64 // _DIGIT:
        word, shift = level * _DIGIT // 64, 64 - _DIGIT - level * _DIGIT % 64
        histogram = np.zeros(1 << _DIGIT, np.int64)
        for _, words in pool.batches(with_uids=word > 0):
            digits = (words[word][_begin_with(words, found, level)] >> np.uint64(shift)) & np.uint64((1 << _DIGIT) - 1)
            histogram += np.bincount(digits.astype(np.int64), minlength=1 << _DIGIT)
        up_to = np.cumsum(histogram)
        digit = int(np.searchsorted(up_to, place, side="right"))
        place, rows = place - int(up_to[digit] - histogram[digit]), int(histogram[digit])
        found[word] |= digit << shift
        level += 1
    rest: tuple[list[np.ndarray], ...] = ([], [], [])
    for _, words in pool.batches(with_uids=True):
        here = _begin_with(words, found, level)
        for part, word in zip(rest, words, strict=True):
            part.append(word[here])
    high, middle, low = map(np.concatenate, rest)
    row = np.lexsort((low, middle, high))[place]
    return int(high[row]), int(middle[row]), int(low[row])


def _begin_with(words: Sequence[np.ndarray], found: Sequence[int], level: int) -> np.ndarray:
    """Which rows begin with the first ``level`` digits of ``found``: bool [n]."""
    same = np.ones(len(words[0]), bool)
    for word, known in enumerate(found):
        bits = min(64, level * _DIGIT - 64 * word)
        if bits > 0:
            same &= words[word] >> np.uint64(64 - bits) == np.uint64(known >> (64 - bits))
    return same


def _write_kept(pool: _Pool, last: tuple[int, int, int], append: Callable[[np.ndarray], None], ranges: int) -> None:
    """Appends the sorted uids of all rows up to ``last``; reads the pool once per range of uids.

    Raises: ``DataError`` if the pool has a uid twice, kept or not.
    """
    high, middle, low = (np.uint64(word) for word in last)
    edges = [number * (1 << 64) // ranges for number in range(ranges)] + [1 << 64]
    for start, end in pairwise(edges):
        rows: list[np.ndarray] = []
        kept: list[np.ndarray] = []
        for _, (score, first, second) in pool.batches(with_uids=True):
            here = (first >= np.uint64(start)) & (first <= np.uint64(end - 1))
            score, first, second = score[here], first[here], second[here]
            tied = (first < middle) | ((first == middle) & (second <= low))
            rows.append(uids.as_bytes(uids.of_halves(first, second)))
            kept.append((score < high) | ((score == high) & tied))
        every = np.concatenate(rows)
        chosen = every[np.concatenate(kept)]
        rows.clear()
        every.sort()
        if len(twice := uids.repeated(every)):
            raise _double(pool, uids.from_bytes(twice[:1].copy()))
        chosen.sort()
        append(uids.from_bytes(chosen))


def _double(pool: _Pool, uid: np.ndarray) -> DataError:
    """The error about a duplicate uid; all files are read once more to name the places where it occurs."""
    places = [
        path.as_posix()
        for path in pool.files
        for batch in score_files.columns(path, ["uid"])
        for _ in range(int((batch["uid"] == uid[0]).sum()))
    ]
    folder = pool.files[0].parent
    return DataError(
        f"uid {uids.to_hex(uid)[0]} comes {len(places)} times: in {', '.join(places[:3])}. Each pair needs a uid of its own. Leave "
        "this one out of all shards but one, remove the score files of the shards you changed, and score these again: recipes "
        f"resume {folder.parent}. A shard that is a copy may go altogether, with its score file and its name in "
        f"{folder / 'shards.json'}. Then select again."
    )
