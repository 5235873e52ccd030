# SPDX-License-Identifier: Apache-2.0
"""What ``book/add_a_recipe.md`` says is enough: its blocks, put where it says, make a recipe that every command knows."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "book" / "add_a_recipe.md").read_text(encoding="utf-8")
RECIPE, ENTRY, CLAIMS = re.findall(r"```python\n(.*?)```", PAGE, re.S)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the library in which the page's instructions were followed."""
    copy = tmp_path_factory.mktemp("checkout")
    shutil.copytree(ROOT / "recipes_lib", copy / "recipes_lib", ignore=shutil.ignore_patterns("__pycache__"))
    folder = copy / "recipes_lib" / "recipes" / "simsiam"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "recipe.py").write_text(RECIPE)
    (folder / "claims.py").write_text(CLAIMS)
    menu = copy / "recipes_lib" / "recipes" / "__init__.py"
    text = menu.read_text()
    first = "    for entry in (\n"
    assert text.count(first) == 1
    menu.write_text(text.replace(first, f"{first}{ENTRY},\n"))
    return copy


def recipes(checkout: Path, *words: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "recipes_lib", *words]
    ended = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return ended


def test_the_new_recipe_is_listed_shown_planned_trained_evaluated_and_exported(checkout):
    listed = json.loads(recipes(checkout, "list", "--json").stdout)
    assert "simsiam" in [entry["name"] for entry in listed]
    shown = json.loads(recipes(checkout, "show", "simsiam", "--json").stdout)
    assert [claim["id"] for claim in shown["claims"]] == ["simsiam.beats_random"]
    plan = json.loads(recipes(checkout, "plan", "simsiam", "--preset", "resnet50_imagenet", "--json").stdout)
    assert plan["steps"] == 250_200  # 100 epochs of 2,502 batches of 512 images of 1,281,167
    recipes(checkout, "run", "simsiam", "--preset", "toy", "--train.steps", "3", "--out", "run")
    report = json.loads((checkout / "run" / "report.json").read_text())
    again = json.loads(recipes(checkout, "evaluate", "run", "--probe", "knn", "--json").stdout)
    assert again["scores"]["knn"] == report["scores"]["knn"]
    recipes(checkout, "export", "run", "--format", "timm", "--out", "exported")
    assert (checkout / "exported" / "model.safetensors").is_file()


def test_a_wrong_value_of_it_is_refused_in_one_line(checkout):
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    command = [sys.executable, "-m", "recipes_lib", "run", "simsiam", "--preset", "toy", "--model.dim", "1"]
    ended = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr.strip() == "recipes: model.dim = 1 is not allowed: use a value of at least 2."
