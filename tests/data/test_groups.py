# SPDX-License-Identifier: Apache-2.0
"""Groups of a training set: numbers, which points keep a label, and the order that draws groups equally often."""

import pytest
import torch

from recipes_lib.data import groups
from recipes_lib.errors import DataError

LABELS = torch.tensor([0, 0, 0, 1, 1, 1, 1, 1])
ATTRIBUTES = torch.tensor([0, 0, 1, 0, 1, 1, 1, 0])


def test_a_group_is_class_times_attributes_plus_attribute_and_unknown_where_the_attribute_is():
    found = groups.group_index(LABELS, ATTRIBUTES.where(LABELS == 1, -1), 2)
    assert found.tolist() == [-1, -1, -1, 2, 3, 3, 3, 2]
    assert groups.group_names(("bird", "fish"), ("land", "sea"))[2] == "fish, land"


@pytest.mark.parametrize("by_group", [True, False])
def test_a_share_of_the_points_keeps_its_label_and_unknown_points_never_get_one(by_group):
    known = torch.arange(4).repeat_interleave(torch.tensor([700, 37, 11, 211]))
    some = torch.cat([known, torch.full((40,), -1)])
    kept = groups.keep_few(some, 0.05, 0, by_group=by_group)
    assert not kept[-40:].any()
    counts = torch.bincount(some[kept], minlength=4).tolist()
    assert counts == [35, 2, 1, 11] if by_group else sum(counts) == 48
    assert not torch.equal(kept, groups.keep_few(some, 0.05, 1, by_group=by_group))


def test_all_labels_are_kept_with_a_share_of_one():
    assert groups.keep_few(torch.tensor([0, 1, 1, 2]), 1.0, 0).all()
    with pytest.raises(ValueError, match=r"share = 0 is not in \(0, 1\]"):
        groups.keep_few(torch.tensor([0, 1]), 0, 0, by_group=False)


def test_weights_draw_each_group_equally_often_and_never_a_point_without_a_group():
    found = torch.tensor([0, 0, 0, 2, -1, 2])
    weights = groups.balanced_weights(found, 4)
    torch.testing.assert_close(weights, torch.tensor([1 / 3, 1 / 3, 1 / 3, 1 / 2, 0, 1 / 2], dtype=torch.float64))


def test_a_drawn_order_follows_the_weights_and_gives_each_copy_a_number_of_its_own():
    weights = torch.tensor([0.0, 1.0, 3.0, 0.0]).repeat(500)
    order = groups.drawn_order(weights, 0, 0)
    assert len(order) == len(order.unique()) == 2000
    points = order % 2000
    assert (weights[points] > 0).all()
    assert abs(float((points % 4 == 2).double().mean()) - 0.75) < 0.03
    copies = order // 2000
    for point in points[:50].tolist():
        own = copies[points == point]
        assert sorted(own.tolist()) == list(range(len(own)))
    assert not torch.equal(order, groups.drawn_order(weights, 0, 1))
    assert torch.equal(order, groups.drawn_order(weights, 0, 0))


@pytest.mark.parametrize("weights", [[0.0, 0.0], [1.0, -1.0], [1.0, float("nan")], [1.0, float("inf")]])
def test_weights_that_cannot_be_drawn_by_are_refused(weights):
    with pytest.raises(ValueError, match="weights of sampling must be finite"):
        groups.drawn_order(torch.tensor(weights), 0, 0)


@pytest.mark.parametrize(
    ("attributes", "said"),
    [
        ([0.0, 1.0, 2.0], "the value 2. Use 0 to 1, and -1"),
        ([0.0, float("nan"), 1.0], "the value nan. Use 0 to 1, and -1"),
        ([0.0, -2.0, 1.0], "the value -2"),
        ([0.0, 0.5, 1.0], "the value 0.5"),
    ],
)
def test_values_outside_the_list_are_named(attributes, said):
    with pytest.raises(DataError, match=said):
        groups.check_attributes(torch.tensor(attributes), 2)


@pytest.mark.parametrize(
    ("found", "kept", "names", "said"),
    [
        ([0, 1, 2, 3], [0, 0, 0, 0], "abcd", "No training point has a group label.*--groups.arm erm"),
        ([0, 1, 2, 3], [1, 0, 1, 0], "abcd", "No point with a group label is in: b; d.*can never be predicted"),
        ([0, 0, 0, 0], [1, 1, 1, 1], "a", "only one group"),
    ],
)
def test_labels_that_cannot_make_a_predictor_are_refused_in_one_line(found, kept, names, said):
    with pytest.raises(DataError, match=said) as told:
        groups.require_labels(torch.tensor(found), torch.tensor(kept).bool(), tuple(names))
    assert "\n" not in str(told.value)


def test_a_labelled_point_of_each_group_is_enough():
    groups.require_labels(torch.tensor([0, 1, 0]), torch.tensor([True, True, False]), ("a", "b"))
