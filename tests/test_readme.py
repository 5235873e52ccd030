# SPDX-License-Identifier: Apache-2.0
"""What the README and the book tell a reader to type exists, and the repository's address is one."""

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from recipes_lib import cli, recipes

ROOT = Path(__file__).parents[1]
GUIDE = ROOT / "CONTRIBUTING.md"
PAGES = [ROOT / "README.md", GUIDE, *sorted((ROOT / "book").glob("*.md"))]
ADDRESS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]


def commands() -> list[str]:
    """Lines of the pages' shell blocks, comments cut off."""
    blocks = [
        block for page in PAGES for block in re.findall(r"^```sh\n(.*?)^```", page.read_text(), flags=re.M | re.S)
    ]
    return [line.split("  #")[0].strip() for block in blocks for line in block.splitlines() if line.strip()]


def recipe_commands() -> list[list[str]]:
    """The words after ``recipes`` or ``-m recipes_lib`` of each command that has them."""
    found = [re.search(r"(?:^|/)recipes (.+)$|-m recipes_lib (.+)$", line) for line in commands()]
    return [shlex.split(match[1] or match[2]) for match in found if match]


MAKE = sorted(
    {target for line in commands() if line.startswith("make ") for target in line.split()[1:] if "=" not in target}
    | {target for page in PAGES for target in re.findall(r"`make ([a-z-]+)`", page.read_text())}
)


def test_there_are_commands_to_hold():
    assert {"book", "test", "help"} <= set(MAKE)
    assert len(recipe_commands()) > 10


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
@pytest.mark.parametrize("target", MAKE)
def test_make_knows_the_target(target):
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("verb", sorted({words[0] for words in recipe_commands()}))
def test_the_command_line_knows_the_verb(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([verb, "--help"])
    assert stop.value.code == 0
    assert verb in capsys.readouterr().out


@pytest.mark.parametrize("words", [words for words in recipe_commands() if words[0] == "run"], ids=" ".join)
def test_recipe_preset_and_fields_of_a_run_exist(words):
    from recipes_lib.config import override

    assert words[1] in recipes.MENU
    given = dict(zip(words[2::2], words[3::2], strict=True))
    preset = given.pop("--preset")
    given.pop("--out", None)
    assert preset in recipes.MENU[words[1]].presets
    config = recipes.named(words[1]).presets[preset]
    for flag, value in given.items():
        override(
            config, {flag.removeprefix("--").replace("-", "_"): yaml.safe_load(re.sub(r"^(\d+)e", r"\1.0e", value))}
        )


@pytest.mark.parametrize("words", [["list"], ["show", "msn"]], ids=" ".join)
def test_what_starts_nothing_works_as_told(words):
    done = subprocess.run([sys.executable, "-m", "recipes_lib", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "msn" in done.stdout


def test_the_imports_a_la_carte_work():
    """In a process of its own: what other tests have imported must not help."""
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), flags=re.M | re.S)
    assert sum("import" in block for block in blocks) >= 1
    for block in blocks:
        done = subprocess.run([sys.executable, "-c", block], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_what_the_guide_for_contributors_names_is_there():
    text = GUIDE.read_text().replace("NAME", "msn")
    tested = [line.split()[-1] for line in commands() if "-m pytest" in line]
    folders = [
        f"recipes_lib/{name}"
        for row in re.findall(r"^\| (`.*?) \|", text, re.M)
        for name in re.findall(r"`(\w+/)", row)
    ]
    linked = re.findall(r"\]\((?!https)(.+?)\)", text)
    named = re.findall(r"`((?:tests|book|recipes_lib|\.ci)/[\w./]+)`", text)
    assert tested
    assert len(folders) > 10
    assert [name for name in [*tested, *folders, *linked, *named] if not (ROOT / name).exists()] == []
    (ci,) = re.findall(r"`\.ci/run` runs `(.+?)`", text)
    assert f"\n{ci}\n" in (ROOT / ".ci" / "run").read_text()


def test_modules_are_where_the_changelog_says_they_moved():
    moves = re.findall(
        r"^\| `(recipes_lib[\w.]+)`.*? \| `(recipes_lib[\w.]+)`", (ROOT / "CHANGELOG.md").read_text(), re.M
    )
    assert len(moves) > 60
    now = [ROOT / new.replace(".", "/") for _, new in moves]
    assert [place for place in now if not (place.with_suffix(".py").exists() or place.is_dir())] == []


def test_every_place_has_the_address_of_pyproject():
    assert yaml.safe_load((ROOT / "_config.yml").read_text())["repository"]["url"] == ADDRESS
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["repository-code"] == ADDRESS
    for page in PAGES:
        for address in re.findall(r"https://github\.com/ssl-cookbook/[\w.-]+", page.read_text()):
            assert address == ADDRESS, page.name
