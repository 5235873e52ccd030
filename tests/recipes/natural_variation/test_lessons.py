# SPDX-License-Identifier: Apache-2.0
import itertools

import pytest
import torch

from recipes_lib.errors import ConfigError
from recipes_lib.recipes.natural_variation import lessons

POSE = ("pose",)
CLASSES = torch.arange(8).repeat_interleave(10)


def test_shares_of_ten_instances_round_half_to_even():
    assert [lessons.varying(share, 10) for share in (0.1, 0.25, 0.5)] == [1, 2, 5]
    assert lessons.varying(0.02, 30) == 1
    assert lessons.varying(0, 30) == 0


def test_a_share_that_rounds_to_no_instance_is_named():
    with pytest.raises(ConfigError, match=r"has 0.01, of 30 instances 0: .* just above 0.0167 \(share x instances"):
        lessons.varying(0.01, 30)
    with pytest.raises(ConfigError, match=r"has 1.2: use shares in \[0, 1\]"):
        lessons.varying(1.2, 30)


def test_sets_of_varying_instances_are_nested_and_balanced():
    found = [lessons.of_share(CLASSES, POSE, share, seed=3).varies for share in (0.1, 0.25, 0.5, 1.0)]
    for small, large in itertools.pairwise(found):
        assert (large | ~small).all()
    assert [varies.view(8, 10).sum(1).tolist() for varies in found] == [[n] * 8 for n in (1, 2, 5, 10)]
    assert not torch.equal(lessons.of_share(CLASSES, POSE, 0.5, seed=4).varies, found[2])


def test_classes_vary_whole_or_not_at_all_and_draws_differ():
    found = [lessons.of_classes(CLASSES, POSE, 0.5, draw, seed=0) for draw in range(5)]
    for lesson in found:
        assert set(lesson.varies.view(8, 10).sum(1).tolist()) == {0, 10}
        assert lesson.seen.sum() == 4
    assert len({tuple(lesson.seen.tolist()) for lesson in found}) > 1
    spread = lessons.of_share(CLASSES, POSE, 0.5, seed=0, kind="spread")
    assert spread.varies.sum() == found[0].varies.sum()


@pytest.mark.parametrize("share", [0.0, 0.04, 1.0])
def test_transfer_needs_seen_and_unseen_classes(share):
    with pytest.raises(ConfigError, match="transfer needs both seen and unseen classes"):
        lessons.of_classes(CLASSES, POSE, share, 0, seed=0)


def test_of_half_of_the_families_one_twin_varies():
    families = torch.arange(8) // 2
    for draw in range(10):
        lesson = lessons.of_twins(CLASSES, families, POSE, draw, seed=0)
        assert lesson.seen.sum() == 2
        assert len(families[lesson.seen].unique()) == 2
        twin = lessons.has_twin(lesson, families)
        assert twin.sum() == 2
        assert not (twin & lesson.seen).any()
    with pytest.raises(ConfigError, match="at least two families of near twins; there are 0"):
        lessons.of_twins(CLASSES, torch.arange(8), POSE, 0, seed=0)


def test_every_lesson_has_as_many_images_of_each_instance():
    instances = torch.arange(80)
    canonical, varied = instances, instances.repeat_interleave(3)
    for lesson in (lessons.of_share(CLASSES, POSE, share, seed=0) for share in (0.1, 0.5, 1.0)):
        rows = lessons.rows(lesson, canonical, varied, instances)
        shown = torch.cat([canonical, varied])[rows]
        assert torch.equal(shown.bincount(), torch.full((80,), 3))
        assert torch.equal(shown[rows >= 80].unique(), lesson.varies.nonzero()[:, 0])
        assert len(rows[rows >= 80].unique()) == 3 * lesson.varies.sum()
    assert torch.equal(lessons.rows(lessons.canonical(CLASSES), canonical, varied, instances), canonical)


def test_a_plan_has_each_lesson_once():
    found = lessons.plan(
        CLASSES, torch.arange(8) // 2, shares=(0.0, 0.5, 1.0), share_factors=("pose", "size"), class_factors=("pose",),
        class_share=0.5, draws=2, twins=True, seed=0,
    )  # fmt: skip
    names = [lesson.name for lesson in found]
    assert names == [
        "canonical", "share-pose-50", "share-pose-100", "share-size-50", "share-size-100", "classes-pose-0",
        "classes-pose-1", "spread-pose-50", "twins-pose-0", "twins-pose-1",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="no known near twins"):
        lessons.plan(CLASSES, None, shares=(), share_factors=(), class_factors=("pose",), class_share=0.5, draws=1, twins=True, seed=0)  # fmt: skip
