# SPDX-License-Identifier: Apache-2.0
"""The one way to make a chapter's notebook: ``python book/execute.py notebooks/*.py``.

The source of a chapter is ``name.py`` (jupytext's percent format); ``name.ipynb`` is its executed twin, and nobody
edits it. Only stale twins are made anew. Where nothing but prose changed, the outputs are kept, since the code that
gave them is the same; where code changed, the chapter runs in a fresh kernel with one thread and no network.
``--check`` runs nothing and fails if a twin is stale; ``--force`` runs all of them.

Who made the outputs is stamped into the notebook's metadata: ``{"recipes": {"code_sha256", "versions", "seconds",
"threads"}}``. Times of files say nothing after a checkout, so they are not looked at.
"""

import argparse
import base64
import hashlib
import importlib.metadata
import io
import json
import os
import platform
import re
import sys
import time
from pathlib import Path
from unittest import mock

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode
from PIL import Image

PNG_BYTES = 64_000
NOTEBOOK_BYTES = 1_500_000
CELL_SECONDS = 180
ALT_LETTERS = 20
KEPT_CELL_METADATA = ("tags", "mystnb")
PACKAGES = ("ssl-cookbook", "torch", "torchvision", "timm", "numpy", "scikit-learn", "matplotlib")
NOWHERE = "http://127.0.0.1:9"  # port 9 discards: a download fails at once, on every machine
KERNEL_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "HTTP_PROXY": NOWHERE,
    "HTTPS_PROXY": NOWHERE,
    "http_proxy": NOWHERE,
    "https_proxy": NOWHERE,
}


class Refused(Exception):
    """A chapter that must not become a notebook, with the reason."""


def read_source(path: Path) -> NotebookNode:
    """The chapter as its ``.py`` says, without outputs.

    Raises: ``Refused`` where a line is a shell or magic command, which plain Python could not read.
    """
    notebook = jupytext.read(path, fmt="py:percent")
    for cell in notebook.cells:
        cell.metadata = NotebookNode({key: cell.metadata[key] for key in KEPT_CELL_METADATA if key in cell.metadata})
        if cell.cell_type == "code" and re.search(r"^\s*(%\w|!)", cell.source, flags=re.MULTILINE):
            raise Refused(
                f"{path}: a % or ! line; use subprocess, so that ruff and Python can read the chapter:\n{cell.source}"
            )
    return notebook


def cells_of(notebook: NotebookNode) -> list[tuple[str, str, object, object]]:
    """What a pair must agree on: each cell's type, source, tags and figure settings."""
    return [
        (cell.cell_type, cell.source.strip(), cell.metadata.get("tags"), cell.metadata.get("mystnb"))
        for cell in notebook.cells
    ]


def code_sha256(notebook: NotebookNode) -> str:
    """Checksum of the code cells' sources in order; prose and tags do not count."""
    sources = [cell.source.strip() for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256(json.dumps(sources).encode()).hexdigest()


def why_stale(source: Path) -> str | None:
    """Why the executed twin of ``source`` must be made anew, or None where it is fresh."""
    twin = source.with_suffix(".ipynb")
    if not twin.exists():
        return "has not been executed yet"
    wanted, stored = read_source(source), nbformat.read(twin, as_version=4)
    if stored.metadata.get("recipes", {}).get("code_sha256") != code_sha256(wanted):
        return "code changed since it was executed"
    return None if cells_of(wanted) == cells_of(stored) else "prose or tags changed"


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40] or "cell"


def set_ids(notebook: NotebookNode) -> None:
    """Cell ids from the section's title and the place in it, so that a diff shows only what changed."""
    section, used = "top", {}
    for cell in notebook.cells:
        heading = re.match(r"#+\s+(.+)", cell.source) if cell.cell_type == "markdown" else None
        section = _slug(heading[1]) if heading else section
        used[section] = used.get(section, 0) + 1
        cell["id"] = f"{section}-{used[section]}"


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue  # run from a checkout that was not installed
    return found


def run(notebook: NotebookNode, folder: Path) -> float:
    """Executes ``notebook`` in place, in a fresh kernel started in ``folder``; returns the seconds it took.

    Raises: ``Refused`` with the failing cell's traceback.
    """
    client = NotebookClient(
        notebook,
        timeout=CELL_SECONDS,
        kernel_name="python3",
        store_widget_state=False,  # stored widgets make the page load scripts from the network
        record_timing=False,
        resources={"metadata": {"path": str(folder)}},
    )
    start = time.perf_counter()
    with mock.patch.dict(os.environ, KERNEL_ENVIRONMENT):
        try:
            client.execute()
        except CellExecutionError as error:
            raise Refused(str(error)) from None
    return time.perf_counter() - start


def _check_figure(where: str, cell: NotebookNode, data: dict) -> None:
    size = len(base64.b64decode(data["image/png"]))
    if size > PNG_BYTES:
        raise Refused(
            f"{where}: a figure of {size:,} bytes; at most {PNG_BYTES:,}. Draw it smaller, or with fewer colours."
        )
    alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
    if len(alt) < ALT_LETTERS:
        raise Refused(
            f'{where}: a figure without words for who cannot see it. Add mystnb={{"image": {{"alt": "..."}}}}.'
        )


def slim_figures(notebook: NotebookNode) -> None:
    """Stores every figure with a palette of 256 colours: a third of the bytes, and no eye sees it.

    A figure that is too large then gets fewer colours, which line drawings can spare.
    """
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                figure = Image.open(io.BytesIO(base64.b64decode(output.data["image/png"]))).convert("RGB")
                for colours in (256, 64, 32):
                    slim = io.BytesIO()
                    figure.quantize(colours, dither=Image.Dither.NONE).save(slim, "PNG", optimize=True)
                    if len(slim.getvalue()) <= PNG_BYTES:
                        break
                output.data["image/png"] = base64.b64encode(slim.getvalue()).decode()


def check_outputs(notebook: NotebookNode) -> None:
    """Holds what was executed to the house rules: no error, no stderr, figures small and described.

    Raises: ``Refused`` naming the cell.
    """
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        for output in cell.outputs:
            if output.output_type == "error":
                raise Refused(f"{cell.id}: {output.ename}: {output.evalue}")
            if output.output_type == "stream" and output.name == "stderr":
                raise Refused(f"{cell.id}: wrote to stderr; mend the cause of this:\n{output.text}")
            if "image/png" in output.get("data", {}):
                _check_figure(cell.id, cell, output.data)


def fold(notebook: NotebookNode) -> None:
    """Folds in Jupyter and on Colab what the page folds: the input of ``hide-input``, all of ``hide-cell``."""
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        folded = {"source_hidden": bool({"hide-input", "hide-cell"} & set(tags)), "outputs_hidden": "hide-cell" in tags}
        if cell.cell_type == "code" and any(folded.values()):
            cell.metadata["jupyter"] = {name: True for name, value in folded.items() if value}
            cell.metadata["cellView"] = "form"  # Colab's own word for a hidden source


def _finish(notebook: NotebookNode, stamp: dict) -> str:
    """The notebook as text: fixed ids, nothing volatile, the stamp."""
    set_ids(notebook)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
    fold(notebook)
    slim_figures(notebook)
    check_outputs(notebook)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    notebook.metadata = NotebookNode(
        kernelspec={"display_name": "Python 3", "language": "python", "name": "python3"},
        language_info={"name": "python", "file_extension": ".py", "mimetype": "text/x-python"},
        recipes=stamp,
    )
    text = nbformat.writes(notebook) + "\n"
    if len(text.encode()) > NOTEBOOK_BYTES:
        raise Refused(f"the notebook would hold {len(text.encode()):,} bytes; at most {NOTEBOOK_BYTES:,}")
    return text


def _keep_outputs(notebook: NotebookNode, executed: NotebookNode) -> None:
    """Gives the code cells of ``notebook`` the outputs of the same code's last execution."""
    outputs = iter(cell for cell in executed.cells if cell.cell_type == "code")
    for cell in notebook.cells:
        if cell.cell_type == "code":
            old = next(outputs)
            cell.outputs, cell.execution_count = old.outputs, old.execution_count


def make(source: Path, *, force: bool = False) -> str:
    """Writes the executed twin of ``source`` and says in a word what was done.

    Raises: ``Refused``; the twin on disk is then as it was.
    """
    reason = why_stale(source)
    if reason is None and not force:
        return "fresh"
    notebook, twin = read_source(source), source.with_suffix(".ipynb")
    if reason == "prose or tags changed" and not force:
        executed = nbformat.read(twin, as_version=4)
        _keep_outputs(notebook, executed)
        done, stamp = "prose renewed, outputs kept", executed.metadata["recipes"]
    else:
        set_ids(notebook)
        seconds = run(notebook, source.parent)
        done = f"executed in {seconds:.0f} s"
        stamp = {"code_sha256": code_sha256(notebook), "versions": _versions(), "seconds": round(seconds), "threads": 1}
    text = _finish(notebook, stamp)
    aside = twin.with_name(f".{twin.name}.part")
    aside.write_text(text, encoding="utf-8")
    aside.replace(twin)
    return done


def main(arguments: list[str] | None = None) -> int:
    """The command line; 0 when every twin is (now) fresh."""
    parser = argparse.ArgumentParser(description="Execute the chapters whose notebooks are stale.")
    parser.add_argument("sources", nargs="+", type=Path, metavar="notebooks/NAME.py")
    parser.add_argument("--check", action="store_true", help="run nothing; fail if a notebook is stale")
    parser.add_argument("--force", action="store_true", help="execute fresh ones too")
    options = parser.parse_args(arguments)
    failed = False
    for source in options.sources:
        try:
            if options.check:
                reason = why_stale(source)
                failed |= reason is not None
                print(f"{source}: {'fresh' if reason is None else f'{reason}. Type: make notebooks'}")
            else:
                print(f"{source}: {make(source, force=options.force)}", flush=True)
        except Refused as refusal:
            failed = True
            print(f"{source}: refused. {refusal}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
