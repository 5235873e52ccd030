# SPDX-License-Identifier: Apache-2.0
"""What pyproject.toml cannot say: the wheel carries ``data/`` as ``recipes_lib/_data``."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithData(build_py):
    """Copies ``data/`` into the built package; an editable install reads it where it lies."""

    def run(self) -> None:
        """Called by setuptools."""
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "recipes_lib" / "_data"
            shutil.rmtree(target, ignore_errors=True)  # of an earlier build
            shutil.copytree("data", target)


setup(cmdclass={"build_py": BuildWithData})
