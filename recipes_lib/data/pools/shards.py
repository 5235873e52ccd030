# SPDX-License-Identifier: Apache-2.0
"""Reads, finds and writes shards: tar files of image-text pairs in the layout of webdataset and DataComp's tools."""

import glob
import io
import itertools
import json
import os
import re
import shutil
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Literal

from PIL import Image

from recipes_lib import durable
from recipes_lib.data.pairs import Pair, PairSet
from recipes_lib.data.pools import samples
from recipes_lib.data.pools.uids import is_uid
from recipes_lib.errors import DataError

OnDamage = Literal["stop", "skip"]


def read(path: Path, *, on_damage: OnDamage, counts: Counter | None = None) -> Iterator[Pair]:
    """Reads the pairs of one shard in order, one at a time.

    ``on_damage`` = stop raises at the first fault; skip leaves faulty pairs out and counts them in ``counts`` by reason
    (``damaged image``, ``malformed uid``, ...). Pairs with an ``empty text``, a ``long text`` of 10 kB or more, or a
    remark of the image decoder (:mod:`recipes_lib.data.decode`) are kept and counted.

    Raises: ``DataError`` in one line that names the shard and the sample; also with skip if the file is missing.
    """
    counts = Counter() if counts is None else counts
    if not path.is_file():
        raise DataError(f"Shard {path} is missing. Copy it again, or leave it out.")
    with path.open("rb") as file:
        for entry in samples.entries(path):
            found = entry
            if isinstance(entry, samples.Entry):
                try:
                    pair, noted = _pair(file, entry)
                except samples.FaultError as error:
                    found = error.fault
                else:
                    counts.update(noted)
                    yield pair
                    continue
            if isinstance(found, samples.Fault) and on_damage == "stop":
                raise DataError(complaint(path, found))
            counts[found.reason] += 1


def _pair(file: BinaryIO, entry: samples.Entry) -> tuple[Pair, list[str]]:
    """The pair of an entry with its decoded image, and remarks about it. Raises: :class:`samples.FaultError`."""
    if entry.uid is None:
        raise samples.no_uid(entry)
    decoded = samples.decode(samples.read(file, entry.places["image"]), f"sample {entry.key!r}")
    return Pair(entry.uid, entry.key, entry.text, decoded.image, entry.extra), [*remarks(entry.text), *decoded.remarks]


def check(path: Path) -> None:
    """Reads a shard's first pair and its last bytes, so that a file that is no tar or is truncated is found early.

    Raises: ``DataError`` in one line.
    """
    next(read(path, on_damage="stop"), None)
    with path.open("rb") as file:
        file.seek(-tarfile.BLOCKSIZE, os.SEEK_END)
        if file.read() != bytes(tarfile.BLOCKSIZE):
            line = "it does not end as a tar file does, so it was cut short"
            raise DataError(complaint(path, samples.Fault("damaged shard", line)))


def remarks(text: str) -> list[str]:
    """The remarks, which are counted, about a text that is kept."""
    short, long = not text.strip(), len(text.encode()) >= samples.LONG_TEXT
    return ["empty text"] * short + ["long text"] * long


def complaint(path: Path, fault: samples.Fault) -> str:
    """A fault as one error line, with what to do about it."""
    return f"Shard {path}: {fault.line}. {fault.remedy}, or pass over what is damaged with --data.on-damage skip."


def find(root: str | Path) -> list[Path]:
    """The sorted shards of a pool; ``root`` is a folder of tar files, one file, or a pattern.

    A pattern can have ``*``, ``?`` and braces: ``pool/{00000000..00000127}.tar`` or ``{a,b}/*.tar``.

    Raises: ``DataError`` if there is no shard, a shard named by the pattern is missing, or a range runs backwards.
    """
    if Path(root).is_dir():
        found = [path for path in Path(root).glob("*.tar") if not path.name.startswith(".")]
        if not found:
            raise DataError(f"There is no .tar file in {root}. Give the folder that holds the shards, or a pattern.")
        return sorted(found)
    found = set()
    for name in _expand(str(root)):
        matches = [name] if Path(name).is_file() else glob.glob(name)
        if not matches:
            raise DataError(f"There is no shard {name}. Copy it, or correct data.root = {root}.")
        found.update(map(Path, matches))
    return sorted(found)


def _expand(pattern: str) -> Iterator[str]:
    """All names that a pattern with braces stands for, one at a time, since a range may be too long for the memory."""
    brace = re.search(r"\{([^{}]*)\}", pattern)  # an innermost brace; the recursion expands the others
    if not brace:
        yield pattern
        return
    options: Iterable[str] = brace[1].split(",")
    if ends := re.fullmatch(r"(\d{1,18})\.\.(\d{1,18})", brace[1]):
        first, last = int(ends[1]), int(ends[2])
        if first > last:
            raise DataError(f"The range {brace[0]} of shards runs backwards. Write {{{ends[2]}..{ends[1]}}}.")
        options = (f"{number:0{len(ends[1])}d}" for number in range(first, last + 1))
    before, after = pattern[: brace.start()], pattern[brace.end() :]
    for option in options:
        yield from _expand(before + option + after)


def write(pairs: Iterable[Pair] | PairSet, folder: Path, per_shard: int) -> list[Path]:
    """Writes ``00000000.tar`` and so on, with ``per_shard`` pairs each, into a new folder; returns their paths.

    The folder appears when all shards are on disk. Equal pairs give equal bytes: images are PNG, times are 0.

    Raises: ``DataError`` if the folder is not empty; ``ValueError`` for a pair that could not be read back.
    """
    if per_shard < 1:
        raise ValueError(f"per_shard = {per_shard} is not allowed: use at least 1")
    if folder.is_dir() and any(folder.iterdir()):
        raise DataError(f"{folder} is not empty. Name another folder for the shards, or remove this one.")
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # the remains of a killed run
    partial.mkdir(parents=True)
    source = iter(_each(pairs) if isinstance(pairs, PairSet) else pairs)
    names = []
    while (first := next(source, None)) is not None:
        names.append(f"{len(names):08d}.tar")
        _write_one(itertools.chain([first], itertools.islice(source, per_shard - 1)), partial / names[-1])
    if not names:
        raise ValueError("there are no pairs to write")
    durable.sync(partial)
    os.replace(partial, folder)
    durable.sync(folder.parent)
    return [folder / name for name in names]


def _each(pairs: PairSet) -> Iterator[Pair]:
    for row, image in enumerate(pairs.images):
        picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
        yield Pair(pairs.uids[row], f"{row:09d}", pairs.texts[row], picture)


def _write_one(pairs: Iterable[Pair], path: Path) -> None:
    keys: set[str] = set()
    uids: set[str] = set()
    with tarfile.open(path, "w") as archive:
        for pair in pairs:
            _check(pair, keys, uids)
            picture = io.BytesIO()
            pair.image.save(picture, "png")
            facts = json.dumps({**pair.extra, "uid": pair.uid}, sort_keys=True)
            parts = {"png": picture.getvalue(), "txt": pair.text.encode(), "json": facts.encode()}
            for suffix, data in parts.items():
                member = tarfile.TarInfo(f"{pair.key}.{suffix}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
            archive.members.clear()  # otherwise tarfile keeps all members in memory
    durable.sync(path)


def _check(pair: Pair, keys: set[str], uids: set[str]) -> None:
    """Adds a pair's key and uid to the sets. Raises: ``ValueError`` if :func:`read` would refuse the pair."""
    if samples.split_name(f"{pair.key}.txt") != (pair.key, "txt") or not samples.is_inside(pair.key):
        raise ValueError(f"key = {pair.key!r} is not allowed: use a name without dots")
    if not is_uid(pair.uid):
        raise ValueError(f"uid = {pair.uid!r} is not allowed: use 32 hexadecimal digits, in lower case")
    if pair.key in keys or pair.uid in uids:
        raise ValueError(f"two pairs of a shard have key {pair.key!r} or uid {pair.uid}: give each its own")
    keys.add(pair.key)
    uids.add(pair.uid)
