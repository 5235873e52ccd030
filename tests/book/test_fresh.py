# SPDX-License-Identifier: Apache-2.0
"""The executed notebooks are those of the sources beside them: nobody edited one, nothing is left unrun."""

from pathlib import Path

import execute
import nbformat
import pytest
import yaml

ROOT = Path(__file__).parents[2]
TOC = yaml.safe_load((ROOT / "_toc.yml").read_text())
CHAPTERS = [
    chapter["file"] for part in TOC["parts"] for chapter in part["chapters"] if chapter["file"].startswith("notebooks/")
]


@pytest.fixture(params=CHAPTERS)
def source(request) -> Path:
    return ROOT / f"{request.param}.py"


@pytest.fixture
def notebook(source):
    return nbformat.read(source.with_suffix(".ipynb"), as_version=4)


def test_the_book_holds_every_chapter_and_no_other():
    assert sorted(CHAPTERS) == sorted(f"notebooks/{path.stem}" for path in (ROOT / "notebooks").glob("*.py"))
    assert sorted(CHAPTERS) == sorted(f"notebooks/{path.stem}" for path in (ROOT / "notebooks").glob("*.ipynb"))


def test_the_pair_agrees_cell_by_cell(source):
    assert execute.why_stale(source) is None, "type: make notebooks"


def test_every_code_cell_was_run_once_and_in_order(notebook):
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))


def test_the_stamp_says_code_versions_time_and_threads(notebook):
    stamp = notebook.metadata["recipes"]
    assert stamp["code_sha256"] == execute.code_sha256(notebook)
    assert {"python", "torch"} <= set(stamp["versions"])
    assert stamp["threads"] == 1


def test_a_chapter_keeps_to_its_time(notebook):
    assert notebook.metadata["recipes"]["seconds"] <= 180


def test_outputs_keep_the_house_rules(notebook):
    execute.check_outputs(notebook)  # no error, no stderr, figures small and described


def test_a_notebook_stays_small(source):
    assert source.with_suffix(".ipynb").stat().st_size <= execute.NOTEBOOK_BYTES


def test_no_code_cell_is_longer_than_twenty_lines(notebook):
    long = {
        cell.id: n for cell in notebook.cells if cell.cell_type == "code" and (n := len(cell.source.splitlines())) > 20
    }
    assert not long


def test_ids_are_unique(notebook):
    ids = [cell.id for cell in notebook.cells]
    assert len(ids) == len(set(ids))


def test_solutions_are_folded_wherever_the_notebook_is_opened(notebook):
    solutions = [cell for cell in notebook.cells if "solution" in cell.metadata.get("tags", [])]
    assert all(cell.metadata["jupyter"] == {"outputs_hidden": True, "source_hidden": True} for cell in solutions)


def test_verdict_cells_are_compared(notebook):
    for cell in notebook.cells:
        records = [output for output in cell.get("outputs", []) if "recipes_claim" in output.get("metadata", {})]
        assert not records or "nbval-check-output" in cell.metadata.get("tags", []), cell.id
