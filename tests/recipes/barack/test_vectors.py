# SPDX-License-Identifier: Apache-2.0
"""All arms on vectors; the study's numbers come from here."""

from dataclasses import replace

import pytest
import torch

from recipes_lib.errors import DataError
from recipes_lib.recipes.barack import gaussian, vectors
from recipes_lib.recipes.barack.settings import ARMS
from recipes_lib.recipes.barack.vectors import Options, with_arm

TRAIN = gaussian.draw(1500, 0, "train", agree=0.95)
TEST = gaussian.draw(1500, 0, "test", agree=0.5)
OPTIONS = Options(steps=150)


def test_the_golden_comparison_robust_arms_beat_the_mean_loss_and_shuffled_groups_do_not():
    found = {}
    for arm in ("erm", "barack", "oracle", "shuffled"):
        trained = vectors.train(TRAIN, with_arm(replace(OPTIONS, steps=300), arm))
        found[arm] = vectors.evaluate(trained.network, TEST).worst
    assert found["barack"] > found["erm"] + 0.1
    assert abs(found["barack"] - found["oracle"]) < 0.06
    assert found["shuffled"] < found["erm"] + 0.05


def test_with_all_group_labels_barack_is_oracle_group_dro_bit_for_bit():
    first, second = (
        vectors.train(TRAIN, with_arm(OPTIONS, arm, share=1.0)).network.state_dict() for arm in ("barack", "oracle")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("arm", ARMS)
def test_each_arm_trains_the_same_twice_and_another_seed_differs(arm):
    short = with_arm(replace(OPTIONS, steps=8), arm, steps=5)
    first, again, other = (
        vectors.train(TRAIN, options).network[1].weight for options in (short, short, replace(short, seed=1))
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_arms_share_initial_weights():
    still = replace(OPTIONS, steps=1, lr=0.0)
    weights = [vectors.train(TRAIN, with_arm(still, arm, steps=2)).network[1].weight for arm in ("erm", "barack")]
    assert torch.equal(*weights)


def test_quality_is_counted_on_points_without_a_label():
    found = vectors.train(TRAIN, with_arm(OPTIONS, "barack", share=0.2))
    assert int(found.quality.counts.sum()) == pytest.approx(1200, abs=3)
    assert (found.quality.recall > 0.6).all()
    assert vectors.train(TRAIN, with_arm(OPTIONS, "erm")).quality is None


def test_the_first_step_counts_steps_or_epochs():
    options = with_arm(Options(batch_size=100), "jtt", steps=None, epochs=2.0)
    assert vectors._first_steps(options, 1500) == 30
    assert vectors._first_steps(with_arm(options, "jtt", steps=7), 1500) == 7


def test_a_group_without_a_label_is_refused():
    few = TRAIN.select((TRAIN.groups != 1).nonzero()[:, 0])
    with pytest.raises(DataError, match="No point with a group label is in: class 0, attribute 1"):
        vectors.train(few, with_arm(OPTIONS, "barack"))


def test_soft_groups_and_one_head_and_an_adjustment_train_too():
    for options in (
        with_arm(OPTIONS, "barack", soft=True),
        with_arm(OPTIONS, "barack", sees_class=False),
        replace(OPTIONS, robust=replace(OPTIONS.robust, adjustment=1.0, sampling="uniform", eta=0.1)),
    ):
        assert vectors.evaluate(vectors.train(TRAIN, options).network, TEST).worst > 0.5
