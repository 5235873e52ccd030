# SPDX-License-Identifier: Apache-2.0
"""Tables of results as CSV files."""

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from recipes_lib.factors import predictions

Rows = Iterable[Sequence[Any]]
"""A row of column names, followed by rows of values."""


def nested_rows(values: Mapping[str, Any], columns: Sequence[str]) -> list[Sequence[Any]]:
    """Rows of the innermost mappings of nested mappings; ``columns`` names the levels above them."""

    def walk(level: Mapping[str, Any], before: tuple[str, ...]) -> Iterable[tuple[tuple[str, ...], Mapping[str, Any]]]:
        for key, value in level.items():
            path = (*before, key)
            yield from walk(value, path) if len(path) < len(columns) else [(path, value)]

    rows = list(walk(values, ()))
    return [(*columns, *rows[0][1]), *((*path, *figures.values()) for path, figures in rows)]


def as_csv(rows: Rows) -> str:
    """The text of a CSV file, with numbers in full digits and nan as an empty cell.

    Names that a spreadsheet would run as formulas are quoted.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    for row in rows:
        writer.writerow(_cell(value) for value in row)
    return file.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, str):
        return predictions.cell(value)
    return "" if isinstance(value, float) and math.isnan(value) else value
