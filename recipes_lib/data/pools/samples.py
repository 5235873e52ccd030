# SPDX-License-Identifier: Apache-2.0
"""What lies in a shard: a tar's members, put together to samples, and all that can be wrong with them.

A sample is a run of members with one key: ``KEY.jpg`` (or jpeg, png, webp), ``KEY.txt``, ``KEY.json`` with the ``uid``.
Where there is no ``KEY.txt``, the JSON's ``caption`` is the text. A key ends at the first dot, as in webdataset: further
parts such as ``KEY.seg.png`` are allowed, and not read.
A shard comes from elsewhere, so nothing in it is trusted, not names and not sizes, and nothing is extracted to disk.
"""

import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from recipes_lib.data import decode as images
from recipes_lib.data.pools.uids import is_uid

IMAGE_TYPES = ("jpg", "jpeg", "png", "webp")
LONG_TEXT = 10_000
"""Bytes from which a text is counted as long. It is kept."""

_NAMES = {"image": "image", "txt": "text", "json": "JSON"}
_MOST_BYTES = {"txt": 1 << 20, "json": 1 << 24, "image": images.MOST_BYTES}
_NAME = re.compile(r"(?:\./)*((?:.*/)?[^/.]+)\.([^/]+)")  # a key ends at its first dot, as in webdataset
# What tarfile raises on headers that make no sense; of these it promises only the first.
_BROKEN = (tarfile.TarError, ValueError, OverflowError, RecursionError, MemoryError)

Place = tuple[int, int]
"""Offset and length in bytes."""


@dataclass(frozen=True)
class Fault:
    """Something wrong with a sample, or with a whole shard."""

    reason: str
    """Its kind, under which it is counted."""
    line: str
    """What is wrong, naming the sample; the shard's name goes before it."""
    remedy: str = "Copy it again"
    """What to do about it."""


@dataclass(frozen=True)
class Remark:
    """Something odd about a whole shard that is counted, though all of it was read."""

    reason: str


class FaultError(Exception):
    """Carries a fault out of a check, as ``FaultError(reason, line, remedy)``."""

    @property
    def fault(self) -> Fault:
        """What is wrong."""
        return Fault(*self.args)


@dataclass(frozen=True)
class Entry:
    """A sample whose text and JSON are in order; its image has not been looked at."""

    key: str
    uid: str | None
    """None: the JSON names none, or there is no JSON. Training needs no uid, scoring and selecting do."""
    text: str
    extra: dict[str, Any]
    places: dict[str, Place]
    """Where ``image``, ``txt`` and ``json`` lie in the shard; without ``txt``, the text is the JSON's ``caption``."""


@dataclass
class _Run:
    """Neighbouring members of one key."""

    key: str
    places: dict[str, Place] = field(default_factory=dict)
    suffixes: dict[str, str] = field(default_factory=dict)
    """What the member of each part ended in."""
    doubled: dict[str, str] = field(default_factory=dict)
    """Of a part that came more than once, what the last one ended in."""
    others: list[str] = field(default_factory=list)
    """Suffixes with a dot of their own that end as an image, a text or JSON does: ``seg.png``."""

    @property
    def is_whole(self) -> bool:
        return len(self.places) == len(_NAMES)

    def add(self, suffix: str, place: Place) -> bool:
        """Takes a member in. False: a whole sample of the same key begins anew with it."""
        part = _part(suffix)
        if part is None:
            self.others.append(suffix)
        elif part not in self.places:
            self.places[part], self.suffixes[part] = place, suffix
        elif self.is_whole and suffix == self.suffixes[part]:
            return False
        else:
            self.doubled[part] = suffix
        return True


def entries(path: Path) -> Iterator[Entry | Fault | Remark]:
    """The samples of a shard in order, and in place of each that is not in order a fault.

    After a fault ``damaged shard`` nothing follows. Keeps the keys and uids of one shard in memory, no samples.

    Raises: ``OSError`` where the file cannot be opened.
    """
    keys: set[str] = set()
    uids: set[str] = set()
    told: set[str] = set()  # samples in pieces
    scattered: set[str] | None = None
    with path.open("rb") as file:
        for found in _samples(path):
            if not isinstance(found, _Run):
                yield found
                continue
            yield from (dotted := _dotted(found))
            if not found.places and (dotted or not any(map(_is_image, found.others))):
                continue
            if found.key in told:
                continue
            if not found.is_whole and found.key not in keys:
                scattered = _in_pieces(path) if scattered is None else scattered  # where all is well, no second pass
                if found.key in scattered:
                    told.add(found.key)
                    line = f"the members of sample {found.key!r} do not stand together"
                    yield Fault("scattered sample", line, "Pack it anew in the order of names (tar --sort=name)")
                    continue
            try:
                yield _entry(file, found, keys, uids)
            except FaultError as error:
                yield error.fault


def _dotted(run: _Run) -> list[Fault]:
    """A fault for each pair whose name has a dot: its members count as parts of a sample of a shorter name."""
    stems: dict[str, set[str]] = {}
    for suffix in run.others:
        stem, _, last = suffix.rpartition(".")
        stems.setdefault(stem, set()).add(_part(last))
    return [
        Fault(
            "dotted name",
            f"the pair {f'{run.key}.{stem}'!r} has a dot in its name, and a key ends at the first dot: its members are taken "
            f"for parts of {run.key!r}",
            "Rename them without dots",
        )
        for stem, parts in stems.items()
        if {"image", "txt"} <= parts
    ]


def _in_pieces(path: Path) -> set[str]:
    """The keys whose members do not stand together."""
    seen: set[str] = set()
    found: set[str] = set()
    last = None
    for member in _members(path):
        if isinstance(member, (Fault, Remark)) or member[0] == last:
            continue
        last = member[0]
        (found if last in seen else seen).add(last)
    return found


def _entry(file: BinaryIO, run: _Run, keys: set[str], uids: set[str]) -> Entry:
    key, places = run.key, run.places
    if key in keys:
        raise FaultError("duplicate key", f"there are two samples {key!r}")
    keys.add(key)
    for part, suffix in run.doubled.items():
        name, both = _NAMES[part], f"{key}.{run.suffixes[part]} and {key}.{suffix}"
        raise FaultError(f"two {name}s", f"there are two {name}s for sample {key!r}: {both}", "Keep one of them")
    if "image" not in places:
        other = next(filter(_is_image, run.others), None)
        why = f": part {other!r} is none, since a key ends at the first dot" if other else ""
        raise FaultError("no image", f"sample {key!r} has no image{why}")
    for part, place in places.items():
        if place[1] > _MOST_BYTES[part]:
            size = f"{place[1]:,} bytes; at most {_MOST_BYTES[part]:,} are read"
            raise FaultError(f"{_NAMES[part]} too large", f"the {_NAMES[part]} of sample {key!r} has {size}")
    extra = _json(read(file, places["json"]), key) if "json" in places else {}
    text = _text(read(file, places["txt"]), key) if "txt" in places else extra.get("caption")
    if not isinstance(text, str):
        raise FaultError("no text", f"sample {key!r} has no text, as a .txt or as the caption of its JSON")
    uid = extra.pop("uid", None)
    if uid is not None:
        if not isinstance(uid, str) or not is_uid(uid.lower()):
            line = f"sample {key!r} has uid {_short(uid)}, not 32 hexadecimal digits"
            raise FaultError("malformed uid", line, "Correct it")
        uid = uid.lower()
        if uid in uids:
            raise FaultError("duplicate uid", f"two samples have uid {uid}, the second is {key!r}", "Leave one out")
        uids.add(uid)
    return Entry(key, uid, text, extra, places)


def no_uid(entry: Entry) -> FaultError:
    """What is wrong with an entry without uid where one is needed."""
    return FaultError(
        "no uid",
        f"sample {entry.key!r} has no uid, by which scores and selections name a pair",
        "Add one to its JSON: 32 hexadecimal digits of its own, such as the first 32 of its URL's SHA-256",
    )


def _text(data: bytes, key: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FaultError("text not UTF-8", f"the text of sample {key!r} is not UTF-8 at byte {error.start}") from None


def _json(data: bytes, key: str) -> dict[str, Any]:
    try:
        extra = json.loads(data)
    except (ValueError, RecursionError):
        extra = None
    if not isinstance(extra, dict):
        raise FaultError("damaged JSON", f"the JSON of sample {key!r} is no object")
    return extra


def is_inside(name: str) -> bool:
    """Whether a member's name stays in the folder that an archive would be unpacked in, and can be printed."""
    return not (name.startswith("/") or ".." in name.split("/") or "\\" in name) and name.isprintable()


def decode(data: bytes, name: str) -> images.Decoded:
    """An image in RGB, by the rules of :mod:`recipes_lib.data.decode`. ``name`` says which, as in "sample '000381'".

    Raises: :class:`FaultError` where it cannot be read, or is so large that decoding it might fill the memory.
    """
    try:
        return images.decode(data)
    except images.ImageFault as fault:
        raise FaultError(fault.reason, f"the image of {name} {fault}", fault.remedy) from None


def read(file: BinaryIO, place: Place) -> bytes:
    """The bytes at a place of an open shard."""
    file.seek(place[0])
    return file.read(place[1])


def split_name(name: str) -> tuple[str, str] | None:
    """Key and suffix of a member; None for a file that has not both, or whose suffix ends in none that is read.

    >>> split_name("./a/000381.jpg"), split_name("000381.seg.PNG"), split_name("000381.npy")
    (('a/000381', 'jpg'), ('000381', 'seg.png'), None)
    """
    match = _NAME.fullmatch(name)
    if match is None or _part(match[2].lower().rpartition(".")[2]) is None:
        return None
    return match[1], match[2].lower()


def _part(suffix: str) -> str | None:
    """``image``, ``txt`` or ``json``; None for a suffix that is none of these."""
    if suffix in IMAGE_TYPES:
        return "image"
    return suffix if suffix in _NAMES else None


def _is_image(suffix: str) -> bool:
    return _part(suffix.rpartition(".")[2]) == "image"


def _samples(path: Path) -> Iterator[_Run | Fault | Remark]:
    """The runs of members of one key; where the shard breaks off, the whole samples before it and one fault."""
    size, last, run = path.stat().st_size, None, None
    for member in _members(path):
        if isinstance(member, Remark) or (isinstance(member, Fault) and member.reason != "damaged shard"):
            yield member
            continue
        broken = isinstance(member, Fault)
        if not broken and run is not None and member[0] == run.key and run.add(*member[1:]):
            continue
        if broken and run is not None:
            cut = any(offset + length > size for offset, length in run.places.values())
            run = None if cut or not run.is_whole else run  # the break is inside of this sample
        if run is not None:
            yield run
            last = run.key
        if broken:
            whole = "it has no whole sample" if last is None else f"its last whole sample is {last!r}"
            yield Fault(member.reason, f"{member.line}; {whole}")
            return
        run = _Run(member[0])
        run.add(*member[1:])
    if run is not None:
        yield run


def _members(path: Path) -> Iterator[tuple[str, str, Place] | Fault | Remark]:
    """Key, suffix and place of each member of use; a fault for each that is refused, and where the archive breaks."""
    with path.open("rb") as file:
        size = path.stat().st_size
        try:
            with tarfile.open(fileobj=file, mode="r:") as archive:
                while (member := archive.next()) is not None:
                    archive.members.clear()  # tarfile would keep all of them
                    if member.size < 0:
                        raise tarfile.ReadError("negative size")
                    if not member.isdir():
                        yield from _of_use(member)
                end = archive.offset
            # where a header is broken tarfile ends without a word, as at the empty block that ends an archive
            file.seek(end)
            line = f"it breaks off at byte {end:,} of {size:,}"
            if file.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE):
                more = _data_from(file)
                if more is None:
                    padded = -(-(end + 2 * tarfile.BLOCKSIZE) // tarfile.RECORDSIZE) * tarfile.RECORDSIZE
                    if size > padded:  # an unfinished download may be filled up with zeros
                        yield Remark("long tail of zeros in a shard")
                    return
                line = f"it ends at byte {end:,}, and yet data follows at byte {more:,} of {size:,} (shards joined, or a hole)"
        except _BROKEN as error:
            line = f"it breaks off, or is no tar file, with {size:,} bytes ({_short(str(error))})"
    yield Fault("damaged shard", line)


def _data_from(file: BinaryIO) -> int | None:
    """The place of the first byte that is not zero, from where the file stands; None: there is none."""
    place = file.tell()
    while chunk := file.read(1 << 20):
        rest = chunk.lstrip(b"\0")
        if rest:
            return place + len(chunk) - len(rest)
        place += len(chunk)
    return None


def _of_use(member: tarfile.TarInfo) -> Iterator[tuple[str, str, Place] | Fault]:
    name, why = member.name, None
    if not is_inside(name):
        why = "its name leads elsewhere"
        if any("\ud800" <= letter <= "\udfff" for letter in name):  # how Python keeps other bytes
            why = "its name is not UTF-8"
        elif not name.isprintable():
            why = "its name has signs that cannot be printed"
    elif not member.isreg() or member.issparse():
        why = "it is no plain file"
    if why:
        yield Fault("unsafe member", f"member {_short(name)} is refused: {why}")
    elif found := split_name(name):
        yield *found, (member.offset_data, member.size)


def _short(value: object) -> str:
    """The value on one line, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
