# SPDX-License-Identifier: Apache-2.0
"""Reads the samples of a shard from the members of a tar file, and finds everything that can be wrong with them.

A sample is a run of adjacent members with the same key: ``KEY.jpg`` (or jpeg, png, webp), ``KEY.txt``, and ``KEY.json``
with the ``uid``. If there is no ``KEY.txt``, the JSON's ``caption`` is the text. A key ends at the first dot, as in
webdataset: other parts such as ``KEY.seg.png`` are allowed, but not read.

Shards come from other people, so nothing in them is trusted, neither names nor sizes, and nothing is extracted to disk.
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
"""Number of bytes from which a text counts as long; long texts are kept."""

_NAMES = {"image": "image", "txt": "text", "json": "JSON"}
_MOST_BYTES = {"txt": 1 << 20, "json": 1 << 24, "image": images.MOST_BYTES}
_NAME = re.compile(r"(?:\./)*((?:.*/)?[^/.]+)\.([^/]+)")  # a key ends at its first dot, as in webdataset
# The errors of tarfile for damaged headers, of which it documents only the first.
_BROKEN = (tarfile.TarError, ValueError, OverflowError, RecursionError, MemoryError)

Place = tuple[int, int]
"""Offset and length in bytes."""


@dataclass(frozen=True)
class Fault:
    """A fault of a sample or of a whole shard."""

    reason: str
    """Kind of the fault, by which faults are counted."""
    line: str
    """The fault in words, with the sample's name; an error line puts the shard's name in front."""
    remedy: str = "Copy it again"
    """What the user can do about it."""


@dataclass(frozen=True)
class Remark:
    """A remark about a whole shard that was read completely; remarks are counted by reason."""

    reason: str


class FaultError(Exception):
    """An exception with a fault, made as ``FaultError(reason, line, remedy)``."""

    @property
    def fault(self) -> Fault:
        """The fault."""
        return Fault(*self.args)


@dataclass(frozen=True)
class Entry:
    """A sample whose text and JSON were read without a fault; its image has not been decoded."""

    key: str
    uid: str | None
    """``None`` if the JSON has no uid, or there is no JSON. Training needs no uid; scoring and selecting do."""
    text: str
    extra: dict[str, Any]
    """All other values of the JSON."""
    places: dict[str, Place]
    """Places of ``image``, ``txt`` and ``json`` in the shard; without ``txt``, the text is the JSON's ``caption``."""


@dataclass
class _Run:
    """Adjacent members of a tar file with the same key."""

    key: str
    places: dict[str, Place] = field(default_factory=dict)
    suffixes: dict[str, str] = field(default_factory=dict)
    """Suffix of the member for each part."""
    doubled: dict[str, str] = field(default_factory=dict)
    """Suffix of the last member for each part that occurs more than once."""
    others: list[str] = field(default_factory=list)
    """Suffixes of other parts, which contain a dot and end like an image, a text or JSON: ``seg.png``."""

    @property
    def is_whole(self) -> bool:
        return len(self.places) == len(_NAMES)

    def add(self, suffix: str, place: Place) -> bool:
        """Adds a member. Returns False, without adding it, if it begins a second complete sample with the same key."""
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
    """The samples of a shard in order, with a fault instead of each faulty sample.

    After a fault ``damaged shard`` nothing follows. Keys and uids of the shard are kept in memory, samples are not.

    Raises: ``OSError`` if the file cannot be opened.
    """
    keys: set[str] = set()
    uids: set[str] = set()
    told: set[str] = set()  # keys of scattered samples, each of which gives one fault
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
                scattered = _in_pieces(path) if scattered is None else scattered  # a second pass only if it is needed
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
    """One fault per pair whose name has a dot, so that its members count as parts of a sample with a shorter name."""
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
    """The keys whose members are not adjacent."""
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
    """The fault of an entry without a uid, where a uid is needed."""
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
    """Whether a member's name is printable and does not lead out of the folder that an archive is unpacked into."""
    return not (name.startswith("/") or ".." in name.split("/") or "\\" in name) and name.isprintable()


def decode(data: bytes, name: str) -> images.Decoded:
    """Decodes an image to RGB, by the rules of :mod:`recipes_lib.data.decode`. ``name`` is like "sample '000381'".

    Raises: :class:`FaultError` if it cannot be decoded, or is so large that decoding might fill the memory.
    """
    try:
        return images.decode(data)
    except images.ImageFault as fault:
        raise FaultError(fault.reason, f"the image of {name} {fault}", fault.remedy) from None


def read(file: BinaryIO, place: Place) -> bytes:
    """Reads the bytes at a place of an open shard."""
    file.seek(place[0])
    return file.read(place[1])


def split_name(name: str) -> tuple[str, str] | None:
    """Splits a member's name into key and suffix; ``None`` if it lacks one of them, or has a suffix that is not read.

    >>> split_name("./a/000381.jpg"), split_name("000381.seg.PNG"), split_name("000381.npy")
    (('a/000381', 'jpg'), ('000381', 'seg.png'), None)
    """
    match = _NAME.fullmatch(name)
    if match is None or _part(match[2].lower().rpartition(".")[2]) is None:
        return None
    return match[1], match[2].lower()


def _part(suffix: str) -> str | None:
    """The part that a suffix belongs to: ``image``, ``txt`` or ``json``; ``None`` for any other suffix."""
    if suffix in IMAGE_TYPES:
        return "image"
    return suffix if suffix in _NAMES else None


def _is_image(suffix: str) -> bool:
    return _part(suffix.rpartition(".")[2]) == "image"


def _samples(path: Path) -> Iterator[_Run | Fault | Remark]:
    """The runs of adjacent members with the same key; for a truncated shard, complete samples and then one fault."""
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
            run = None if cut or not run.is_whole else run  # the break is inside this sample
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
    """Key, suffix and place of each member that is read; a fault for each refused member, and for a damaged archive."""
    with path.open("rb") as file:
        size = path.stat().st_size
        try:
            with tarfile.open(fileobj=file, mode="r:") as archive:
                while (member := archive.next()) is not None:
                    archive.members.clear()  # otherwise tarfile keeps all members in memory
                    if member.size < 0:
                        raise tarfile.ReadError("negative size")
                    if not member.isdir():
                        yield from _of_use(member)
                end = archive.offset
            # at a damaged header tarfile ends without an error, as at the empty block that ends an archive
            file.seek(end)
            line = f"it breaks off at byte {end:,} of {size:,}"
            if file.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE):
                more = _data_from(file)
                if more is None:
                    padded = -(-(end + 2 * tarfile.BLOCKSIZE) // tarfile.RECORDSIZE) * tarfile.RECORDSIZE
                    if size > padded:  # an unfinished download may be filled with zeros
                        yield Remark("long tail of zeros in a shard")
                    return
                line = f"it ends at byte {end:,}, and yet data follows at byte {more:,} of {size:,} (shards joined, or a hole)"
        except _BROKEN as error:
            line = f"it breaks off, or is no tar file, with {size:,} bytes ({_short(str(error))})"
    yield Fault("damaged shard", line)


def _data_from(file: BinaryIO) -> int | None:
    """The position of the first non-zero byte from the file's current position on; ``None`` if there is none."""
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
        if any("\ud800" <= letter <= "\udfff" for letter in name):  # Python's way to keep bytes that are not UTF-8
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
    """The value on one line, shortened to 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
