# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from recipes_lib.data.neighbour_pairs import CLASSES, CONTRAST, REDRAWN, dataset


def draw(count: int, **changes):
    return dataset(count, **({"size": 8, "seed": 0, "split": "train"} | changes))


def signs(images) -> torch.Tensor:
    return (images.images[:, 0].float() - 128).sign()


def test_an_image_depends_on_seed_split_and_index_alone():
    few = draw(40)
    assert torch.equal(draw(80).images[:40], few.images)
    assert not torch.equal(few.images, draw(40, seed=1).images)
    assert not torch.equal(few.images, draw(40, split="test").images)


@pytest.mark.parametrize("label", range(4))
def test_neighbours_follow_each_other_along_the_axis_of_the_class_alone(label):
    images = draw(8000)
    pattern = signs(images)[images.labels == label]
    along = (pattern[:, :, 1:] * pattern[:, :, :-1]).mean()  # in a row
    down = (pattern[:, 1:] * pattern[:, :-1]).mean()
    sign = -1 if "opposite" in CLASSES[label] else 1
    wanted = sign * (1 - REDRAWN)
    rows, columns = (wanted, 0.0) if CLASSES[label].startswith("rows") else (0.0, wanted)
    assert along == pytest.approx(rows, abs=0.01)
    assert down == pytest.approx(columns, abs=0.01)


def test_a_pixel_alone_and_the_number_of_white_ones_say_nothing_of_the_class():
    images = draw(8000)
    for label in range(4):
        pattern = signs(images)[images.labels == label]
        assert pattern.mean() == pytest.approx(0, abs=0.02)
        assert pattern.mean(dim=0).abs().max() < 0.09  # 2,000 images: standard error 0.022


def test_classes_take_turns_and_pixels_are_dark_or_bright():
    images = draw(8)
    assert images.labels.tolist() == [0, 1, 2, 3] * 2
    assert images.factors["axis"].tolist() == [0, 0, 1, 1] * 2
    assert images.factors["opposite"].tolist() == [0, 1, 0, 1] * 2
    away = (images.images.float() - 128).abs()
    assert (away - CONTRAST).abs().max() < 0.5 * CONTRAST
