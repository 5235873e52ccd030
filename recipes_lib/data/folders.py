# SPDX-License-Identifier: Apache-2.0
"""Lists the images under a folder and their classes, by file names only: no file is opened.

Each sub-folder is a class, and all images below it belong to this class. Images beside the class folders, or in a
sub-folder called ``unlabeled`` or ``unlabelled``, have no label. Other kinds of files, and files that other programs
leave behind (previews, notes of file systems, hidden files), are skipped and counted.
"""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from recipes_lib.data.images import UNLABELLED, ImageFiles
from recipes_lib.errors import DataError

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".avif", ".bmp", ".ppm", ".pgm", ".pbm", ".pnm", ".tif",
            ".tiff", ".gif")  # fmt: skip
"""Suffixes of image files, in lower case: the usual ones of the formats that :mod:`recipes_lib.data.decode` decodes."""

_POOLS = ("unlabeled", "unlabelled")
_LEFT_BEHIND = ("@eaDir", "__MACOSX", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found")

_MOST_KINDS = 12
"""The number of kinds of skipped files that are named to the user, the most frequent ones."""


@dataclass(frozen=True)
class Listing:
    """The image files under a folder."""

    names: list[str]
    """Paths relative to the folder: those of each class, sorted, then those without a label."""
    labels: list[int]
    """Positions in ``classes``, or ``UNLABELLED``."""
    classes: tuple[str, ...]
    """The names of the class folders, sorted."""
    passed_over: Counter
    """The number of skipped files and folders of each kind."""


def read(folder: Path, *, classes: bool = True) -> ImageFiles:
    """Finds the images under ``folder`` and their classes.

    Without ``classes`` only the images directly in ``folder`` are found, without labels. ``labels`` is None if no image
    has a label.

    Raises: ``DataError`` if there is no image, or a class folder has none.
    """
    found = listing(folder, classes=classes)
    kinds = ", ".join(SUFFIXES)
    empty = sorted(set(found.classes) - {found.classes[label] for label in found.labels if label != UNLABELLED})
    if empty:
        raise DataError(f"{folder}: Found no valid file for the classes {', '.join(empty)}. Images end in {kinds}.")
    if not found.names:
        raise DataError(f"{folder} has no image. Images end in {kinds}.")
    labels = torch.tensor(found.labels) if found.classes else None
    return ImageFiles(folder, np.array(found.names), labels, found.classes, _notes(folder, found))


def listing(folder: Path, *, classes: bool = True) -> Listing:
    """Lists the image files of which :func:`read` makes a data set.

    Raises: ``OSError`` if the folder cannot be read.
    """
    passed_over: Counter = Counter()
    inside = sorted(os.scandir(folder), key=lambda entry: entry.name)
    folders = [entry.name for entry in inside if entry.is_dir() and _is_wanted(entry.name, passed_over)]
    loose = [entry.name for entry in inside if not entry.is_dir() and is_image(entry.name, passed_over)]
    if not classes:
        passed_over.update(f"{name}/" for name in folders)
        return Listing(loose, [UNLABELLED] * len(loose), (), passed_over)
    known = tuple(name for name in folders if name.lower() not in _POOLS)
    names, labels = [], []
    for label, name in enumerate(known):
        below = list(_below(folder, name, passed_over))
        names += below
        labels += [label] * len(below)
    names += loose + [path for name in folders if name not in known for path in _below(folder, name, passed_over)]
    return Listing(names, labels + [UNLABELLED] * (len(names) - len(labels)), known, passed_over)


def is_image(name: str, passed_over: Counter) -> bool:
    """Whether a file is an image by its name; if not, it is counted in ``passed_over``."""
    suffix = os.path.splitext(name)[1].lower()
    if name.startswith("."):
        passed_over["hidden files"] += 1
    elif suffix not in SUFFIXES:
        passed_over[suffix or "files without a suffix"] += 1
    else:
        return True
    return False


def _below(folder: Path, name: str, passed_over: Counter) -> Iterator[str]:
    """Yields the images at any depth below ``folder/name``, relative to ``folder``, in an order given by names only."""
    places = []
    start = len(os.path.join(folder, ""))
    for place, below, files in os.walk(os.path.join(folder, name), followlinks=True):
        here = os.path.realpath(place)
        below[:] = [sub for sub in below if _is_wanted(sub, passed_over) and not _leads_back(here, place, sub)]
        places.append((place, files))
    for place, files in sorted(places):
        for file in sorted(files):
            if is_image(file, passed_over):
                yield os.path.join(place, file)[start:]


def _is_wanted(name: str, passed_over: Counter) -> bool:
    left_behind = name.startswith(".") or name in _LEFT_BEHIND
    passed_over.update([f"{name}/"] if left_behind else [])
    return not left_behind


def _leads_back(here: str, place: str, sub: str) -> bool:
    """Whether a sub-folder is a link to a folder that contains it: following the link would never end."""
    path = os.path.join(place, sub)
    return os.path.islink(path) and f"{here}{os.sep}".startswith(f"{os.path.realpath(path)}{os.sep}")


def _notes(folder: Path, found: Listing) -> tuple[str, ...]:
    unlabelled = found.labels.count(UNLABELLED)
    if not found.passed_over and not (found.classes and unlabelled):
        return ()
    line = f"{folder}: {len(found.names):,} images"
    if found.classes:
        line += f" of {len(found.classes):,} classes" + (f", {unlabelled:,} without a label" if unlabelled else "")
    if found.passed_over:
        named = found.passed_over.most_common(_MOST_KINDS)
        kinds = ", ".join(f"{kind if kind.isprintable() else repr(kind)} {number:,}" for kind, number in sorted(named))
        kinds += ", ..." if len(named) < len(found.passed_over) else ""
        line += f"; {found.passed_over.total():,} files and folders passed over ({kinds})"
    return (f"{line}.",)
