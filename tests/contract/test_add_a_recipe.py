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


PROGRAM = """
import contextlib, io, json, sys
from recipes_lib import cli

for words in json.loads(sys.argv[1]):
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        code = cli.main(words)
    print(json.dumps([code, said.getvalue()]))
"""
COMMANDS = {
    "list": ["list", "--json"],
    "show": ["show", "simsiam", "--json"],
    "plan": ["plan", "simsiam", "--preset", "resnet50_imagenet", "--json"],
    "run": ["run", "simsiam", "--preset", "toy", "--train.steps", "3", "--out", "run"],
    "evaluate": ["evaluate", "run", "--probe", "knn", "--json"],
    "export": ["export", "run", "--format", "timm", "--out", "exported"],
    "mistake": ["run", "simsiam", "--preset", "toy", "--model.dim", "1"],
}


def test_the_new_recipe_is_listed_shown_planned_trained_evaluated_and_exported(checkout):
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PROGRAM, json.dumps(list(COMMANDS.values()))]
    ended = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    answers = dict(zip(COMMANDS, map(json.loads, ended.stdout.splitlines()), strict=True))
    assert {name: code for name, (code, _) in answers.items()} == dict.fromkeys(COMMANDS, 0) | {"mistake": 2}
    found = {name: json.loads(answers[name][1]) for name in ("list", "show", "plan", "evaluate")}
    assert "simsiam" in [entry["name"] for entry in found["list"]]
    assert [claim["id"] for claim in found["show"]["claims"]] == ["simsiam.beats_random"]
    assert found["plan"]["steps"] == 250_200  # 100 epochs of 2,502 batches of 512 images of 1,281,167
    report = json.loads((checkout / "run" / "report.json").read_text())
    assert found["evaluate"]["scores"]["knn"] == report["scores"]["knn"]
    assert (checkout / "exported" / "model.safetensors").is_file()
    fault = ended.stderr.splitlines()[-1]
    assert fault == "recipes: model.dim = 1 is not allowed: use a value of at least 2."
