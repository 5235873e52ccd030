# SPDX-License-Identifier: Apache-2.0
"""``recipes cook NAME``: makes the longer run that a chapter shows as *one cooked earlier*, in ``data/cooked``.

The stored folder is a small run folder without checkpoints: ``config.yaml``, ``model.safetensors`` (half precision),
``report.json``, ``metrics.jsonl`` (every k-th line), and ``fingerprint.json``, with which a test detects that the run
is out of date. A recipe that trains no backbone has neither weights nor metrics.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path

from recipes_lib import recipes
from recipes_lib.claim import Arm
from recipes_lib.claims.fingerprint import Fingerprint, fingerprint
from recipes_lib.config import to_yaml
from recipes_lib.data import embedded
from recipes_lib.errors import RunError
from recipes_lib.training import checkpoint
from recipes_lib.training.folder import finished

PRESET = "simmer"
MOST_BYTES = 8_000_000
CURVE_POINTS = 300


def cook(name: str, runs: Path = Path("runs")) -> Path:
    """Runs preset ``simmer`` of recipe ``name``, stores the result, and returns the folder it is stored in.

    An interrupted run is resumed; a finished run of the same config and the same numerics is not repeated.

    Raises: the errors of the recipe's ``run``; ``RunError`` if there is no checkout to store into.
    """
    destination = storage() / "cooked" / name
    recipe = recipes.named(name)
    config = recipe.presets[PRESET]
    mark = fingerprint(Arm(recipe=name, preset=PRESET))
    folder = runs / f"cook-{name}-{digest(to_yaml(name, config), mark)}"
    if finished(folder) is None:
        recipe.run(config, folder)
    store(folder, destination, mark)
    return destination


def storage() -> Path:
    """The checkout's ``data`` folder. Raises: ``RunError`` if the library was installed without a checkout."""
    place = embedded.path("")
    if not (place.parent / "pyproject.toml").is_file():
        raise RunError(
            f"There is no checkout to store into: {place} belongs to an installed package. Clone the repository."
        )
    return place


def digest(text: str, mark: Fingerprint | None) -> str:
    """Eight hex digits that change with the config or the numerics, so that another run gets another folder."""
    exact = json.dumps(mark, sort_keys=True)
    return hashlib.sha256(f"{text}\n{exact}".encode()).hexdigest()[:8]


def store(folder: Path, destination: Path, mark: Fingerprint) -> None:
    """Writes the small form of the run in ``folder`` to ``destination``, completely or not at all.

    Raises: ``RunError`` if the weights are larger than ``MOST_BYTES`` even at half precision.
    """
    aside = destination.with_name(f".{destination.name}-partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    if (folder / "model.safetensors").is_file():  # a recipe that trains no backbone has neither weights nor metrics
        size = _store_weights(folder, aside)
        if size > MOST_BYTES:
            shutil.rmtree(aside)
            raise RunError(
                f"{folder}: weights of {size:,} bytes at half precision; a chapter may store {MOST_BYTES:,}."
            )
        (aside / "metrics.jsonl").write_text(thinned((folder / "metrics.jsonl").read_text()))
    for kept in ("config.yaml", "report.json"):
        shutil.copyfile(folder / kept, aside / kept)
    (aside / "fingerprint.json").write_text(json.dumps(mark, indent=1) + "\n")
    before = destination.with_name(f".{destination.name}-before")
    shutil.rmtree(before, ignore_errors=True)
    if destination.exists():
        os.replace(destination, before)
    os.replace(aside, destination)
    shutil.rmtree(before, ignore_errors=True)


def _store_weights(folder: Path, aside: Path) -> int:
    """Writes the run's weights in half precision; returns the size of the file in bytes."""
    weights = checkpoint.read_weights(folder / "model.safetensors")
    half = {key: value.half() if value.is_floating_point() else value for key, value in weights.items()}
    checkpoint.write_weights(aside / "model.safetensors", half)
    return (aside / "model.safetensors").stat().st_size


def thinned(text: str, points: int = CURVE_POINTS) -> str:
    """At most ``points`` lines of a run's metrics, evenly spaced and including the last line."""
    lines = text.splitlines(keepends=True)
    stride = max(1, -(-len(lines) // points))
    return "".join(lines[::-1][::stride][::-1])
