# SPDX-License-Identifier: Apache-2.0
"""What the book's tests share: where the repository is, and the site, built once for all test processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "book"), str(ROOT / "book" / "_ext")]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks every test of this folder as one of the book's."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("book")


@pytest.fixture(scope="session")
def repository() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built pages: those that COOKBOOK_SITE names, or a fresh build with warnings as errors."""
    if "COOKBOOK_SITE" in os.environ:
        return ROOT / os.environ["COOKBOOK_SITE"]
    pytest.importorskip("jupyter_book", reason="jupyter-book is not installed: pip install -e '.[book]'")
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    pages = shared / "site" / "_build" / "html"
    with FileLock(shared / "site.lock"):
        if not (pages / "index.html").exists():
            command = [Path(sys.executable).with_name("jupyter-book"), "build", ROOT, "--path-output", shared / "site"]
            build = subprocess.run(
                [*map(str, command), "-W", "-n", "--keep-going", "-q"],
                capture_output=True,
                text=True,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
            if build.returncode:
                pytest.fail(f"The book does not build:\n{build.stdout[-3000:]}\n{build.stderr[-3000:]}")
    return pages
