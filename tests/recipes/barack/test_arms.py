# SPDX-License-Identifier: Apache-2.0
"""What the second step of each arm learns from."""

from dataclasses import replace

import pytest
import torch

from recipes_lib.recipes.barack import arms
from recipes_lib.recipes.barack.arms import Points
from recipes_lib.recipes.barack.settings import FindConfig, RobustConfig

COUNT = 240
BALANCED = RobustConfig()


def points(seed: int = 0) -> Points:
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(2, (COUNT,), generator=g)
    attributes = torch.where(torch.rand(COUNT, generator=g) < 0.8, labels, 1 - labels)
    return Points(labels, attributes, torch.rand(COUNT, generator=g) < 0.2, 2, 2)


def guesses(seed: int = 1) -> torch.Tensor:
    return torch.rand(COUNT, 2, generator=torch.Generator().manual_seed(seed)).softmax(dim=1)


def test_predicted_groups_have_the_right_class_and_true_labels_are_never_overwritten():
    some = points()
    for changes in ({}, {"flips": 0.5}, {"arm": "balanced"}):
        found = arms.from_predictions(guesses(), some, FindConfig(**changes), BALANCED).groups
        assert torch.equal(found // 2, some.labels)
        assert torch.equal(found[some.kept], some.groups[some.kept])
        assert not torch.equal(found, some.groups)


def test_with_all_labels_the_groups_are_those_of_the_oracle():
    some = replace(points(), kept=torch.ones(COUNT).bool())
    oracle = arms.without_first_step(some, FindConfig(arm="oracle"), BALANCED)
    for soft in (False, True):
        found = arms.from_predictions(guesses(), some, FindConfig(soft=soft), BALANCED)
        hard = found.groups.argmax(dim=1) if soft else found.groups
        assert torch.equal(hard, oracle.groups)
        torch.testing.assert_close(found.weights, oracle.weights)


def test_soft_groups_are_probabilities_within_the_class_and_one_hot_ones_are_hard_groups():
    some = points()
    table = arms.from_predictions(guesses(), some, FindConfig(soft=True), BALANCED).groups
    torch.testing.assert_close(table.sum(dim=1), torch.ones(COUNT))
    other = torch.arange(4)[None] // 2 != some.labels[:, None]
    assert (table[other] == 0).all()
    certain = torch.nn.functional.one_hot(guesses().argmax(dim=1), 2).float()
    soft, hard = (arms.from_predictions(certain, some, FindConfig(soft=soft), BALANCED) for soft in (True, False))
    assert torch.equal(soft.groups.argmax(dim=1), hard.groups)
    torch.testing.assert_close(soft.weights, hard.weights)
    torch.testing.assert_close(soft.sizes(4), hard.sizes(4))


def test_shuffled_groups_keep_their_sizes_within_each_class_and_lose_their_points():
    some = points()
    found = arms.from_predictions(guesses(), some, FindConfig(arm="shuffled"), BALANCED).groups
    before = some.labels * 2 + guesses().argmax(dim=1)
    assert torch.equal(found.bincount(minlength=4), before.bincount(minlength=4))
    assert not torch.equal(found, before)


def test_flips_replace_about_their_share_by_another_value():
    attributes = torch.arange(3).repeat(1000)
    found = arms.flipped(attributes, 3, 0.3, seed=0)
    changed = found != attributes
    assert abs(float(changed.double().mean()) - 0.3) < 0.03
    assert set(((found - attributes)[changed] % 3).tolist()) == {1, 2}


def test_subset_draws_labelled_points_alone_and_erm_and_lff_draw_all():
    some = points()
    found = arms.without_first_step(some, FindConfig(arm="subset"), BALANCED)
    assert torch.equal(found.weights > 0, some.kept)
    uniform = arms.without_first_step(some, FindConfig(arm="subset"), RobustConfig(sampling="uniform"))
    assert torch.equal(uniform.weights, some.kept.double())
    for arm in ("erm", "lff"):
        assert arms.without_first_step(some, FindConfig(arm=arm), BALANCED) == arms.Assignment()


def test_jtt_draws_errors_as_often_as_it_is_told():
    found = arms.from_errors(torch.tensor([0.0, 1.0, 0.0]), 20.0)
    assert found.groups is None
    assert found.weights.tolist() == [1.0, 20.0, 1.0]


def test_george_finds_clusters_within_each_class():
    some = points()
    features = torch.stack([some.labels, 5 * some.attributes], dim=1).float()
    features += 0.1 * torch.randn(COUNT, 2, generator=torch.Generator().manual_seed(0))
    found = arms.from_features(features, some, 0, BALANCED).groups
    assert torch.equal(found // 2, some.labels)
    for label in range(2):
        rows = some.labels == label
        agree = (found[rows] % 2 == some.attributes[rows]).double().mean()
        assert agree in (0.0, 1.0)  # clusters have no names


@pytest.mark.parametrize("arm", ["barack", "shuffled"])
def test_uniform_sampling_has_no_weights(arm):
    found = arms.from_predictions(guesses(), points(), FindConfig(arm=arm), RobustConfig(sampling="uniform"))
    assert found.weights is None


def test_an_arm_without_groups_has_sizes_of_zero():
    assert arms.Assignment().sizes(3).tolist() == [0.0, 0.0, 0.0]
