# SPDX-License-Identifier: Apache-2.0
"""Reads lists of labelled images: text files with one image name per line, as papers on few labels publish them."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from recipes_lib.errors import DataError

_MOST_BYTES = 1 << 30
"""Size in bytes of the longest list, 1 GiB: about 10 million names of 100 letters."""


def lines(path: Path) -> dict[int, str]:
    """Reads the names in a list: line number (from 1) -> name, without blank lines.

    Raises: ``DataError`` if the file cannot be read, is not plain UTF-8 text, or has no name.
    """
    try:
        if path.exists() and not path.is_file():
            raise _unreadable(path, "it is no plain file")
        if path.stat().st_size > _MOST_BYTES:
            raise _unreadable(path, f"it has more than {_MOST_BYTES:,} bytes")
        text = path.read_text(encoding="utf-8-sig")  # some editors start a file with a byte-order mark
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error.strerror if isinstance(error, OSError) else "not UTF-8 text") from None
    found = {number: line.strip() for number, line in enumerate(text.splitlines(), start=1) if line.strip()}
    if not found:
        raise DataError(f"data.labelled = {path} names no image. Write one labelled image per line.")
    return found


def indices(path: Path, names: Sequence[str], *, root: Path | None = None, aside: Mapping[str, str] = {}) -> Tensor:
    """The indices (int64) in ``names`` of the images that a list names, in the list's order.

    A line is a whole name (``n01440764/n01440764_10026.JPEG``), optionally with ``./``, with ``root`` or with the name
    of that folder in front (``train/n01440764/...``). It may also be only the part after the last slash, as in the
    lists that the MSN paper's code publishes, if no other image has the same. ``aside`` maps names of images that were
    left out of ``names`` to the reason.

    Raises: ``DataError`` with file, line number and text of a line that names no image, several images, or an image
    that was named before.
    """
    position = {name: index for index, name in enumerate(names)}
    short = defaultdict(list)
    for name in [*names, *aside]:
        short[name.rsplit("/", 1)[-1]].append(name)
    chosen: dict[int, int] = {}
    for number, line in lines(path).items():
        where = f"{path}, line {number}: {line!r}"
        name = _whole(line, position, aside, root)
        options = short.get(name, [name]) if "/" not in name and name not in position else [name]
        if len(options) > 1:
            raise DataError(
                f"{where} names {len(options)} images: {options[0]} and {options[1]}{', ...' if options[2:] else ''}. "
                "Write the name with its folder."
            )
        if (reason := aside.get(options[0])) is not None:
            raise DataError(f"{where} {reason}. Take the line out.")
        if options[0] not in position:
            raise DataError(f"{where} names no image of the training set. Correct the line or take it out.")
        index = position[options[0]]
        if index in chosen:
            raise DataError(f"{where} was named in line {chosen[index]} already. Take one out.")
        chosen[index] = number
    return torch.tensor(list(chosen))


def _whole(line: str, position: Mapping[str, int], aside: Mapping[str, str], root: Path | None) -> str:
    """The image's name without the optional parts in front of it: ``./``, ``root`` or the name of that folder."""
    name = line
    while name.startswith("./"):
        name = name[2:]
    for before in () if root is None else (f"{root}/", f"{root.name}/"):
        if name not in position and name not in aside and name.startswith(before):
            return name.removeprefix(before)
    return name


def _unreadable(path: Path, reason: str) -> DataError:
    return DataError(f"data.labelled = {path} cannot be read: {reason}. Give a text file with one name per line.")
