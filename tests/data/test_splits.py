# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recipes_lib.data import splits
from recipes_lib.errors import DataError

LABELS = torch.tensor([0, 1, 1, 2, 0, 2, 1, 0, 2, -1, 1])


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3), st.integers(0, 1000))
def test_each_class_gives_exactly_k_images_and_the_unlabelled_none(k, seed):
    chosen = splits.few_per_class(LABELS, k, seed)
    assert LABELS[chosen].bincount().tolist() == [k] * 3
    assert chosen.unique().numel() == 3 * k


def test_a_choice_is_made_by_its_seed():
    labels = torch.arange(1000) % 10
    assert torch.equal(splits.few_per_class(labels, 5, 3), splits.few_per_class(labels, 5, 3))
    assert not torch.equal(splits.few_per_class(labels, 5, 3), splits.few_per_class(labels, 5, 4))


def test_every_image_of_a_class_is_chosen_equally_often():
    labels = torch.zeros(10, dtype=torch.long)
    counts = torch.cat([splits.few_per_class(labels, 2, seed) for seed in range(500)]).bincount(minlength=10)
    assert counts.min() > 65  # 100 expected, standard deviation 9
    assert counts.max() < 135


def test_more_labels_than_a_class_has_are_refused_with_class_wanted_and_present():
    with pytest.raises(DataError, match="Class 0 has 3 labelled images, but 4 per class are wanted"):
        splits.few_per_class(LABELS, 4, 0)


def test_a_fraction_keeps_the_share_of_every_class():
    labels = torch.repeat_interleave(torch.arange(3), torch.tensor([1000, 200, 20]))
    chosen = splits.fraction(labels, 0.01, seed=0)
    assert labels[chosen].bincount().tolist() == [10, 2, 1]  # never none of a class
    assert torch.equal(splits.fraction(labels, 1.0, seed=0), torch.arange(1220))


@pytest.mark.parametrize("share", [0, -0.1, 1.5])
def test_a_share_outside_its_range_is_refused(share):
    with pytest.raises(ValueError, match=r"not in \(0, 1\]"):
        splits.fraction(LABELS, share, 0)
