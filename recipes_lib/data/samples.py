# SPDX-License-Identifier: Apache-2.0
"""What lies in a shard: a tar's members, put together to samples, and all that can be wrong with them.

A sample is a run of members with one key: ``KEY.jpg`` (or jpeg, png, webp), ``KEY.txt``, ``KEY.json`` with the ``uid``.
A shard comes from elsewhere, so nothing in it is trusted, not names and not sizes, and nothing is extracted to disk.
"""

import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from recipes_lib.data import decode as images

IMAGE_TYPES = ("jpg", "jpeg", "png", "webp")
LONG_TEXT = 10_000
"""Bytes from which a text is counted as long. It is kept."""

_MOST_BYTES = {"txt": 1 << 20, "json": 1 << 24, "image": images.MOST_BYTES}
_UID = re.compile("[0-9a-f]{32}")
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


class FaultError(Exception):
    """Carries a fault out of a check, as ``FaultError(reason, line)``."""

    @property
    def fault(self) -> Fault:
        """What is wrong."""
        return Fault(*self.args)


@dataclass(frozen=True)
class Entry:
    """A sample whose text and JSON are in order; its image has not been looked at."""

    key: str
    uid: str
    text: str
    extra: dict[str, Any]
    places: dict[str, Place]
    """Where ``image``, ``txt`` and ``json`` lie in the shard."""


def entries(path: Path) -> Iterator[Entry | Fault]:
    """The samples of a shard in order, and in place of each that is not in order a fault.

    After a fault ``damaged shard`` nothing follows. Keeps the keys and uids of one shard in memory, no samples.

    Raises: ``OSError`` where the file cannot be opened.
    """
    keys: set[str] = set()
    uids: set[str] = set()
    with path.open("rb") as file:
        for found in _samples(path):
            if isinstance(found, Fault):
                yield found
                continue
            key, places = found
            try:
                entry = _entry(file, key, places, keys, uids)
            except FaultError as error:
                yield error.fault
            else:
                yield entry


def _entry(file: BinaryIO, key: str, places: dict[str, Place], keys: set[str], uids: set[str]) -> Entry:
    if key in keys:
        raise FaultError("duplicate key", f"there are two samples {key!r}")
    keys.add(key)
    for part, name in (("image", "image"), ("txt", "text"), ("json", "JSON")):
        if part not in places:
            raise FaultError(f"no {name}", f"sample {key!r} has no {name}")
        if places[part][1] > _MOST_BYTES[part]:
            size = f"{places[part][1]:,} bytes; at most {_MOST_BYTES[part]:,} are read"
            raise FaultError(f"{name} too large", f"the {name} of sample {key!r} has {size}")
    text = _text(read(file, places["txt"]), key)
    extra = _json(read(file, places["json"]), key)
    uid = extra.pop("uid", None)
    if not isinstance(uid, str) or not is_uid(uid.lower()):
        raise FaultError("malformed uid", f"sample {key!r} has uid {_short(uid)}, not 32 hexadecimal digits")
    uid = uid.lower()
    if uid in uids:
        raise FaultError("duplicate uid", f"two samples have uid {uid}, the second is {key!r}")
    uids.add(uid)
    return Entry(key, uid, text, extra, places)


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


def is_uid(text: str) -> bool:
    """Whether a text is 32 hexadecimal digits in lower case."""
    return _UID.fullmatch(text) is not None


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
        raise FaultError(fault.reason, f"the image of {name} {fault}") from None


def read(file: BinaryIO, place: Place) -> bytes:
    """The bytes at a place of an open shard."""
    file.seek(place[0])
    return file.read(place[1])


def split_name(name: str) -> tuple[str, str] | None:
    """Key and part of a member: ``image``, ``txt`` or ``json``; None for a file that is none of these.

    >>> split_name("./a/000381.jpg")
    ('a/000381', 'image')
    """
    match = _NAME.fullmatch(name)
    suffix = match[2].lower() if match else ""
    part = "image" if suffix in IMAGE_TYPES else suffix
    return (match[1], part) if part in _MOST_BYTES else None


def _samples(path: Path) -> Iterator[tuple[str, dict[str, Place]] | Fault]:
    """Key and places of each run of members; where the shard breaks off, the whole samples before it and one fault."""
    size, last = path.stat().st_size, None
    key, places = None, {}
    for member in _members(path):
        if isinstance(member, Fault) and member.reason != "damaged shard":
            yield member
            continue
        if not isinstance(member, Fault):
            name, part, place = member
            if name == key and part not in places:
                places[part] = place
                continue
        elif len(places) < 3 or any(offset + length > size for offset, length in places.values()):
            key = None  # the break is inside of this sample
        if key is not None:
            yield key, places
            last = key
        if isinstance(member, Fault):
            whole = "it has no whole sample" if last is None else f"its last whole sample is {last!r}"
            yield Fault(member.reason, f"{member.line}; {whole}")
            return
        key, places = name, {part: place}
    if key is not None:
        yield key, places


def _members(path: Path) -> Iterator[tuple[str, str, Place] | Fault]:
    """Key, part and place of each member of use; a fault for each that is refused, and where the archive breaks."""
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
                file.seek(archive.offset)
                # where a header is broken tarfile ends without a word, as at the empty block that ends an archive
                if file.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE):
                    return
                line = f"it breaks off at byte {archive.offset:,} of {size:,}"
        except _BROKEN as error:
            line = f"it breaks off, or is no tar file, with {size:,} bytes ({_short(str(error))})"
    yield Fault("damaged shard", line)


def _of_use(member: tarfile.TarInfo) -> Iterator[tuple[str, str, Place] | Fault]:
    name = member.name
    outside = not is_inside(name)
    if outside or not member.isreg() or member.issparse():
        what = "a name that leads elsewhere" if outside else "no plain file"
        yield Fault("unsafe member", f"member {_short(name)} is refused: {what}")
    elif found := split_name(name):
        yield *found, (member.offset_data, member.size)


def _short(value: object) -> str:
    """The value on one line, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
