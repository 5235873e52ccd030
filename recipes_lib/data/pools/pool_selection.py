# SPDX-License-Identifier: Apache-2.0
"""The share of a pool to keep, out of its score files and in bounded memory, to the row what one sort would keep.

Every step reads the files once, 65,536 rows at a time, and keeps no row:

1. minimum, maximum, rows and scores that are not finite, of each signal;
2. a histogram of the first 16 bits of the fused score finds the bin in which the last row kept lies, the next histogram
   the bin within that bin, and so on until a bin has few rows, which are sorted. Scores that tie go on with the bits of
   the uid, so that a pool of equal scores takes no more memory than any other;
3. every row is compared with that last one. The uids are taken range by range, in rising order, so that a range at a
   time is sorted, searched for doubles and appended to the subset.

128 million rows: 1 reads 1 GB of scores, 2 as much, three to four times over, and 3 the uids (4 GB) and scores once for
each range; with ``memory_rows`` of 2**24, 16 bytes each and twice that while they are sorted, there are 8 ranges and at
most 0.8 GB. It all runs at the speed of reading parquet, and the files of a range, or of a step, may be read by as many
processes as there are; one is enough for 128 million rows, in minutes.

Source: the rule is that of :mod:`recipes_lib.data.pools.selection`; the uid file that of :mod:`recipes_lib.data.pools.uids`.
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
"""Bits that a histogram tells apart."""
_FEW = 1 << 16
"""Rows that are sorted and not counted any finer."""


@dataclass(frozen=True)
class Manifest:
    """What a subset is, for its reader."""

    config_hash: str
    """The config that scored the pool."""
    files: int
    pool: int
    """Pairs that have scores."""
    counts: dict[str, int]
    """What the shards' reader counted: pairs that could not be read and have no scores, by reason, and notes on others."""
    fraction: float
    kept: int
    weights: dict[str, float]
    ranges: dict[str, tuple[float, float]]
    """Signal -> lowest and highest score of the pool."""
    constant: list[str]
    """Signals whose scores are all equal, and which decided nothing."""
    threshold: float
    """The lowest fused score that was kept; of those that tie, the lowest uids were."""
    sha256: str
    """Of ``subset.npy``."""


def select(
    files: Sequence[Path], fraction: float, weights: Mapping[str, float], out: Path, *, memory_rows: int = 1 << 24
) -> Manifest:
    """Writes ``subset.npy`` and ``subset.json`` into the folder ``out``: the pairs with the highest fused scores.

    ``memory_rows``: uids held at a time. The order of ``files`` makes no difference.

    Raises: ``ValueError`` for a fraction or weights that are not allowed; ``DataError`` where files come from different
    configs, lack a signal, hold scores that are not finite or the same uid twice, or are damaged.
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
    """The config that all files come from, their rows, and what was counted as the shards were read."""
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
    """The rows of all files as three 64-bit words each, of which the lowest are kept: the score, the two of the uid."""

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
        """Finds each signal's range. Raises: ``DataError`` naming each file with scores that are not finite."""
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
        """A file and rows of it: the score's word, and those of the uid ``with_uids``: uint64 [n] each."""
        for path in self.files:
            for batch in score_files.columns(path, [*self.weights, *(["uid"] if with_uids else [])]):
                parts = {name: selection.rescaled(batch[name], *self.ranges[name]) for name in self.weights}
                fused = selection.weighted_sum(parts, self.weights)
                # doubles of at least 0 have the order of their bits; turned over, the best are the lowest
                words = [np.uint64(_ONES) - fused.view(np.uint64)]
                yield path, words + ([batch["uid"]["f0"], batch["uid"]["f1"]] if with_uids else [])


def _last_kept(pool: _Pool, count: int) -> tuple[int, int, int]:
    """The words of the row that comes ``count``-th."""
    place, rows = count - 1, pool.rows  # where it stands among the rows that begin with the digits found so far
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
    """Appends the uids of all rows up to ``last``, sorted, going through the pool once for each range of uids.

    Raises: ``DataError`` where a uid of the pool, kept or not, comes twice.
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
    """What to say of a uid that comes twice; the files are searched once more for it."""
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
