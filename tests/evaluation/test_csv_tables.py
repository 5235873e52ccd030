# SPDX-License-Identifier: Apache-2.0
from recipes_lib.evaluation import csv_tables


def test_a_table_holds_no_cell_that_a_spreadsheet_would_run():
    rows = [("model", "low"), ("=cmd()", -0.5), ("+x", 1), ("-x", None), ("@x", float("nan")), ("\tx", "x")]
    lines = csv_tables.as_csv(rows).splitlines()
    assert lines == ["model,low", "'=cmd(),-0.5", "'+x,1", "'-x,", "'@x,", "'\tx,x"]


def test_nested_values_become_rows_with_a_column_for_each_level():
    values = {"a": {"x": {"n": 1, "m": 2}}, "b": {"y": {"n": 3, "m": 4}}}
    assert csv_tables.nested_rows(values, ("one", "two")) == [
        ("one", "two", "n", "m"), ("a", "x", 1, 2), ("b", "y", 3, 4),
    ]  # fmt: skip
