# SPDX-License-Identifier: Apache-2.0
"""torchvision's own file formats, fabricated small; their checksums are taken for right where a test says so."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from recipes_lib.data import torchvision_sets
from recipes_lib.errors import DataError

RNG = np.random.default_rng(0)


@pytest.fixture
def trusting(monkeypatch):
    """torchvision compares no checksum, only whether the file is there."""
    for module in ("cifar", "stl10", "places365"):
        monkeypatch.setattr(
            f"torchvision.datasets.{module}.check_integrity", lambda path, md5=None: Path(path).is_file()
        )


@pytest.fixture
def cifar(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for number, name in enumerate([f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]):
        rows = RNG.integers(0, 256, (4, 3072), dtype=np.uint8)
        rows[:, 0] = number
        (folder / name).write_bytes(pickle.dumps({"data": rows, "labels": [0, 1, 2, 3]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"class {i}" for i in range(10)]}))
    return tmp_path


@pytest.fixture
def stl(tmp_path):
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    for name, count in {"train": 3, "test": 2, "unlabeled": 4}.items():
        (folder / f"{name}_X.bin").write_bytes(RNG.integers(0, 256, count * 3 * 96 * 96, dtype=np.uint8).tobytes())
    (folder / "train_y.bin").write_bytes(bytes([1, 10, 2]))  # STL-10 counts its classes from 1
    (folder / "test_y.bin").write_bytes(bytes([1, 3]))
    (folder / "class_names.txt").write_text("\n".join(f"class {i}" for i in range(10)))
    return tmp_path


def image_folder(root: Path, splits: dict[str, list[str]]) -> Path:
    for split, classes in splits.items():
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for number in range(2):
                Image.new("RGB", (9, 7)).save(root / split / name / f"{name}_{number}.JPEG")
    return root


@pytest.fixture
def inat(tmp_path):
    for species in ("Plantae/0", "Aves/1", "Aves/2"):
        folder = tmp_path / "2018" / species
        folder.mkdir(parents=True)
        for name in ("b", "a", "c"):
            Image.new("RGB", (9, 7)).save(folder / f"{name}.jpg")
    held = [{"file_name": f"train_val2018/{name}.jpg"} for name in ("Aves/1/b", "Plantae/0/c")]
    (tmp_path / "val2018.json").write_text(json.dumps({"images": held}))
    return tmp_path


def places(root: Path, size: str = "256") -> Path:
    """The lists, and one image a split."""
    (root / "categories_places365.txt").write_text("/a/airfield 0\n/z/zen_garden 1\n")
    lists = {
        "places365_train_standard.txt": "/z/zen_garden/00000002.jpg 1\n/a/airfield/00000001.jpg 0\n",
        "places365_val.txt": "Places365_val_00000001.jpg 1\n",
    }
    for (name, text), folder in zip(lists.items(), (f"data_{size}_standard", f"val_{size}"), strict=True):
        (root / name).write_text(text)
        first = root / folder / text.split()[0].lstrip("/")
        first.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 7)).save(first)
    return root


def test_cifar_10_is_read_in_its_order(cifar, trusting):
    train, test = torchvision_sets.cifar10(cifar)
    assert train.images.shape == (20, 3, 32, 32)
    assert test.images.shape == (4, 3, 32, 32)
    assert train.images[:, 0, 0, 0].tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4 + [4] * 4
    stored = pickle.loads((cifar / "cifar-10-batches-py" / "test_batch").read_bytes())["data"]
    assert np.array_equal(test.images.flatten(1).numpy(), stored)  # a row is red, green, blue, each line by line
    assert train.labels.tolist() == [0, 1, 2, 3] * 5
    assert train.class_names[9] == "class 9"


def test_stl_10_trains_on_labelled_and_unlabelled_images(stl, trusting):
    train, test = torchvision_sets.stl10(stl)
    assert train.images.shape == (7, 3, 96, 96)
    assert train.labels.tolist() == [0, 9, 1, -1, -1, -1, -1]
    assert test.labels.tolist() == [0, 2]
    assert test.labels.dtype == torch.int64


def test_imagenet_is_read_from_plain_folders(tmp_path):
    train, val = torchvision_sets.imagenet(image_folder(tmp_path, {"train": ["n01", "n02"], "val": ["n01", "n02"]}))
    assert train.names.tolist() == ["n01/n01_0.JPEG", "n01/n01_1.JPEG", "n02/n02_0.JPEG", "n02/n02_1.JPEG"]
    assert train.labels.tolist() == val.labels.tolist() == [0, 0, 1, 1]
    assert train.class_names == ("n01", "n02")
    assert train.open(3).size == (9, 7)


def test_inaturalist_is_split_by_its_validation_list_in_an_order_of_its_own(inat):
    train, val = torchvision_sets.inat18(inat)
    assert val.names.tolist() == ["Plantae/0/c.jpg", "Aves/1/b.jpg"]
    assert val.labels.tolist() == [0, 1]
    assert train.names[:3].tolist() == ["Plantae/0/a.jpg", "Plantae/0/b.jpg", "Aves/1/a.jpg"]
    assert train.labels.tolist() == [0, 0, 1, 1, 2, 2, 2]
    assert train.class_names == val.class_names == ("Plantae/0", "Aves/1", "Aves/2")
    assert train.open(6).size == (9, 7)


@pytest.mark.parametrize("missing", ["2018", "val2018.json"])
def test_what_inaturalist_lacks_is_named_and_nothing_is_made(inat, missing):
    (inat / missing).rename(inat / "elsewhere")
    with pytest.raises(DataError, match=rf"has no {missing}\. iNaturalist 2018 is expected as") as error:
        torchvision_sets.inat18(inat)
    assert "\n" not in str(error.value)
    assert not (inat / missing).exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{}", "is no list of iNaturalist's images"),
        ("not json", "is no list of iNaturalist's images"),
        ('{"images": [{"file_name": "train_val2018/Aves/9/a.jpg"}]}', "names 0 of the 9 images"),
    ],
)
def test_a_validation_list_that_does_not_fit_is_refused(inat, text, words):
    (inat / "val2018.json").write_text(text)
    with pytest.raises(DataError, match=words):
        torchvision_sets.inat18(inat)


def test_species_folders_that_are_no_numbers_or_leave_one_out_are_refused(inat):
    (inat / "2018" / "Aves" / "2").rename(inat / "2018" / "Aves" / "sparrow")
    with pytest.raises(DataError, match=r"Unexpected non-numeric dir name: sparrow\. iNaturalist 2018 is expected"):
        torchvision_sets.inat18(inat)
    (inat / "2018" / "Aves" / "sparrow").rename(inat / "2018" / "Aves" / "3")
    with pytest.raises(DataError, match="Missing category 2"):
        torchvision_sets.inat18(inat)


@pytest.mark.parametrize("size", ["256", "large"])
def test_places_is_read_from_its_lists(tmp_path, trusting, size):
    train, val = torchvision_sets.places365(places(tmp_path, size))
    assert train.names.tolist() == ["z/zen_garden/00000002.jpg", "a/airfield/00000001.jpg"]
    assert train.labels.tolist() == [1, 0]
    assert train.class_names == ("/a/airfield", "/z/zen_garden")
    assert train.open(0).size == val.open(0).size == (9, 7)
    assert val.labels.tolist() == [1]


def test_places_without_its_lists_or_folders_is_refused(tmp_path, trusting):
    with pytest.raises(
        DataError, match=r"categories_places365\.txt does not exist .*Places365 is expected in"
    ) as error:
        torchvision_sets.places365(tmp_path)
    assert "download=True" not in str(error.value)
    places(tmp_path)
    (tmp_path / "val_256").rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"has no folder val_256\. Places365 is expected"):
        torchvision_sets.places365(tmp_path)


def test_lists_of_places_with_another_checksum_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"categories_places365\.txt does not exist or is corrupted"):
        torchvision_sets.places365(places(tmp_path))


@pytest.mark.parametrize(
    ("read", "title"), [(torchvision_sets.cifar10, "CIFAR-10"), (torchvision_sets.stl10, "STL-10")]
)
def test_an_empty_folder_is_refused_with_what_is_expected_and_where_to_get_it(tmp_path, read, title):
    with pytest.raises(DataError, match=rf"{title} is expected in .*download http.* and unpack it in") as error:
        read(tmp_path)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(cifar):
    (cifar / "cifar-10-batches-py" / "data_batch_3").unlink()
    with pytest.raises(DataError, match=r"has no cifar-10-batches-py/data_batch_3\. CIFAR-10 is expected"):
        torchvision_sets.cifar10(cifar)


def test_a_file_with_another_checksum_is_not_read(cifar, stl, monkeypatch):
    monkeypatch.setattr(pickle, "load", lambda *args, **kwargs: pytest.fail("unpickled a file that was not checked"))
    for read, title in [(torchvision_sets.cifar10, "CIFAR-10"), (torchvision_sets.stl10, "STL-10")]:
        with pytest.raises(DataError, match=f"a file whose checksum is not {title}'s"):
            read(cifar)


@pytest.mark.parametrize(
    ("splits", "text"),
    [
        ({}, "has no folder train. Image files are expected as"),
        ({"train": ["n01"]}, "has no folder val"),
        ({"train": [], "val": []}, "has no folder train"),
        ({"train": ["n01", "n02"], "val": ["n01"]}, "train has 2 classes and val 1; n02 is only in train"),
        ({"train": ["n01"], "val": ["n03"]}, "n01 is only in train"),
    ],
)
def test_image_folders_that_do_not_fit_are_refused(tmp_path, splits, text):
    with pytest.raises(DataError, match=text):
        torchvision_sets.imagenet(image_folder(tmp_path, splits))


def test_folders_without_classes_or_without_images_are_refused(tmp_path):
    image_folder(tmp_path, {"train": ["n01"]})
    (tmp_path / "val").mkdir()
    with pytest.raises(DataError, match=r"val has no image\..*expected as .*val/CLASS"):
        torchvision_sets.imagenet(tmp_path)
    (tmp_path / "val" / "n01").mkdir()
    with pytest.raises(DataError, match="val: Found no valid file for the classes n01"):
        torchvision_sets.imagenet(tmp_path)
