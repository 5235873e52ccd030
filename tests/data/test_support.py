# SPDX-License-Identifier: Apache-2.0
from collections import Counter

import numpy as np
import PIL.Image
import pytest
import torch

from recipes_lib.data.images import UNLABELLED, ImageFiles, ImageSet
from recipes_lib.data.loader import StepBatches
from recipes_lib.data.support import SupportBatches
from recipes_lib.errors import DataError

PER_CLASS, CLASSES = 6, 5


def train(per_class: int = PER_CLASS, classes: int = CLASSES) -> ImageSet:
    """Each image shows its own number; every second one has lost its label."""
    count = 2 * per_class * classes
    pixels = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 4, 4).contiguous()
    labels = torch.arange(count) // 2 % classes
    labels[::2] = UNLABELLED
    return ImageSet(pixels, labels, tuple("abcdefghijkl"[:classes]))


def support(images: ImageSet | None = None, **changes) -> SupportBatches:
    numbers = {"seed": 0, "classes_per_batch": None, "images_per_class": 2} | changes
    return SupportBatches(images or train(), **numbers)


def drawn(source: SupportBatches, positions: range) -> list[torch.Tensor]:
    return [source.batch(position).images[:, 0, 0, 0].long() for position in positions]


def test_rows_are_interleaved_and_a_column_is_a_class():
    images = train()
    for position in range(7):
        batch = support(images, classes_per_batch=3).batch(position)
        assert batch.labels.tolist() == [0, 1, 2, 0, 1, 2]
        classes = images.labels[batch.images[:, 0, 0, 0].long()]
        assert torch.equal(classes[:3], classes[3:])
        assert len(classes[:3].unique()) == 3
        assert (classes != UNLABELLED).all()


def test_a_pass_over_the_classes_has_each_once():
    images = train(classes=6)
    pairs = drawn(support(images, classes_per_batch=2), range(6))
    first, second = (torch.cat([images.labels[rows[:2]] for rows in part]).tolist() for part in (pairs[:3], pairs[3:]))
    assert sorted(first) == sorted(second) == list(range(6))
    assert first != second


def test_classes_that_do_not_fill_a_pass_come_as_often_as_the_others():
    images = train()
    classes = torch.cat([images.labels[rows[:3]] for rows in drawn(support(images, classes_per_batch=3), range(500))])
    share = classes.bincount() / 500
    assert (share - 3 / 5).abs().max() < 0.06


def test_a_pass_over_a_class_has_each_image_once():
    source = support(images_per_class=2)  # six images: a pass is three supports
    for first in range(0, 12, 3):
        assert len(torch.cat(drawn(source, range(first, first + 3))).unique()) == CLASSES * PER_CLASS


def test_the_end_of_a_pass_that_fills_no_support_is_dropped():
    source = support(images_per_class=4)
    seen = Counter()
    for rows in drawn(source, range(60)):
        assert len(rows.unique()) == len(rows)
        seen.update(rows.tolist())
    assert len(seen) == CLASSES * PER_CLASS  # another order each pass: none is left out for good


def test_with_replacement_few_images_are_used_evenly():
    source = support(train(per_class=3), images_per_class=8, replacement=True)
    for rows in drawn(source, range(3)):
        counts = rows.bincount()
        assert set(counts[counts > 0].tolist()) == {2, 3}
    total = torch.cat(drawn(source, range(300))).bincount()
    assert ((total[total > 0] / 300 - 8 / 3).abs() < 0.1).all()


def test_a_support_depends_on_seed_and_position_alone():
    first, again = support(), support()
    for position in (3, 0, 7):
        assert torch.equal(first.batch(position).images, again.batch(position).images)
    assert not torch.equal(support(seed=1).batch(0).images, first.batch(0).images)


@pytest.mark.parametrize("classes", [None, 4, 2])
def test_ranks_together_have_the_rows_of_one_process(classes):
    one = support(classes_per_batch=classes).batch(5)
    parts = [support(classes_per_batch=classes, rank=rank, world_size=2).batch(5) for rank in range(2)]
    for name in ("indices", "images", "labels"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(one, name))


def test_copies_of_an_image_have_numbers_of_their_own():
    batch = support(train(per_class=1), images_per_class=4, replacement=True).batch(9)
    assert batch.indices.tolist() == list(range(20))
    assert batch.epoch == 9


def test_a_step_brings_its_support_also_out_of_a_worker():
    batches = StepBatches(train(), seed=0, batch_size=8, accumulate=2, support=support())
    for workers in (0, 1):
        stream = batches.stream(1, 3, workers=workers, device=torch.device("cpu"))
        for position, batch in enumerate(stream, start=2):
            assert torch.equal(batch.support.images, support().batch(position).images)


def test_image_files_are_cut_by_row_and_position(tmp_path):
    names = [f"{label}_{number}.png" for label in "ab" for number in range(2)]
    for value, name in enumerate(names):
        PIL.Image.fromarray(np.full((5, 7, 3), value, dtype=np.uint8)).save(tmp_path / name)
    files = ImageFiles(tmp_path, np.array(names), torch.tensor([0, 0, 1, 1]), ("a", "b"))
    cut = []

    def crop(image: PIL.Image.Image, row: int, position: int) -> list[torch.Tensor]:
        cut.append((row, position))
        return [torch.full((3, 2, 2), image.getpixel((0, 0))[0], dtype=torch.uint8)] * 2

    batch = support(files, images_per_class=1, rank=1, world_size=2, crop=crop).batch(4)
    assert cut == [(1, 4)]
    assert batch.images is None
    whole = support(files, images_per_class=1, crop=crop).batch(4)
    assert len(whole.crops) == 2
    assert torch.equal(whole.crops[0][1:], batch.crops[0])


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"images_per_class": 7}, r"Class 'a' has 6 labelled images, but the support takes 7 .* at most 6, or --data"),
        ({"classes_per_batch": 6}, r"data\.support_classes = 6, but there are 5 classes\. Use at most 5"),
        ({"images_per_class": 3, "world_size": 2}, r"5 classes x 3 images = 15 rows does not divide among 2 processes"),
    ],
)
def test_numbers_that_do_not_fit_are_told_in_one_line(changes, text):
    with pytest.raises(DataError, match=text) as caught:
        support(**changes)
    assert "\n" not in str(caught.value)


def test_a_class_without_labelled_images_is_named():
    images = train()
    images.labels[images.labels == 3] = UNLABELLED
    with pytest.raises(DataError, match="Class 'd' has no labelled image"):
        support(images, replacement=True)
    with pytest.raises(DataError, match="The training images have no labels"):
        support(ImageSet(images.images, None, ("a",)))
