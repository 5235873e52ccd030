# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from scipy import special

from recipes_lib.factors import gaps

POSE, SIZE, BOTH = ("pose",), ("size",), ("pose", "size")


def _random() -> np.random.Generator:
    return np.random.default_rng(0)


def _answers(canonical, classes=None, **varied) -> gaps.Answers:
    rows = {tuple(name.split("_")): np.array(values, np.float64) for name, values in varied.items()}
    canonical = np.array(canonical, np.float64)
    classes = np.zeros(len(canonical), np.int64) if classes is None else np.array(classes)
    return gaps.Answers(classes, canonical, rows, {name: np.floor(values) for name, values in rows.items()})


def test_gap_relative_survival_and_agreement_of_the_golden_case():
    given = _answers([1, 1, 1, 0, 1, 1, 0, 1], pose=[1, 0, 1, 0, 0, 1, 1, 0])
    found = gaps.profile(given, generator=_random())
    assert found.canonical == pytest.approx(0.75)
    gap = found.gaps[POSE]
    assert (gap.accuracy, gap.gap) == pytest.approx((0.5, 0.25))
    assert gap.relative == pytest.approx(0.333333, abs=1e-6)
    assert (gap.survival, gap.agreement) == pytest.approx((0.5, 0.5))


def test_the_interaction_of_the_golden_case():
    size = 100
    rows = {
        name: np.arange(size) < round(size * share)
        for name, share in (("c", 1.0), ("k", 0.7), ("l", 0.9), ("kl", 0.55))
    }
    found = gaps.profile(_answers(rows["c"], pose=rows["k"], size=rows["l"], pose_size=rows["kl"]), generator=_random())
    assert found.gaps[POSE].gap == pytest.approx(0.30)
    assert found.gaps[SIZE].gap == pytest.approx(0.10)
    assert found.gaps[BOTH].gap == pytest.approx(0.45)
    assert found.interactions[BOTH].accuracy == pytest.approx(0.05)
    odds = special.logit([0.995, 0.7, 0.9, 0.55])
    assert found.interactions[BOTH].logit == pytest.approx(odds[1] + odds[2] - odds[3] - odds[0])


def test_a_pair_without_both_single_factors_has_no_interaction():
    assert gaps.profile(_answers([1, 1], pose=[1, 0], pose_size=[0, 0]), generator=_random()).interactions == {}


def test_classes_count_equally_however_many_instances_they_have():
    given = _answers([1, 1, 1, 1], classes=[0, 0, 0, 4], pose=[1, 1, 1, 0])
    found = gaps.profile(given, generator=_random())
    assert found.gaps[POSE].gap == pytest.approx(0.5)  # not 1/4
    assert (found.classes, found.chance) == (2, 0.5)


def test_a_permutation_of_the_classes_names_changes_nothing():
    first = _answers([1, 0, 1, 1], classes=[0, 0, 1, 1], pose=[0, 0, 1, 0])
    other = _answers([1, 1, 1, 0], classes=[0, 0, 1, 1], pose=[1, 0, 0, 0])
    one, two = (gaps.profile(given, generator=_random()).gaps[POSE] for given in (first, other))
    assert (one.gap, one.survival, one.p) == pytest.approx((two.gap, two.survival, two.p))


def test_the_interval_is_that_of_the_exact_bootstrap_distribution():
    """Two instances of one class, differences 0 and 1: means 0, 1/2, 1 with chances 1/4, 1/2, 1/4."""
    gap = gaps.profile(_answers([1, 1], pose=[1, 0]), generator=_random(), level=0.8).gaps[POSE]
    assert (gap.low, gap.high) == (0, 1)
    gap = gaps.profile(_answers([1, 1], pose=[1, 0]), generator=_random(), level=0.4).gaps[POSE]
    assert (gap.low, gap.high) == (0.5, 0.5)


def test_the_interval_resamples_both_answers_of_an_instance_together():
    gap = gaps.profile(_answers([1, 0, 1, 0], pose=[1, 0, 1, 0]), generator=_random()).gaps[POSE]
    assert (gap.low, gap.high) == (0, 0)  # however the instances are drawn


def test_p_is_two_sided_and_that_of_random_signs():
    p = gaps.profile(_answers([1] * 16, pose=[0] * 8 + [1] * 8), generator=_random()).gaps[POSE].p
    assert p == pytest.approx(2 * special.ndtr(-8 / np.sqrt(8)))
    assert gaps.profile(_answers([1, 0], pose=[1, 0]), generator=_random()).gaps[POSE].p == 1


def test_all_models_and_factors_are_adjusted_together():
    good = _answers([1] * 16, pose=[0] * 8 + [1] * 8, size=[1] * 16)
    bad = _answers([1] * 16, pose=[0] * 4 + [1] * 12, size=[0] * 2 + [1] * 14)
    profiles = [gaps.profile(given, generator=_random()) for given in (good, bad)]
    holm, fdr = gaps.adjusted(profiles)
    assert holm[0][POSE] == pytest.approx(4 * profiles[0].gaps[POSE].p)
    assert holm[1][POSE] == pytest.approx(3 * profiles[1].gaps[POSE].p)
    assert fdr[1][POSE] == pytest.approx(2 * profiles[1].gaps[POSE].p)


def test_answers_for_images_become_those_for_instances():
    of = {gaps.CANONICAL: np.array([7, 3]), POSE: np.array([3, 7, 3, 7])}
    right = {gaps.CANONICAL: np.array([True, False]), POSE: np.array([True, False, True, True])}
    found = gaps.answers(np.array([0, 1]), np.array([3, 7]), right, of)
    assert found.canonical.tolist() == [0, 1]
    assert found.varied[POSE].tolist() == [1, 0.5]
    assert found.worst[POSE].tolist() == [1, 0]


def test_an_instance_that_one_view_lacks_is_named():
    of = {gaps.CANONICAL: np.array([3, 7]), POSE: np.array([3, 8])}
    right = {gaps.CANONICAL: np.ones(2, bool), POSE: np.ones(2, bool)}
    with pytest.raises(ValueError, match="pairing is broken: instance 7 is in the instances and not in pose"):
        gaps.answers(np.array([0, 1]), np.array([3, 7]), right, of)
    with pytest.raises(ValueError, match="pose has 1 answers for 2 images"):
        gaps.answers(np.array([0, 1]), np.array([3, 7]), {**right, POSE: np.ones(1, bool)}, of)


def test_answers_of_another_length_are_refused():
    with pytest.raises(ValueError, match=r"pose has shape \(1,\) for 2 instances"):
        _answers([1, 1], pose=[1])
    with pytest.raises(ValueError, match="pose has no answer for instance 1"):
        _answers([1, 1], pose=[1, float("nan")])


def test_canonical_accuracy_near_chance_is_uninformative():
    assert gaps.profile(
        _answers([1, 0, 0, 1], classes=[0, 0, 1, 1], pose=[1, 0, 0, 1]), generator=_random()
    ).uninformative
    assert not gaps.profile(_answers([1, 1], classes=[0, 1], pose=[1, 0]), generator=_random()).uninformative
