# SPDX-License-Identifier: Apache-2.0
"""Finds the data that comes with the book: in ``data/`` of a checkout, in ``recipes_lib/_data`` of an installation."""

from pathlib import Path

import recipes_lib
from recipes_lib.errors import DataError


def path(name: str) -> Path:
    """The path of the embedded file or folder ``name``, such as ``cooked/msn``.

    Raises: ``DataError`` if it does not exist.
    """
    package = Path(recipes_lib.__file__).parent
    installed = package / "_data"
    folder = installed if installed.is_dir() else package.parent / "data"
    if not (folder / name).exists():
        raise DataError(f"There is no embedded data {name} in {folder}. Install the package again.")
    return folder / name
