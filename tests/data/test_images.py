# SPDX-License-Identifier: Apache-2.0
import io
import random

import numpy as np
import pytest
import torch
from PIL import Image

from recipes_lib.data.images import ImageFiles, ImageSet
from recipes_lib.errors import DataError


def image_set(count: int) -> ImageSet:
    return ImageSet(
        images=torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 4, 4),
        labels=torch.arange(count),
        class_names=tuple(map(str, range(count))),
        factors={"angle": torch.arange(count) * 0.1},
        names=tuple(f"{i}.png" for i in range(count)),
    )


def encoded(kind: str) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 20, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def one_file(folder, content: bytes) -> ImageFiles:
    (folder / "a.jpg").write_bytes(content)
    return ImageFiles(folder, np.array(["a.jpg"]), torch.zeros(1, dtype=torch.long), ("a",))


def test_selected_images_keep_their_label_factors_and_name():
    chosen = image_set(5).select(torch.tensor([3, 1]))
    assert chosen.images[:, 0, 0, 0].tolist() == chosen.labels.tolist() == [3, 1]
    assert chosen.names == ("3.png", "1.png")
    torch.testing.assert_close(chosen.factors["angle"], torch.tensor([0.3, 0.1]))


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (torch.zeros(2, 3, 4, 4), None),  # not uint8
        (torch.zeros(2, 4, 4, 3, dtype=torch.uint8), None),  # channels last
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(3, dtype=torch.long)),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(images, labels):
    with pytest.raises(ValueError, match=r"uint8 \[N, 3, H, W\]|3 labels for 2 images"):
        ImageSet(images, labels, ())


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "CMYK"])
def test_every_kind_of_image_file_opens_in_rgb(tmp_path, mode):
    Image.new(mode, (6, 5)).save(tmp_path / "a.tiff")
    opened = ImageFiles(tmp_path, np.array(["a.tiff"]), torch.zeros(1), ("a",)).open(0)
    assert (opened.mode, opened.size) == ("RGB", (6, 5))


@pytest.mark.parametrize("content", [b"", b"not an image", encoded("JPEG")[:300], encoded("PNG")[:300]])
def test_a_damaged_file_is_named_in_one_line_with_the_way_out(tmp_path, content):
    with pytest.raises(DataError) as error:
        one_file(tmp_path, content).open(0)
    text = str(error.value)
    assert str(tmp_path / "a.jpg") in text
    assert "--data.on-damage skip" in text
    assert "\n" not in text


def test_a_name_with_a_line_break_is_told_in_one_line(tmp_path):
    files = ImageFiles(tmp_path, np.array(["a\nb.png"]), torch.zeros(1), ("a",))
    with pytest.raises(DataError, match=r"a\\nb\.png' cannot be read") as error:
        files.open(0)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"gone\.jpg"):
        ImageFiles(tmp_path, np.array(["gone.jpg"]), torch.zeros(1), ("a",)).open(0)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL.*")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "TIFF", "WEBP", "AVIF"])
def test_flipped_bytes_give_an_image_or_a_data_error_and_nothing_else(tmp_path, kind):
    good = encoded(kind)
    chance = random.Random(0)
    for _ in range(60):
        bad = bytearray(good)
        for _ in range(chance.randint(1, 8)):
            bad[chance.randrange(len(bad))] = chance.randrange(256)
        files = one_file(tmp_path, bytes(bad[: chance.randint(1, len(bad))]))
        try:
            files.open(0)
        except DataError:
            assert list(files.check(threads=1).faults) == [0]
        else:
            assert files.check(threads=1).faults == {}


@pytest.mark.parametrize("threads", [1, 2])
def test_damaged_files_are_found_among_good_ones(tmp_path, threads):
    names = np.array([f"{i}.jpg" for i in range(5)])
    for i, name in enumerate(names):
        (tmp_path / name).write_bytes(encoded("JPEG")[: 200 if i in (1, 4) else None])
    assert ImageFiles(tmp_path, names, torch.arange(5), ("a",) * 5).check(threads).faults == dict.fromkeys(
        (1, 4), "damaged image"
    )


def test_selected_files_keep_their_labels(tmp_path):
    files = ImageFiles(tmp_path, np.array(["a", "b", "c"]), torch.arange(3), ("x",) * 3).select(torch.tensor([2, 0]))
    assert [files.path(i).name for i in range(len(files))] == ["c", "a"]
    assert files.labels.tolist() == [2, 0]
