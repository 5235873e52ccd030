# SPDX-License-Identifier: Apache-2.0
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recipes_lib.config import DataConfig
from recipes_lib.data.images import UNLABELLED, ImageSet
from recipes_lib.data.imbalance import grouped_order, long_tail
from recipes_lib.data.load import load
from recipes_lib.data.loader import StepBatches
from recipes_lib.errors import DataError

CPU = torch.device("cpu")
LABELS = torch.arange(4).repeat(25)  # four classes of 25 images


def batches_of(order: torch.Tensor, size: int) -> list[list[int]]:
    return [LABELS[rows].tolist() for rows in order.split(size)]


# a long tail


def test_a_long_tail_of_exponent_one_keeps_a_half_a_third_and_a_quarter():
    kept = long_tail(torch.arange(4).repeat(24), 1.0, seed=0)
    assert (kept % 4).bincount().tolist() == [24, 12, 8, 6]
    assert all(a < b for a, b in pairwise(kept.tolist()))


@given(exponent=st.floats(0, 5), classes=st.integers(1, 8), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_no_class_dies_out_and_sizes_follow_the_power_law(exponent, classes, seed):
    labels = torch.arange(classes).repeat(30)
    sizes = labels[long_tail(labels, exponent, seed)].bincount(minlength=classes).tolist()
    assert sizes == [max(1, round(30 * rank**-exponent)) for rank in range(1, classes + 1)]


def test_the_largest_class_has_as_many_images_as_the_smallest_had():
    labels = torch.tensor([0] * 50 + [1] * 10)
    assert labels[long_tail(labels, 0.0, seed=0)].bincount().tolist() == [10, 10]


def test_the_seed_decides_which_images_stay_and_a_steeper_tail_keeps_some_of_them():
    first, again, other = (long_tail(LABELS, 1.0, seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert set(long_tail(LABELS, 2.0, seed=0).tolist()) < set(first.tolist())


def test_unlabelled_images_have_no_place_in_a_tail():
    labels = torch.tensor([0, UNLABELLED, 1, 1, UNLABELLED, 0])
    assert long_tail(labels, 0.0, seed=0).tolist() == [0, 2, 3, 5]
    with pytest.raises(DataError, match=r"data\.tail shapes the classes' sizes.*no labels\. Leave it out"):
        long_tail(torch.full((3,), UNLABELLED), 1.0, seed=0)


def test_the_tail_of_a_data_set_is_of_its_training_images_alone(recipes_cache):
    config = DataConfig(name="digits", image_size=16, train_size=400, test_size=100)
    whole, tailed = load(config, 0), load(DataConfig(**{**vars(config), "tail": 1.0}), 0)
    sizes = tailed.train.labels.bincount().tolist()
    assert sizes[0] == min(whole.train.labels.bincount().tolist())
    assert sizes[0] > sizes[1] > sizes[4] > sizes[9] >= 1
    assert torch.equal(tailed.test.images, whole.test.images)


# batches of a few classes


@given(classes=st.sampled_from([1, 2, 4]), seed=st.integers(0, 99), epoch=st.integers(0, 3))
@settings(max_examples=25, deadline=None)
def test_every_batch_has_equally_many_images_of_the_wanted_number_of_classes(classes, seed, epoch):
    order = grouped_order(LABELS, 8, classes, seed, epoch)
    assert len(order) == 96  # twelve batches; the incomplete thirteenth is dropped
    for batch in batches_of(order, 8):
        assert sorted(map(batch.count, set(batch))) == [8 // classes] * classes


def test_a_class_shows_each_of_its_images_once_before_any_comes_again():
    shown = grouped_order(LABELS, 8, 2, seed=0, epoch=0).bincount(minlength=100)
    for label in range(4):
        times = shown[label :: len(LABELS.unique())]
        assert times.max() - times.min() <= 1


def test_all_classes_are_drawn_and_a_batch_is_not_sorted_by_class():
    batches = batches_of(grouped_order(LABELS, 8, 2, seed=0, epoch=0), 8)
    assert {label for batch in batches for label in batch} == {0, 1, 2, 3}
    assert sum(batch == sorted(batch) for batch in batches) < len(batches) / 2


def test_seed_and_epoch_decide_the_order():
    orders = [grouped_order(LABELS, 8, 2, seed, epoch) for seed, epoch in [(0, 0), (0, 0), (0, 1), (1, 0)]]
    assert torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], orders[2])
    assert not torch.equal(orders[0], orders[3])


@pytest.mark.parametrize("classes", [0, 5, 3])
def test_a_number_of_classes_that_does_not_fit_is_refused_with_all_numbers(classes):
    words = rf"data\.classes_per_batch = {classes} does not fit: .*1 to 4.*divide train\.batch_size = 8"
    with pytest.raises(DataError, match=words):
        grouped_order(LABELS, 8, classes, seed=0, epoch=0)


@pytest.mark.parametrize("labels", [None, torch.tensor([0, 1, UNLABELLED, 1])])
def test_images_without_labels_cannot_be_grouped(labels):
    with pytest.raises(DataError, match=r"data\.classes_per_batch needs the label of every training image"):
        grouped_order(labels, 2, 1, seed=0, epoch=0)


def images() -> ImageSet:
    return ImageSet(torch.zeros(100, 3, 4, 4, dtype=torch.uint8), LABELS, tuple("abcd"))


def test_a_loader_gives_grouped_batches_and_goes_on_from_the_middle_as_the_whole():
    batches = StepBatches(images(), seed=0, batch_size=8, classes_per_batch=2)
    assert batches.steps_per_epoch == 12
    whole = [batch.indices.tolist() for batch in batches.stream(0, 15, workers=0, device=CPU)]
    assert all(len(set(LABELS[rows].tolist())) == 2 for rows in whole)
    assert [batch.indices.tolist() for batch in batches.stream(9, 15, workers=0, device=CPU)] == whole[9:]


def test_ranks_share_out_the_grouped_batch_of_one():
    whole = StepBatches(images(), seed=1, batch_size=8, classes_per_batch=2)
    halves = [StepBatches(images(), seed=1, batch_size=8, classes_per_batch=2, rank=r, world_size=2) for r in (0, 1)]
    for step in range(3):
        assert whole[step].indices.tolist() == [i for half in halves for i in half[step].indices.tolist()]


def test_a_loader_tells_of_a_number_of_classes_that_does_not_fit_in_its_line():
    batches = StepBatches(images(), seed=0, batch_size=8, classes_per_batch=3)
    with pytest.raises(DataError, match="classes_per_batch = 3 does not fit"):
        next(batches.stream(0, 1, workers=0, device=CPU))
