# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest
import torch
from PIL import Image

from recipes_lib.errors import DataError
from recipes_lib.factors.gaps import CANONICAL
from recipes_lib.recipes.natural_variation import table

HEADER = "file_name,class,instance,split,pose,size"


def _folder(place: Path, lines: list[str], header: str = HEADER) -> Path:
    """A folder with an image for each line of its table, whose red value is the line's number."""
    for number, line in enumerate(lines):
        Image.new("RGB", (20, 16), (number, 0, 0)).save(place / line.split(",")[0])
    path = place / "factors.csv"
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


GOOD = [
    "a0.png,cup,one,train,0,1", "a1.png,cup,one,train,30,1", "b0.png,cup,two,test,,", "b1.png,cup,two,test,90,",
    "c0.png,pot,one,train,0,1", "c1.png,pot,one,train,10,canonical", "d0.png,pot,two,test,0,1", "d1.png,pot,two,test,5,1",
    "d2.png,pot,two,test,7,0.5",
]  # fmt: skip


def _read(path: Path, **options) -> table.Table:
    options = {"canonical": ("pose=0", "size=1"), "side": 8, "seed": 0, **options}
    return table.read(path.parent, path, **options)


def test_factors_classes_instances_and_splits_are_read(tmp_path):
    found = _read(_folder(tmp_path, GOOD))
    assert found.class_names == ("cup", "pot")
    assert found.factors == ("pose", "size")
    assert found.varied[1] == ("pose",)
    assert found.varied[2] == CANONICAL
    assert found.varied[8] == ("pose", "size")
    assert found.has(("pose", "size"))
    assert not found.has(("size",))
    shots = found.shots("test", ("pose",))
    assert shots.labels.tolist() == [0, 1]
    assert found.shots("train", ("pose",)).instances.tolist() != shots.instances.tolist()
    assert found.images(shots)[:, 0, 0, 0].tolist() == [3, 7]
    assert found.images(shots).shape == (2, 3, 8, 8)


def test_without_a_split_instances_are_divided_and_never_images(tmp_path):
    lines = [f"{c}{i}{v}.png,{c},{i},{v},1" for c in "xy" for i in range(6) for v in (0, 30, 60)]
    found = _read(_folder(tmp_path, lines, "file_name,class,instance,pose,size"))
    for label in (0, 1):
        sides = {
            int(i): set(found.training[found.instances == i].tolist())
            for i in found.instances[found.files.labels == label]
        }
        assert all(len(side) == 1 for side in sides.values())
        assert sum(True in side for side in sides.values()) == 3


@pytest.mark.parametrize(
    ("lines", "header", "said"),
    [
        ([*GOOD, "e.png,cup,one,test,0,1"], HEADER, r"train and test share 1 instances \(one of cup\)"),
        ([GOOD[0].replace("train", "val"), *GOOD[1:]], HEADER, "has the split 'val': use train or test"),
        (GOOD[:4], HEADER, "has 1 class; a classifier needs two"),
        (GOOD[:6], HEADER, "class 'pot' needs at least one training and one test instance"),
        ([*GOOD, GOOD[0]], HEADER, "names 1 files more than once: a0.png"),
        ([line.replace(",0,1", ",3,1") for line in GOOD if "b0" not in line], HEADER, "has no canonical image"),
        ([line.rsplit(",", 2)[0] for line in GOOD], "file_name,class,instance,split", "has no factors: add a column"),
        (GOOD, HEADER.replace("instance", "thing"), "lacks the column instance; it has file_name"),
        (["a.png,cup"], HEADER, "line 2, has 2 values for 6 columns"),
    ],
)
def test_a_table_that_cannot_be_used_is_named(tmp_path, lines, header, said):
    with pytest.raises(DataError, match=said):
        _read(_folder(tmp_path, lines, header))


def test_an_instance_without_a_partner_is_named(tmp_path):
    found = _read(_folder(tmp_path, [line for line in GOOD if "d0" not in line]))
    with pytest.raises(DataError, match=r"1 test instances have no canonical image: d1\.png"):
        found.shots("test", CANONICAL)


def test_a_missing_file_and_a_wrong_canonical_value_are_named(tmp_path):
    path = _folder(tmp_path, GOOD)
    with pytest.raises(DataError, match=r"data.canonical has 'yaw=0': use FACTOR=VALUE. There are: pose, size"):
        _read(path, canonical=("yaw=0",))
    (tmp_path / "a1.png").unlink()
    with pytest.raises(DataError, match=r"lacks 1 of 9 files that .* names: a1\.png"):
        _read(path)
    with pytest.raises(DataError, match="cannot be read as a CSV file"):
        _read(tmp_path / "none.csv")


def test_training_instances_are_on_one_side_for_every_seed(tmp_path):
    lines = [f"{c}{i}.png,{c},{i},0,1" for c in "xy" for i in range(3)]
    path = _folder(tmp_path, lines, "file_name,class,instance,pose,size")
    splits = {tuple(_read(path, seed=seed).training.tolist()) for seed in range(8)}
    assert len(splits) > 1
    assert all(torch.tensor(split).view(2, 3).sum(1).tolist() == [2, 2] for split in splits)
