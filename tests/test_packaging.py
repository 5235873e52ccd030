# SPDX-License-Identifier: Apache-2.0
"""What a user of the wheel has: all of the library and the embedded data."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    """A wheel built from this tree, in a copy of it so that the tree stays clean."""
    pytest.importorskip("setuptools", minversion="77", reason="builds a wheel, which needs setuptools >= 77")
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "recipes_lib", "data"):
        subprocess.run(["cp", "-r", str(ROOT / name), str(tree)], check=True)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(out),
        str(tree),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return zipfile.ZipFile(next(out.glob("*.whl")))


def test_the_wheel_carries_the_embedded_data(wheel):
    packed = {
        name.removeprefix("recipes_lib/_data/") for name in wheel.namelist() if name.startswith("recipes_lib/_data/")
    }
    data = ROOT / "data"
    assert packed == {str(path.relative_to(data)) for path in data.rglob("*") if path.is_file()}


def test_the_wheel_carries_every_module(wheel):
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "recipes_lib").rglob("*.py")}
    assert modules <= set(wheel.namelist())


def test_the_wheel_carries_nothing_else(wheel):
    assert {name.split("/")[0].split("-")[0] for name in wheel.namelist()} == {"recipes_lib", "ssl_cookbook"}
