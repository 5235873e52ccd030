# SPDX-License-Identifier: Apache-2.0
"""The first cell of a chapter, in which most executable books fail: alone, in an empty folder, as if on Colab."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import execute
import pytest

from recipes_lib import __version__

ROOT = Path(__file__).parents[2]
ADDRESS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
PRELUDE = "import sys, types\nsys.modules['google.colab'] = types.ModuleType('google.colab')\n"
ABSENT = (
    PRELUDE
    + """
import importlib.util, subprocess
importlib.util.find_spec = lambda name: None
def install(command):
    print("\\n".join(command)); sys.exit(0)
subprocess.check_call = install
"""
)


@pytest.fixture(params=sorted((ROOT / "notebooks").glob("*.py")), ids=lambda path: path.stem)
def first(request) -> str:
    notebook = execute.read_source(request.param)
    return next(cell.source for cell in notebook.cells if cell.cell_type == "code")


def run_alone(code: str, folder: Path) -> str:
    """What ``code`` prints in a fresh Python that was started in an empty folder, without a network."""
    environment = {**os.environ, **execute.KERNEL_ENVIRONMENT, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_runs_in_an_empty_folder_without_network(first, tmp_path):
    assert "about" in run_alone(PRELUDE + first, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_on_colab_it_installs_this_release_and_leaves_torch_alone(first, tmp_path):
    command = run_alone(ABSENT + first, tmp_path).split("\n")
    assert command[1:4] == ["-m", "pip", "install"]
    assert "--no-deps" in command
    assert f"ssl-cookbook @ git+{ADDRESS}@v{__version__}" in command
    assert not [word for word in command if re.match(r"(torch|torchvision|numpy)\b", word)]


def test_it_is_the_same_in_all_chapters():
    cells = set()
    for source in sorted((ROOT / "notebooks").glob("*.py")):
        code = next(cell.source for cell in execute.read_source(source).cells if cell.cell_type == "code")
        cells.add(re.sub(r"notebook\.start\(.*?\)", "notebook.start()", code))
    assert len(cells) <= 1
