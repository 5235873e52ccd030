# SPDX-License-Identifier: Apache-2.0
"""The house rules that a machine can check."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIBRARY = sorted((ROOT / "recipes_lib").rglob("*.py"))
ALL = sorted(
    path
    for place in ("recipes_lib", "tests", "benchmarks", "book", "notebooks")
    for path in (ROOT / place).rglob("*.py")
    if "_build" not in path.parts
)
LONGEST_FILE = 400  # a method that reads better in one piece may take that much; most files are a third of it
LONGEST_FUNCTION = 50


def short(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def each(paths):
    return pytest.mark.parametrize("path", paths, ids=short)


def nodes(path: Path, kinds: tuple) -> list:
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, kinds)]


def test_imports_only_go_down_the_house():
    program = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.parametrize(
    "name", ["recipes_lib", "recipes_lib.recipes", "recipes_lib.cli", "recipes_lib.recipes.msn.claims"]
)
def test_what_answers_at_once_imports_no_torch(name):
    program = f"import sys, {name}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_importing_the_library_takes_no_time():
    program = "import time; start = time.process_time(); import recipes_lib; print(time.process_time() - start)"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert float(ended.stdout) < 0.1


@each(ALL)
def test_every_file_bears_its_licence_and_is_short(path):
    lines = path.read_text().splitlines()
    if path.parent.name != "notebooks":  # a chapter's first lines belong to jupytext, and its length to its subject
        assert len(lines) <= LONGEST_FILE
        assert lines[0] == "# SPDX-License-Identifier: Apache-2.0"


@each(LIBRARY)
def test_function_bodies_fit_on_a_screen(path):
    for node in nodes(path, (ast.FunctionDef, ast.AsyncFunctionDef)):
        body = node.body[1:] if ast.get_docstring(node) and node.body[1:] else node.body
        length = node.end_lineno - body[0].lineno + 1
        assert length <= LONGEST_FUNCTION, f"{node.name}: {length} lines"


@each(LIBRARY)
def test_public_names_say_what_they_are(path):
    tree = ast.parse(path.read_text())
    if tree.body:
        assert ast.get_docstring(tree), "the module has no docstring"
    lacking = []

    def look(body, prefix=""):
        for node in body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                if not ast.get_docstring(node):
                    lacking.append(prefix + node.name)
                if isinstance(node, ast.ClassDef):
                    look(node.body, f"{prefix}{node.name}.")

    look(tree.body)
    assert lacking == []


@each(LIBRARY)
def test_the_library_prints_nothing(path):
    calls = [node.func for node in nodes(path, (ast.Call,))]
    assert not [func for func in calls if isinstance(func, ast.Name) and func.id == "print"]


@each([path for path in LIBRARY if path.parent.name != "distributed"])
def test_ranks_meet_in_distributed_only(path):
    text = path.read_text()
    found = re.findall(
        r"\b(?:dist|distributed)\.(?:all_reduce|all_gather|reduce|broadcast|gather|scatter|barrier)\w*\(", text
    )
    found += re.findall(
        r"^\s*(?:import torch\.distributed|from torch\.distributed import|from torch import distributed)", text, re.M
    )
    assert found == []


@each(LIBRARY)
def test_nothing_draws_from_a_global_generator_of_numpy_or_python(path):
    text = path.read_text()
    assert not re.findall(r"\bnp\.random\.(?!Generator|default_rng)\w+|^import random$|^from random import", text, re.M)


@each(LIBRARY)
def test_nothing_is_unpickled_from_a_file(path):
    text = path.read_text()
    assert not re.findall(r"^\s*import pickle|^\s*from pickle|allow_pickle=True|weights_only=False", text, re.M)
    for call in nodes(path, (ast.Call,)):
        if ast.unparse(call.func) == "torch.load":
            assert "weights_only=True" in map(ast.unparse, call.keywords)


@each(LIBRARY)
def test_a_users_mistake_is_no_assertion(path):
    assert not nodes(path, (ast.Assert,))


@each(LIBRARY)
def test_no_exception_is_swallowed_unseen(path):
    assert not [node for node in nodes(path, (ast.ExceptHandler,)) if node.type is None]


@each(LIBRARY)
def test_no_file_has_a_name_that_says_nothing(path):
    assert path.stem not in {"utils", "util", "common", "misc", "base", "helpers"}
    assert len(path.relative_to(ROOT / "recipes_lib").parts) <= 3
