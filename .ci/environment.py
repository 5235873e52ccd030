# SPDX-License-Identifier: Apache-2.0
"""Says what the running environment lacks of the cookbook's requirements; fails if that is anything."""

import sys
import tomllib
from importlib import metadata
from pathlib import Path

EXTRAS = ("book", "text", "lowbit", "objects", "track", "dev")
WEIGHTS = Path(__file__).with_name("weights.txt")


def lacking(project: dict) -> list[str]:
    """The requirements of ``pyproject.toml``, extras included, and of ``weights.txt`` that the environment lacks."""
    from packaging.requirements import Requirement  # absent in a bare environment, which lacks the rest too

    wanted = project["dependencies"] + [line for extra in EXTRAS for line in project["optional-dependencies"][extra]]
    wanted += [line for line in WEIGHTS.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    missing = []
    for requirement in map(Requirement, wanted):
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            missing.append(str(requirement))
        else:
            if not requirement.specifier.contains(version, prereleases=True):
                missing.append(f"{requirement} (there is {version})")
    return missing


if __name__ == "__main__":
    settings = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    try:
        absent = lacking(settings["project"])
    except ModuleNotFoundError as error:
        absent = [error.name]
    if absent:
        sys.exit(f"This environment lacks {', '.join(absent)}; installing.")
