# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest
from torchvision import datasets

from recipes_lib.data import folders, torchvision_sets
from recipes_lib.errors import DataError


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


TREE = ("b/2.png", "b/10.png", "a/z.JPEG", "a/deep-er/x.jpg", "a/deep/x.jpg", "a/deep/y.webp", "c/1.tif")


def test_images_come_in_torchvisions_order_with_its_classes(tmp_path):
    files = folders.read(touch(tmp_path, *TREE))
    peer = datasets.ImageFolder(tmp_path)
    assert [str(files.path(i)) for i in range(len(files))] == [path for path, _ in peer.samples]
    assert files.labels.tolist() == peer.targets
    assert files.class_names == tuple(peer.classes)
    assert files.notes == ()


def test_images_without_a_label_are_last_and_never_a_class(tmp_path):
    files = folders.read(touch(tmp_path, "unlabeled/5.png", "Unlabelled/deep/6.png", "a/1.png", "0.png", "b/2.png"))
    assert files.class_names == ("a", "b")
    assert files.names.tolist() == ["a/1.png", "b/2.png", "0.png", "Unlabelled/deep/6.png", "unlabeled/5.png"]
    assert files.labels.tolist() == [0, 1, -1, -1, -1]
    assert files.notes == (f"{tmp_path}: 5 images of 2 classes, 3 without a label.",)


def test_what_other_programs_leave_behind_is_no_class_and_no_image(tmp_path):
    junk = (".ipynb_checkpoints/a-checkpoint.png", "@eaDir/1.png", "__MACOSX/a/1.png", "a/@eaDir/1.png", "a/._1.png")
    files = folders.read(touch(tmp_path, "a/1.png", "b/2.png", *junk))
    assert (files.class_names, files.names.tolist()) == (("a", "b"), ["a/1.png", "b/2.png"])
    (note,) = files.notes
    assert note == (
        f"{tmp_path}: 2 images of 2 classes; 5 files and folders passed over "
        "(.ipynb_checkpoints/ 1, @eaDir/ 2, __MACOSX/ 1, hidden files 1)."
    )


def test_files_passed_over_are_counted_by_kind(tmp_path):
    files = folders.read(
        touch(tmp_path, "a/1.jfif", "a/2.png", "a/3.JPG_large", "a/4.jpg_large", "a/readme", "a/n.txt")
    )
    assert files.names.tolist() == ["a/1.jfif", "a/2.png"]  # a .jfif is a JPEG file
    (note,) = files.notes
    assert note.endswith("4 files and folders passed over (.jpg_large 2, .txt 1, files without a suffix 1).")


def test_only_the_most_frequent_of_many_kinds_are_named(tmp_path):
    (note,) = folders.read(
        touch(tmp_path, "a/1.png", "a/x.most", "a/y.most", *(f"a/x.{n:03d}" for n in range(50)))
    ).notes
    assert note.endswith(", .most 2, ...).")
    assert note.count(",") == 12


def test_a_class_folder_of_other_files_is_refused_with_the_endings_that_count(tmp_path):
    with pytest.raises(DataError, match=r"no valid file for the classes b, c\. Images end in .*\.jfif"):
        folders.read(touch(tmp_path, "a/1.png", "b/1.heic", "c/._1.png"))


def test_a_link_to_a_folder_around_it_is_not_followed(tmp_path):
    touch(tmp_path, "a/1.png", "a/sub/2.png", "elsewhere/3.png")
    (tmp_path / "a" / "sub" / "round").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "away").symlink_to(tmp_path / "elsewhere")
    assert folders.read(tmp_path).names.tolist() == ["a/1.png", "a/away/3.png", "a/sub/2.png", "elsewhere/3.png"]


def test_images_of_ones_own_need_no_classes_and_no_val(tmp_path):
    train, val = torchvision_sets.own_images(touch(tmp_path / "flat", "2.png", "1.png", "more/3.png"))
    assert (train.names.tolist(), train.labels, train.class_names, val) == (["1.png", "2.png"], None, (), None)
    assert train.notes == (f"{tmp_path / 'flat'}: 2 images; 1 files and folders passed over (more/ 1).",)
    train, val = torchvision_sets.own_images(touch(tmp_path / "split", "train/1.png"))
    assert (train.names.tolist(), train.labels, val) == (["1.png"], None, None)
    train, val = torchvision_sets.own_images(touch(tmp_path / "val", "train/a/1.png", "train/2.png", "val/a/3.png"))
    assert train.labels.tolist() == [0, -1]
    assert val.labels.tolist() == [0]


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (("sub/1.png",), r"has no image\. .*Image files are expected in"),
        (("val/a/1.png",), "has no folder train"),
        (("train/a/1.png", "val/b/1.png"), "a is only in train"),
        (("train/a/1.png", "val/readme.txt"), r"val has no image"),
    ],
)
def test_folders_of_which_too_little_is_known_are_refused(tmp_path, names, text):
    with pytest.raises(DataError, match=text):
        torchvision_sets.own_images(touch(tmp_path, *names))


def test_a_report_on_validation_images_takes_those_with_a_class_alone(tmp_path):
    touch(tmp_path, "val/a/1.png", "val/2.png", "flat/val/1.png")
    assert torchvision_sets.image_folder(tmp_path, "val").names.tolist() == ["a/1.png"]
    with pytest.raises(DataError, match="Couldn't find any class folder"):
        torchvision_sets.image_folder(tmp_path / "flat", "val")
