# SPDX-License-Identifier: Apache-2.0
"""The one way to make a notebook, on small chapters of the tests' own."""

import base64
import shutil

import execute
import nbformat
import pytest

CHAPTER = """\
# %% [markdown]
# # A chapter

# %%
import os

print("threads", os.environ["OMP_NUM_THREADS"])

# %% [markdown]
# ## Verdict

# %% tags=["nbval-check-output"]
from IPython.display import display

display({"text/plain": "claim a.b: holds at toy scale"}, raw=True, metadata={"recipes_claim": {"id": "a.b"}})
"""


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "chapter.py"
    path.write_text(CHAPTER)
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The executed twin of ``CHAPTER``: a kernel takes seconds to start, so the tests share it."""
    path = tmp_path_factory.mktemp("made") / "chapter.py"
    path.write_text(CHAPTER)
    assert execute.make(path).startswith("executed in")
    return path


@pytest.fixture
def executed(source, made):
    """A chapter with its twin, free to be changed."""
    shutil.copy(made.with_suffix(".ipynb"), source.with_suffix(".ipynb"))
    return source


def read(source):
    return nbformat.read(source.with_suffix(".ipynb"), as_version=4)


def test_a_chapter_is_executed_stamped_and_fresh_afterwards(executed):
    notebook = read(executed)
    assert [cell.id for cell in notebook.cells] == ["a-chapter-1", "a-chapter-2", "verdict-1", "verdict-2"]
    assert notebook.cells[1].outputs[0].text == "threads 1\n"
    assert notebook.cells[3].outputs[0].metadata == {"recipes_claim": {"id": "a.b"}}
    assert set(notebook.metadata["recipes"]) == {"code_sha256", "versions", "seconds", "threads"}
    assert execute.why_stale(executed) is None
    assert execute.make(executed) == "fresh"


def test_changed_code_makes_the_pair_stale_and_runs_again(executed):
    executed.write_text(CHAPTER.replace('"threads"', '"kernel threads"'))
    assert execute.why_stale(executed) == "code changed since it was executed"
    execute.make(executed)
    assert read(executed).cells[1].outputs[0].text == "kernel threads 1\n"


def test_changed_prose_keeps_the_outputs_and_runs_nothing(executed, monkeypatch):
    before = read(executed)
    executed.write_text(CHAPTER.replace("# # A chapter", "# # A better chapter"))
    assert execute.why_stale(executed) == "prose or tags changed"
    monkeypatch.setattr(execute, "run", lambda *_: pytest.fail("executed"))
    assert execute.make(executed) == "prose renewed, outputs kept"
    after = read(executed)
    assert after.cells[0].source == "# A better chapter"
    assert [cell.get("outputs") for cell in after.cells] == [cell.get("outputs") for cell in before.cells]
    assert after.metadata["recipes"] == before.metadata["recipes"]


def test_an_edited_notebook_is_stale(executed):
    twin = executed.with_suffix(".ipynb")
    twin.write_text(twin.read_text().replace("## Verdict", "## My verdict"))
    assert execute.why_stale(executed) == "prose or tags changed"


def test_check_runs_nothing_and_fails_on_a_stale_pair(source, capsys):
    assert execute.main(["--check", str(source)]) == 1
    assert "has not been executed yet. Type: make notebooks" in capsys.readouterr().out
    assert not source.with_suffix(".ipynb").exists()


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise KeyError('salt')", "salt"),
        ("import sys\nprint('careful', file=sys.stderr)", "wrote to stderr"),
        ("import urllib.request\nurllib.request.urlopen('http://example.org')", "Connection refused"),
    ],
)
def test_errors_stderr_and_the_network_are_refused(tmp_path, capsys, code, reason):
    source = tmp_path / "chapter.py"
    source.write_text(f"# %%\n{code}\n")
    assert execute.main([str(source)]) == 1
    assert reason in capsys.readouterr().err
    assert not source.with_suffix(".ipynb").exists()


def test_a_magic_line_is_refused(tmp_path):
    source = tmp_path / "chapter.py"
    source.write_text("# %%\n# %pip install salt\n")
    with pytest.raises(execute.Refused, match="use subprocess"):
        execute.read_source(source)


@pytest.mark.parametrize(
    ("alt", "size", "reason"),
    [
        ("", 100, "without words"),
        ("a curve", 100, "without words"),
        ("A line that rises from zero to one.", 64_001, "a figure of 64,001 bytes"),
        ("A line that rises from zero to one.", 64_000, None),
    ],
)
def test_a_figure_needs_words_and_a_small_size(alt, size, reason):
    picture = nbformat.v4.new_output("display_data", {"image/png": base64.b64encode(bytes(size)).decode()})
    cell = nbformat.v4.new_code_cell("plt.show()", outputs=[picture], metadata={"mystnb": {"image": {"alt": alt}}})
    notebook = nbformat.v4.new_notebook(cells=[cell])
    if reason is None:
        execute.check_outputs(notebook)
    else:
        with pytest.raises(execute.Refused, match=reason):
            execute.check_outputs(notebook)


def test_what_the_page_folds_is_folded_in_jupyter_and_on_colab():
    tags = {"plain": [], "input": ["hide-input"], "solution": ["solution", "hide-cell"]}
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(name, metadata={"tags": own}) for name, own in tags.items()]
    )
    execute.fold(notebook)
    assert [{**cell.metadata, "tags": None} for cell in notebook.cells] == [
        {"tags": None},
        {"tags": None, "jupyter": {"source_hidden": True}, "cellView": "form"},
        {"tags": None, "jupyter": {"source_hidden": True, "outputs_hidden": True}, "cellView": "form"},
    ]
    nbformat.validate(notebook)
