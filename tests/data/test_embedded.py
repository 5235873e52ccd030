# SPDX-License-Identifier: Apache-2.0
import pytest

import recipes_lib
from recipes_lib.data import embedded
from recipes_lib.errors import DataError


@pytest.mark.parametrize("folder", ["package/_data", "data"])
def test_data_is_found_in_an_installation_and_in_a_checkout(tmp_path, monkeypatch, folder):
    (tmp_path / "package").mkdir()
    (tmp_path / folder).mkdir(parents=True)
    (tmp_path / folder / "table.csv").touch()
    monkeypatch.setattr(recipes_lib, "__file__", str(tmp_path / "package" / "__init__.py"))
    assert embedded.path("table.csv") == tmp_path / folder / "table.csv"
    with pytest.raises(DataError, match="There is no embedded data gone in"):
        embedded.path("gone")
