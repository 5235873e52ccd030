# SPDX-License-Identifier: Apache-2.0
"""Published corrupted images, in the two layouts that they have."""

from dataclasses import replace

import numpy as np
import PIL.Image
import pytest
import torch

from recipes_lib.data import corrupted
from recipes_lib.data.images import ImageFiles, ImageSet
from recipes_lib.errors import DataError

LABELS = torch.tensor([3, 1, 4, 1, 5, 9])
CLEAN = ImageSet(torch.zeros(6, 3, 32, 32, dtype=torch.uint8), LABELS, tuple("0123456789"))


@pytest.fixture
def arrays(tmp_path):
    """CIFAR-10-C in small: a pixel's value is its row in the array."""
    pictures = np.arange(30, dtype=np.uint8)[:, None, None, None].repeat(32, 1).repeat(32, 2).repeat(3, 3)
    np.save(tmp_path / "fog.npy", pictures)
    np.save(tmp_path / "labels.npy", np.tile(LABELS.numpy(), 5).astype(np.uint8))
    return tmp_path


@pytest.fixture
def folders(tmp_path):
    """ImageNet-C in small, with the clean images beside it: (root, clean images)."""
    names = ["n01440764/val_1.JPEG", "n01443537/val_0.JPEG"]
    for place, grey in (("val", 200), ("c/fog/1", 10), ("c/fog/5", 50)):
        for number, name in enumerate(names):
            path = tmp_path / place / name
            path.parent.mkdir(parents=True, exist_ok=True)
            PIL.Image.new("RGB", (24, 24), (grey + number,) * 3).save(path, "JPEG")
    clean = ImageFiles(tmp_path / "val", np.array(names), torch.tensor([0, 1]), ("n01440764", "n01443537"))
    return tmp_path / "c", clean


def test_arrays_hold_all_images_at_severity_one_first(arrays):
    chosen = CLEAN.select(torch.tensor([1, 5]))
    corrupted.check(arrays, ["fog"], [1, 2, 5], CLEAN)
    for severity in (1, 2, 5):
        found = corrupted.read(arrays, "fog", severity, chosen)
        assert found.images[:, 0, 0, 0].tolist() == [6 * (severity - 1) + 1, 6 * (severity - 1) + 5]
        assert torch.equal(found.labels, LABELS[[1, 5]])
        assert found.names == ("1", "5")


def test_folders_hold_the_files_under_their_clean_names(folders):
    root, clean = folders
    corrupted.check(root, ["fog"], [1, 5], clean)
    found = corrupted.read(root, "fog", 5, clean)
    assert [round(np.asarray(found.open(i)).mean()) for i in range(2)] == [50, 51]
    assert torch.equal(found.labels, clean.labels)


def test_what_a_folder_lacks_is_a_line(folders):
    root, clean = folders
    with pytest.raises(
        DataError, match=r"^.*c has no folder fog/3\. ImageNet-C has NAME/SEVERITY/CLASS/\*\.JPEG[^\n]*$"
    ):
        corrupted.check(root, ["fog"], [1, 3], clean)
    (root / "fog/5/n01443537/val_0.JPEG").unlink()
    with pytest.raises(DataError, match=r"fog/5 has no n01443537/val_0\.JPEG, which is among the clean test images\."):
        corrupted.read(root, "fog", 5, clean)
    with pytest.raises(DataError, match=r"eval\.corruption_root = .*nowhere is no folder\."):
        corrupted.check(root / "nowhere", ["fog"], [1], clean)


def test_an_array_that_is_missing_damaged_or_of_another_shape_is_a_line(arrays):
    with pytest.raises(DataError, match=r"has no snow\.npy\. .*choose others with --eval\.corruptions\.$"):
        corrupted.check(arrays, ["fog", "snow"], [1], CLEAN)
    np.save(arrays / "snow.npy", np.zeros((30, 32, 32), np.uint8))
    with pytest.raises(
        DataError, match=r"snow\.npy is uint8 \[30, 32, 32\]\. For 6 labels it has to be uint8 \[30, height"
    ):
        corrupted.read(arrays, "snow", 1, CLEAN)
    np.save(arrays / "snow.npy", np.zeros((30, 32, 32, 3), np.float32))
    with pytest.raises(DataError, match=r"snow\.npy is float32"):
        corrupted.read(arrays, "snow", 1, CLEAN)
    whole = (arrays / "fog.npy").read_bytes()
    (arrays / "fog.npy").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"^[^\n]*fog\.npy is no array that numpy can read [^\n]* Copy it again\.$"):
        corrupted.read(arrays, "fog", 1, CLEAN)


def test_objects_in_an_array_are_not_unpickled(arrays):
    np.save(arrays / "fog.npy", np.array([{"a": 1}] * 30, dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"fog\.npy is no array that numpy can read"):
        corrupted.read(arrays, "fog", 1, CLEAN)


def test_images_of_another_test_set_are_refused(arrays):
    other = replace(CLEAN, labels=torch.tensor([3, 1, 4, 1, 5, 2]))
    with pytest.raises(
        DataError, match=r"says that test image 5 is of class 9, and in the run's data it is of class 2\."
    ):
        corrupted.read(arrays, "fog", 1, other)
    named = replace(CLEAN, names=tuple("abcdef"))
    with pytest.raises(DataError, match=r"The test image 'a' of the run is none of the 6 of"):
        corrupted.read(arrays, "fog", 1, named)
    more = replace(CLEAN, names=("0", "1", "2", "3", "4", "6"))
    with pytest.raises(DataError, match=r"The test image '6'"):
        corrupted.read(arrays, "fog", 1, more)
    np.save(arrays / "labels.npy", np.zeros(31, np.uint8))
    with pytest.raises(DataError, match=r"labels\.npy is uint8 \[31\]\. CIFAR-10-C has integers \[50000\]"):
        corrupted.check(arrays, ["fog"], [1], CLEAN)
