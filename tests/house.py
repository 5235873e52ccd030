# SPDX-License-Identifier: Apache-2.0
"""The files that the house rules are about, and the sizes that ``make lint`` warns of.

A size is an example and not a wall: a method that reads better in one piece may be longer, so these are warnings.
"""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PLACES = ("recipes_lib", "tests", "benchmarks", "book", "notebooks")
LONGEST_FILE = 400
"""Lines. Most files are a third of it."""
LONGEST_FUNCTION = 50
"""Lines of a body, without the docstring: what a screen shows."""


def short(path: Path) -> str:
    """The path from the root of the repository."""
    return path.relative_to(ROOT).as_posix()


def files(*places: str) -> list[Path]:
    """The Python files under the folders ``places``, without what was built there."""
    found = [path for place in places for path in (ROOT / place).rglob("*.py")]
    return sorted(path for path in found if "_build" not in path.parts)


@cache
def text(path: Path) -> str:
    """What the file holds."""
    return path.read_text(encoding="utf-8")


@cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    """Every node of the file's syntax tree."""
    return tuple(ast.walk(ast.parse(text(path))))


def oversized() -> Iterator[str]:
    """A line for each file and each function of the library that is longer than it should be."""
    for path in files(*PLACES):
        length = len(text(path).splitlines())
        if length > LONGEST_FILE and path.parent.name != "notebooks":  # a chapter is as long as its subject
            yield f"{short(path)}: {length} lines; most files stay within {LONGEST_FILE}"
    for path in files("recipes_lib"):
        for node in nodes(path):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                body = node.body[1:] if ast.get_docstring(node) and node.body[1:] else node.body
                length = (node.end_lineno or 0) - body[0].lineno + 1
                if length > LONGEST_FUNCTION:
                    yield f"{short(path)}:{node.lineno}: {node.name} has {length} lines; a screen shows {LONGEST_FUNCTION}"


if __name__ == "__main__":
    for line in oversized():
        print(f"warning: {line}")
