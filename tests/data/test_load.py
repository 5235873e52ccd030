# SPDX-License-Identifier: Apache-2.0
import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from recipes_lib.config import DataConfig
from recipes_lib.data.images import ImageSet
from recipes_lib.data.load import Splits, check_scored, load
from recipes_lib.errors import DataError


@pytest.fixture
def photos(tmp_path):
    """Three images of each of two classes to train on, one to test on."""
    for split, count in {"train": 3, "val": 1}.items():
        for name in ("n01", "n02"):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = np.random.default_rng(number).integers(0, 256, (20, 20, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / name / f"{name}_{number}.JPEG")
    return tmp_path


def truncate(path) -> None:
    path.write_bytes(path.read_bytes()[:200])


def digits_config(**changes) -> DataConfig:
    return DataConfig(name="digits", image_size=8, train_size=100, test_size=20, **changes)


def test_digits_have_the_sizes_asked_for():
    splits = load(digits_config(), seed=0)
    assert splits.train.images.shape == (100, 3, 8, 8)
    assert splits.test.images.shape == (20, 3, 8, 8)


def test_the_held_out_share_takes_the_place_of_the_test_set():
    whole = load(digits_config(), seed=0).train
    splits = load(digits_config(holdout=0.3), seed=0)
    assert (len(splits.train), len(splits.test)) == (70, 30)
    scans = torch.cat([splits.train.factors["scan"], splits.test.factors["scan"]])
    assert torch.equal(scans.sort().values, whole.factors["scan"].sort().values)


def test_no_held_out_digit_is_of_a_scan_that_is_trained_on():
    config = DataConfig(name="digits", image_size=8, train_size=4000, test_size=20, holdout=0.2)
    found = load(config, seed=0)
    assert len(found.train) + len(found.test) == 4000
    assert len(found.test) == pytest.approx(800, abs=40)
    assert not torch.isin(found.test.factors["scan"], found.train.factors["scan"]).any()
    assert not torch.equal(found.test.factors["scan"], load(config, seed=1).test.factors["scan"])


@pytest.mark.parametrize("share", [0.001, 0.999])
def test_a_share_that_leaves_nothing_is_refused(share):
    with pytest.raises(DataError, match=f"data.holdout = {share} keeps (0|100) of 100"):
        load(digits_config(holdout=share), seed=0)


def test_a_missing_npz_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"gone\.npz is no file"):
        load(DataConfig(name="npz", root=tmp_path / "gone.npz"), seed=0)


def test_only_labelled_images_are_held_out_and_given_to_probes(tmp_path, monkeypatch):
    labels = torch.tensor([0, 1, -1, -1, 1, 0])
    images = ImageSet(torch.zeros(6, 3, 4, 4, dtype=torch.uint8), labels, ("a", "b"))
    monkeypatch.setattr("recipes_lib.data.torchvision_sets.stl10", lambda root: (images, images))
    lines = []
    splits = load(DataConfig(name="stl10", root=tmp_path, holdout=0.5), seed=0, warn=lines.append)
    assert lines == list(splits.notes) == ["2 of 6 test images have no label, and are left out."]
    assert len(splits.test) == 2
    assert (splits.test.labels >= 0).all()
    assert (splits.train.labels == -1).sum() == 2
    assert Splits(images, images).labelled_train.labels.tolist() == [0, 1, 1, 0]


def test_no_labels_at_all_are_refused_where_a_probe_needs_them():
    images = ImageSet(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), None, ())
    with pytest.raises(DataError, match="The training images have no labels"):
        _ = Splits(images, images).labelled_train


def test_damaged_files_among_good_ones_are_left_out_named_and_counted(photos):
    for name in ("n01/n01_2.JPEG", "n02/n02_0.JPEG"):
        truncate(photos / "train" / name)
    lines = []
    splits = load(DataConfig(name="imagenet", root=photos, on_damage="skip"), seed=0, warn=lines.append)
    assert splits.train.names.tolist() == ["n01/n01_0.JPEG", "n01/n01_1.JPEG", "n02/n02_1.JPEG", "n02/n02_2.JPEG"]
    assert splits.train.labels.tolist() == [0, 0, 1, 1]
    assert len(splits.test) == 2
    (line,) = [line for line in lines if "are damaged and left out" in line]
    assert line.startswith("2 of 6 images under ")
    assert line.endswith("n01/n01_2.JPEG, n02/n02_0.JPEG")


def test_a_damaged_file_stops_when_it_is_opened_unless_it_is_to_be_skipped(photos):
    truncate(photos / "train" / "n01" / "n01_0.JPEG")
    splits = load(DataConfig(name="imagenet", root=photos), seed=0)
    with pytest.raises(DataError, match=r"n01_0\.JPEG cannot be read.*--data\.on-damage skip"):
        splits.train.open(0)


def test_a_folder_of_nothing_but_damage_is_refused(photos):
    for path in (photos / "val").rglob("*.JPEG"):
        truncate(path)
    with pytest.raises(DataError, match=r"None of the 2 images under .*val can be read"):
        load(DataConfig(name="imagenet", root=photos, on_damage="skip"), seed=0, warn=lambda line: None)


def damage(path) -> None:
    path.write_bytes(b"no image")


def test_a_damaged_image_that_is_scored_is_met_before_training(photos):
    config = DataConfig(name="imagenet", root=photos)
    check_scored(load(config, seed=0), config, warn=(lines := []).append)
    assert lines == []
    Image.new("LA", (9, 9)).save(photos / "val" / "n01" / "clear.png")
    check_scored(load(config, seed=0), config, warn=lines.append)
    assert lines == [f"1 of 3 images under {photos / 'val'}: transparent image, composited over white."]
    damage(photos / "val" / "n02" / "n02_0.JPEG")
    with pytest.raises(DataError, match=r"val/n02/n02_0\.JPEG cannot be read.*--data\.on-damage skip"):
        check_scored(load(config, seed=0), config)
    config = replace(config, on_damage="skip")
    check_scored(load(config, seed=0, warn=[].append), config)


def test_what_decoding_has_to_remark_is_counted_with_the_damage(photos):
    Image.fromarray(np.full((9, 9), 40_000, np.uint16)).save(photos / "train" / "n01" / "deep.png")
    Image.new("RGBA", (9, 9)).save(photos / "train" / "n02" / "clear.png")
    damage(photos / "train" / "n02" / "n02_0.JPEG")
    splits = load(DataConfig(name="imagenet", root=photos, on_damage="skip"), seed=0, warn=(lines := []).append)
    told = [line.removeprefix(f"1 of 8 images under {photos / 'train'}") for line in lines]
    assert ": 16-bit grey image, divided by 256." in told
    assert ": transparent image, composited over white." in told
    assert " are damaged and left out (damaged image 1): n02/n02_0.JPEG" in told
    assert splits.summary() == {"train": 7, "labelled": 7, "test": 2, "notes": lines}


def test_files_that_were_passed_over_are_told_and_kept(photos):
    (photos / "train" / "n01" / "other.heic").touch()
    splits = load(DataConfig(name="imagenet", root=photos), seed=0, warn=(lines := []).append)
    assert lines == list(splits.notes)
    assert lines[0].endswith("train: 6 images of 2 classes; 1 files and folders passed over (.heic 1).")


def test_images_without_val_are_trained_on_and_never_scored_as_test_images(photos):
    shutil.rmtree(photos / "val")
    splits = load(DataConfig(name="imagenet", root=photos), seed=0, warn=(lines := []).append)
    assert (len(splits.train), splits.train.labels.tolist()) == (6, [0, 0, 0, 1, 1, 1])
    assert splits.test.labels is None  # so that every probe is refused
    assert "no images to be scored on" in lines[0]
    held = load(DataConfig(name="imagenet", root=photos, holdout=0.5), seed=0, warn=(lines := []).append)
    assert (len(held.train), len(held.test), held.test.labels is not None, lines) == (3, 3, True, [])


def test_images_set_aside_are_known_by_what_set_them_aside(photos):
    damage(photos / "train" / "n02" / "n02_0.JPEG")
    (photos / "list.txt").write_text("n01_0.JPEG")
    how = {"name": "imagenet", "root": photos, "on_damage": "skip", "holdout": 0.4, "labelled": photos / "list.txt"}
    splits = load(DataConfig(**how), seed=0, warn=[].append)
    reasons = Counter(reason.split()[1] for reason in splits.aside.values())
    assert reasons == {"damaged,": 1, "held": 2}
    assert splits.aside["n02/n02_0.JPEG"] == "is damaged, and --data.on-damage skip left it out"
    assert load(DataConfig(**how | {"labelled": None}), seed=0, warn=[].append).aside == {}


def test_an_empty_list_of_labelled_images_is_refused_before_any_image_is_looked_for(tmp_path):
    (tmp_path / "list.txt").touch()
    with pytest.raises(DataError, match=r"list\.txt names no image"):
        load(DataConfig(name="imagenet", root=tmp_path / "gone", labelled=tmp_path / "list.txt"), seed=0)


def labelled_npz(path, labels: list[int]):
    images = np.arange(len(labels), dtype=np.uint8)[:, None, None, None].repeat(8, 1).repeat(8, 2).repeat(3, 3)
    np.savez(path, x_train=images, y_train=np.array(labels), x_test=images, y_test=np.array(labels))
    return DataConfig(name="npz", root=path, image_size=8)


def test_a_share_keeps_the_first_images_of_each_class_rounded_down(tmp_path):
    config = labelled_npz(tmp_path / "images.npz", [1, 0, 1, 1, 0, 1, 1])  # two of class 0, five of class 1
    kept = load(replace(config, share=0.5), 0).train
    assert kept.images[:, 0, 0, 0].tolist() == [0, 1, 2]
    assert kept.labels.tolist() == [1, 0, 1]
    assert len(load(replace(config, share=1.0), 0).train) == 7


def test_a_share_that_leaves_a_class_without_images_is_refused(tmp_path):
    config = labelled_npz(tmp_path / "images.npz", [1, 0, 1, 1, 0, 1, 1])
    with pytest.raises(
        DataError, match=r"data\.share = 0\.3 leaves none of the 2 images of class 0\. Use at least 0\.5"
    ):
        load(replace(config, share=0.3), 0)


def test_a_share_needs_labels(tmp_path):
    images = np.zeros((4, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", x_train=images, x_test=images)
    with pytest.raises(DataError, match=r"data\.share takes a share of each class"):
        load(DataConfig(name="npz", root=tmp_path / "images.npz", share=0.5), 0)


@pytest.mark.parametrize(("name", "size"), [("four_digits", 32), ("neighbour_pairs", 8)])
def test_the_small_tasks_are_drawn(name, size):
    splits = load(DataConfig(name=name, image_size=size, train_size=12, test_size=5), 3)
    assert (len(splits.train), len(splits.test)) == (12, 5)
    assert splits.train.images.shape[1:] == (3, size, size)
