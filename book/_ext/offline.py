# SPDX-License-Identifier: Apache-2.0
"""Makes the built site whole without a network: MathJax comes along, and what only a network could use goes.

MathJax's file comes from the package ``sphinx-mathjax-offline``, which is used as a box of files and not loaded as an
extension: it would copy into ``_static``, and every script there is loaded a second time by Jupyter Book. The
"full" build holds all of TeX's extensions, which a smaller one fetches when they are met.

Thebe (live code on a page) is loaded by Jupyter Book and again by the theme, which is an error in the browser, and
its scripts live on a server. Our chapters are run in JupyterLab or on Colab, so pages do without it.
"""

import importlib.metadata
import shutil
from pathlib import Path
from typing import Any

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


def _without_thebe(app: Sphinx, pagename: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    def is_thebe(asset: Any) -> bool:
        return "thebe" in str(getattr(asset, "filename", asset) or "") or "thebe" in getattr(
            asset, "attributes", {}
        ).get("body", "")

    for kind in ("script_files", "css_files"):
        context[kind] = [asset for asset in context[kind] if not is_thebe(asset)]


def setup(app: Sphinx) -> dict[str, bool]:
    """Sphinx calls this when it loads the extension."""
    app.connect("build-finished", _copy)
    app.connect("html-page-context", _without_thebe, priority=900)  # after those that add scripts
    return {"parallel_read_safe": True, "parallel_write_safe": True}
