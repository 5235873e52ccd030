# SPDX-License-Identifier: Apache-2.0
import os
from pathlib import Path

import pytest

from recipes_lib.data import labelled
from recipes_lib.errors import DataError

NAMES = ("n01/n01_1.JPEG", "n01/n01_2.JPEG", "n02/n02_7.JPEG")
SAME = ("cat/0001.jpg", "dog/0001.jpg", "dog/0002.jpg")


@pytest.fixture
def listed(tmp_path):
    def write(content: str | bytes) -> Path:
        path = tmp_path / "names.txt"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def test_a_list_names_images_with_or_without_their_folder(listed):
    assert labelled.indices(listed("n02_7.JPEG\n\nn01/n01_1.JPEG \n"), NAMES).tolist() == [2, 0]


@pytest.mark.parametrize(
    "line",
    [
        "n02/n02_7.JPEG",
        "./n02/n02_7.JPEG",
        "train/n02/n02_7.JPEG",
        "./train/n02/n02_7.JPEG",
        "/in/train/n02/n02_7.JPEG",
    ],
)
def test_what_stands_before_a_name_may_be_the_folder_or_the_place_where_it_is(listed, line):
    assert labelled.indices(listed(line), NAMES, root=Path("/in/train")).tolist() == [2]


def test_an_image_of_another_split_is_no_training_image(listed):
    with pytest.raises(DataError, match="names no image of the training set"):
        labelled.indices(listed("val/n02/n02_7.JPEG"), NAMES, root=Path("/in/train"))


def test_a_mark_of_the_encoding_is_no_part_of_the_first_name(listed):
    assert labelled.indices(listed("\ufeffn01_2.JPEG\r\nn02_7.JPEG\r\n"), NAMES).tolist() == [1, 2]


def test_a_short_name_of_several_images_is_refused_with_both(listed):
    assert labelled.indices(listed("dog/0001.jpg\n0002.jpg"), SAME).tolist() == [1, 2]
    with pytest.raises(DataError, match=r"line 2: '0001\.jpg' names 2 images: cat/0001\.jpg and dog/0001\.jpg\. Write"):
        labelled.indices(listed("0002.jpg\n0001.jpg"), SAME)
    with pytest.raises(DataError, match="names 2 images"):  # also where one of them was left out as damaged
        labelled.indices(listed("0001.jpg"), SAME[1:], aside={"cat/0001.jpg": "is damaged"})


@pytest.mark.parametrize("line", ["n03/n03_1.JPEG", "n03_1.JPEG"])
def test_an_image_that_was_set_aside_gets_its_own_line(listed, line):
    aside = {"n03/n03_1.JPEG": "was held out by data.holdout = 0.1"}
    with pytest.raises(DataError, match=r"line 1: .* was held out by data\.holdout = 0\.1\. Take the line out\."):
        labelled.indices(listed(line), NAMES, aside=aside)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("n01_1.JPEG\nn01_9.JPEG\n", r"names\.txt, line 2: 'n01_9\.JPEG' names no image of the training set"),
        ("my photo.JPEG\n", r"line 1: 'my photo\.JPEG' names no image of the training set"),
        ("n01_1.JPEG\n\nn01/n01_1.JPEG\n", r"line 3: .* was named in line 1 already"),
        ("\n", "names no image"),
        ("", "names no image"),
        (b"\xff\xfe", "not UTF-8 text"),
    ],
)
def test_a_line_that_fits_no_image_is_refused_with_file_number_and_text(listed, content, text):
    with pytest.raises(DataError, match=text):
        labelled.indices(listed(content), NAMES)


def test_what_is_no_list_is_refused_at_once(tmp_path):
    with pytest.raises(DataError, match=r"gone\.txt cannot be read: No such file"):
        labelled.lines(tmp_path / "gone.txt")
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(DataError, match="cannot be read: it is no plain file"):
            labelled.lines(path)
    with (tmp_path / "endless.txt").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(DataError, match="it has more than 1,073,741,824 bytes"):
        labelled.lines(tmp_path / "endless.txt")
