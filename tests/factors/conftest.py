# SPDX-License-Identifier: Apache-2.0
"""Factor annotations of our own making, in the sizes and layouts of ImageNet-X."""

import csv
import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from recipes_lib.factors import annotations
from recipes_lib.factors.annotations import Annotations

WORDS = {"justification": "", "one_word": ""}


@pytest.fixture
def eight() -> Annotations:
    """The card's hand case: factor A on rows 0-3, B on rows 4-5, none on 6-7; all of class 0."""
    marks = np.array([[True, False]] * 4 + [[False, True]] * 2 + [[False, False]] * 2)
    names = np.array([f"{row}.png" for row in range(8)])
    return Annotations(names, np.zeros(8, np.int16), 2, ("A", "B"), {"multi": marks})


@pytest.fixture
def drawn(monkeypatch) -> dict[str, np.ndarray]:
    """What a compact file holds, drawn, with fewer images than the real one, and ReaL labels of which some are absent."""
    version = annotations.Version(images=500, annotated=480, prototypes=30, train=110)
    monkeypatch.setattr(annotations, "VERSION", version)
    draw = np.random.default_rng(0)
    images, chosen = version.images, draw.permutation(version.images)
    annotated, prototype = np.zeros((2, images), bool)
    annotated[chosen[: version.annotated]] = True
    prototype[chosen[-version.prototypes :]] = True
    top = np.where(annotated, draw.integers(16, size=images), -1)
    bits = np.where(annotated, draw.integers(1 << 16, size=images), 0) | np.where(top < 0, 0, 1 << np.maximum(top, 0))
    lengths = draw.integers(3, size=images)
    return {
        "label": draw.integers(1000, size=images).astype(np.int16),
        "annotated": annotated,
        "prototype": prototype,
        "top_factor": top.astype(np.int8),
        "multi_factor_bits": bits.astype(np.uint16),
        "factor_names": np.array(annotations.FACTORS),
        "real_labels": draw.integers(1000, size=lengths.sum()).astype(np.int16),
        "real_offsets": np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32),
        "metaclass_names": np.array(["dog", "bird", "other"]),
        "metaclass_of_class": draw.integers(3, size=1000).astype(np.int8),
    }


@pytest.fixture
def compact(drawn, tmp_path) -> Path:
    """The compact file."""
    path = tmp_path / "compact" / "imagenet_x_val.npz"
    path.parent.mkdir()
    np.savez(path, **drawn)
    return path


@pytest.fixture
def official(drawn, tmp_path) -> Path:
    """The same annotations in the official package's layout, its rows and factors in another order than ours."""
    folder = tmp_path / "package" / "annotations"
    folder.mkdir(parents=True)
    names, labels = annotations.validation_names().tolist(), drawn["label"].tolist()
    by_class = np.argsort(drawn["label"], kind="stable").tolist()
    table(folder / "filename_label.csv", ["file_name", "label"], [(names[row], labels[row]) for row in by_class])
    table(
        folder / "prototypical_paths.csv", ["file_name"], [[names[row]] for row in np.flatnonzero(drawn["prototype"])]
    )
    top = drawn["top_factor"][:, None] == np.arange(16)
    multi = (drawn["multi_factor_bits"][:, None] >> np.arange(16)) & 1
    backwards = list(enumerate(annotations.FACTORS))[::-1]
    for kind, marks in (("top", top), ("multi", multi)):
        marks = marks.astype(int).tolist()
        lines = (
            {"file_name": names[row], "class": labels[row]} | {name: marks[row][k] for k, name in backwards} | WORDS
            for row in reversed(by_class)
            if drawn["annotated"][row]
        )
        path = folder / f"imagenet_x_val_{kind}_factor.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    starts = drawn["real_offsets"].tolist()
    real = [drawn["real_labels"][a:b].tolist() for a, b in itertools.pairwise(starts)]
    (folder / "imagenet_real_labels.jsonl").write_text(json.dumps(real))
    coarse = [("n0", ("dog", "bird", "turtle")[place], 0) for place in drawn["metaclass_of_class"]]  # turtle: other
    table(folder / "imagenet_1k_classes_to_100_metaclasses.csv", ["wnid", "name", "metaclass"], coarse)
    return folder


def table(path: Path, header: list[str], rows: list) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
