# SPDX-License-Identifier: Apache-2.0
"""ImageNet-X's annotations from either layout are the same arrays, and another version is told."""

import gzip
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from recipes_lib.errors import DataError
from recipes_lib.factors import annotations, imagenet_x_files, imagenet_x_folder


def saved(folder: Path, drawn, **changes) -> Path:
    path = folder / "imagenet_x_val.npz"
    np.savez(path, **{key: value for key, value in (drawn | changes).items() if value is not None})
    return path


def coarse_names(found) -> list[str]:
    return [found.metaclasses.names[place] for place in found.metaclasses.of_class]


def test_both_layouts_give_the_same_annotations(compact, official):
    ours, train = imagenet_x_files.read(compact)
    theirs, _ = imagenet_x_files.read(official)
    assert train is None
    for part in ("names", "labels"):
        np.testing.assert_array_equal(getattr(ours, part), getattr(theirs, part))
    for kind in ("top", "multi"):
        np.testing.assert_array_equal(ours.marks[kind], theirs.marks[kind])
        assert ours.marks[kind].any(axis=0).all()
    np.testing.assert_array_equal(ours.kept, theirs.kept)
    np.testing.assert_array_equal(ours.real.labels, theirs.real.labels)
    np.testing.assert_array_equal(ours.real.offsets, theirs.real.offsets)
    assert coarse_names(ours) == coarse_names(theirs)


def test_only_annotated_images_that_are_no_prototypes_count(compact, drawn):
    found, _ = imagenet_x_files.read(compact)
    np.testing.assert_array_equal(found.kept, drawn["annotated"] & ~drawn["prototype"])
    assert found.left_out["not annotated"].sum() == 20
    assert not (found.left_out["not annotated"] & found.left_out["prototype"]).any()


def test_a_folder_may_be_the_package_or_that_of_the_compact_file(compact, official):
    for folder in (compact.parent, official.parent):
        assert len(imagenet_x_files.read(folder).val.names) == 500


def test_factors_are_found_by_name_in_whatever_order_a_file_has_them(drawn, compact, tmp_path):
    order = np.random.default_rng(1).permutation(16)  # new place of each factor
    names = np.empty(16, drawn["factor_names"].dtype)
    names[order] = drawn["factor_names"]
    bits = sum(((drawn["multi_factor_bits"].astype(int) >> k) & 1) << order[k] for k in range(16))
    top = np.where(drawn["top_factor"] < 0, -1, order[drawn["top_factor"]])
    found, _ = imagenet_x_files.read(saved(tmp_path, drawn, factor_names=names, multi_factor_bits=bits, top_factor=top))
    expected, _ = imagenet_x_files.read(compact)
    for kind in ("top", "multi"):
        np.testing.assert_array_equal(found.marks[kind], expected.marks[kind])


def test_training_images_lie_beside_the_compact_file(drawn, tmp_path):
    path = saved(tmp_path, drawn)
    rows = "".join(f"n0_{row}.JPEG,{row % 1000},{row % 16},{1 << row % 16}\n" for row in range(110))
    with gzip.open(tmp_path / "imagenet_x_train.csv.gz", "wt") as file:
        file.write("file_name,label,top_factor,multi_factor_bits\n" + rows)
    train = imagenet_x_files.read(path).train
    assert train.kept.sum() == 110
    np.testing.assert_array_equal(train.marks["top"], train.marks["multi"])
    np.testing.assert_array_equal(train.marks["top"][:16], np.eye(16, dtype=bool))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"top_factor": None}, "holds no annotations: top_factor missing"),
        ({"label": np.zeros(499, np.int16)}, "another version, or not whole: 499 rows of label, where there are 500"),
        ({"annotated": np.ones(500, bool)}, "500 annotated images, where there are 480"),
        ({"prototype": np.zeros(500, bool)}, "0 prototypes, where there are 30"),
        ({"label": np.full(500, 1000)}, "label is not all whole numbers from 0 to 999"),
        ({"factor_names": np.array([*annotations.FACTORS[1:], "hue"])}, "lacks pose; it has others: hue"),
    ],
)
def test_a_compact_file_of_another_version_is_told_in_one_line(drawn, tmp_path, changes, words):
    path = saved(tmp_path, drawn, **changes)
    with pytest.raises(DataError, match=words) as error:
        imagenet_x_files.read(path)
    assert str(path) in str(error.value)
    assert "pip install --no-deps imagenet-x==0.0.7" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_place_without_annotations_says_how_to_get_them(tmp_path):
    (tmp_path / "x.csv").touch()
    (tmp_path / "x.npz").write_bytes(b"PK")
    for path, words in (
        (tmp_path / "none", "does not exist"),
        (tmp_path, "has no imagenet_x_val_top_factor.jsonl"),
        (tmp_path / "x.csv", "neither a folder nor an .npz file"),
        (tmp_path / "x.npz", "cannot be read as an .npz file"),
    ):
        with pytest.raises(DataError, match=words) as error:
            imagenet_x_files.read(path)
        assert "\n" not in str(error.value)


def first_line_replaced(old: str, new: str):
    def change(text: str) -> str:
        first, rest = text.split("\n", 1)
        assert old in first
        return first.replace(old, new, 1) + "\n" + rest

    return change


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        (
            "imagenet_x_val_multi_factor.jsonl",
            first_line_replaced('"texture"', '"textures"'),
            "lacks texture; .*: textures",
        ),
        ("imagenet_x_val_top_factor.jsonl", first_line_replaced("ILSVRC2012", "ILSVRC2010"), "is no validation image"),
        ("imagenet_x_val_multi_factor.jsonl", first_line_replaced('{"file', "{file"), "line 1, is no annotation"),
        ("imagenet_x_val_top_factor.jsonl", lambda text: text.split("\n", 1)[1], "479 annotated images"),
        (
            "filename_label.csv",
            lambda text: re.sub(r",(\d+)$", ",7", text, flags=re.M),
            "class of .* is not that of filename_label",
        ),
        ("filename_label.csv", lambda text: text.replace("label", "number", 1), "lacks a column of file_name, label"),
        ("prototypical_paths.csv", lambda text: text.rsplit("\n", 2)[0] + "\n", "29 prototypes"),
        ("imagenet_real_labels.jsonl", lambda text: "[[1]]", "1 images, where there are 500"),
        ("imagenet_1k_classes_to_100_metaclasses.csv", lambda text: "wnid,name\n", "0 classes"),
    ],
)
def test_a_folder_of_another_version_is_told_in_one_line(official, tmp_path, file, change, words):
    folder = tmp_path / "annotations"
    shutil.copytree(official, folder)
    (folder / file).write_text(change((folder / file).read_text()))
    with pytest.raises(DataError, match=words) as error:
        imagenet_x_folder.read(folder)
    assert "\n" not in str(error.value)


def test_parts_that_do_not_fit_together_are_refused(eight):
    with pytest.raises(ValueError, match=r"marks 'multi' are float64"):
        replace(eight, marks={"multi": np.zeros((8, 2))})
    with pytest.raises(ValueError, match="7 labels for 8 images"):
        replace(eight, labels=eight.labels[1:])
    with pytest.raises(ValueError, match="labels from 0 to 0 with 0 classes"):
        replace(eight, classes=0)
