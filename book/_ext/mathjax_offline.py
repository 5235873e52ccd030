# SPDX-License-Identifier: Apache-2.0
"""Puts MathJax into the built site, so that formulas need no network.

The file comes from the package ``sphinx-mathjax-offline``, which is used as a box of files and not loaded as an
extension: it would copy into ``_static``, and every script there is loaded a second time by Jupyter Book. The
"full" build holds all of TeX's extensions, which a smaller one fetches when they are met.
"""

import importlib.metadata
import shutil
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

PACKAGE = "sphinx-mathjax-offline"
SCRIPT = "tex-svg-full.js"


def script() -> Path:
    """Where the installed package keeps the one file that is needed.

    Raises: ``ExtensionError`` naming the extra that installs it.
    """
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        raise ExtensionError(f"{PACKAGE} is not installed: pip install -e '.[book]' -c constraints.txt") from None
    found = [Path(file.locate()) for file in files if file.name == SCRIPT]
    if not found:
        raise ExtensionError(f"{PACKAGE} {importlib.metadata.version(PACKAGE)} holds no {SCRIPT}")
    return found[0]


def _copy(app: Sphinx, error: Exception | None) -> None:
    if error is None and app.builder.format == "html":
        folder = Path(app.outdir) / "mathjax"
        folder.mkdir(exist_ok=True)
        shutil.copyfile(script(), folder / SCRIPT)


def setup(app: Sphinx) -> dict[str, bool]:
    """Sphinx calls this when it loads the extension."""
    app.connect("build-finished", _copy)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
