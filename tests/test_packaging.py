# SPDX-License-Identifier: Apache-2.0
"""What a user of the wheel has: all of the library and the embedded data."""

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    """A wheel built from this tree, in a copy of it so that the tree stays clean."""
    pytest.importorskip("setuptools", minversion="84.2", reason="builds a wheel, which needs setuptools >= 84.2")
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


def test_the_wheel_says_that_its_types_can_be_checked_against(wheel):
    assert "recipes_lib/py.typed" in wheel.namelist()


def test_the_wheel_carries_nothing_else(wheel):
    assert {name.split("/")[0].split("-")[0] for name in wheel.namelist()} == {"recipes_lib", "ssl_cookbook"}


def test_every_way_to_set_up_installs_the_same_extras():
    """README, make, constraints.txt's first line and what the integration machine looks for."""
    ways = {
        name: re.search(r"\.\[([a-z,]+)\]", (ROOT / name).read_text())[1]
        for name in ("README.md", "Makefile", "constraints.txt")
    }
    wanted = re.search(r"EXTRAS = \((.*)\)", (ROOT / ".ci" / "environment.py").read_text())[1]
    ways[".ci/environment.py"] = ",".join(re.findall(r"\w+", wanted))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    ways["pyproject.toml"] = ",".join(sorted(project["optional-dependencies"], key=ways["Makefile"].split(",").index))
    assert set(ways.values()) == {"book,text,lowbit,objects,track,dev"}, ways


def test_lower_bounds_let_the_tested_versions_in():
    """And each requirement has a tested version, so that what is installed by default is what was tested."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line]
    tested = {canonicalize_name(name): version for name, version in (line.split("==") for line in pins)}
    for requirement in map(Requirement, lines):
        assert requirement.specifier.contains(tested[canonicalize_name(requirement.name)]), requirement
