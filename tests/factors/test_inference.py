# SPDX-License-Identifier: Apache-2.0
"""Intervals cover, tests hold their level, adjustments are the textbook's, and rankings agree when they should."""

import itertools

import numpy as np
import pytest
from scipy import stats

from recipes_lib.factors import inference
from recipes_lib.factors.error_ratios import Counts


def counts(images: int, with_factor, right, right_with_factor) -> Counts:
    return Counts(images, np.array(with_factor), np.array(right), np.array(right_with_factor))


def drawn(generator: np.random.Generator, trials: int, images=(2000, 300), errors=(0.2, 0.4)) -> Counts:
    """``trials`` models on ``images`` without and with one factor, each kind with its own error rate."""
    right = [generator.binomial(n, 1 - rate, size=trials) for n, rate in zip(images, errors, strict=True)]
    return counts(sum(images), [images[1]], sum(right), right[1][:, None])


def test_wilsons_interval_is_scipys_and_stays_within_0_and_1():
    for right, images in ((0, 10), (3, 10), (10, 10), (77, 1000)):
        low, high = inference.wilson(np.array(right), np.array(images), 0.9)
        wanted = stats.binomtest(right, images).proportion_ci(0.9, method="wilson")
        np.testing.assert_allclose([low, high], [wanted.low, wanted.high], atol=1e-12)
    low, high = inference.wilson(np.array([0, 10]), np.array([10, 10]))
    assert (low[0], high[1]) == (0, 1)
    assert np.isnan(inference.wilson(np.array(0), np.array(0))).all()
    with pytest.raises(ValueError, match=r"level = 1; use a value in \(0, 1\)"):
        inference.wilson(np.array(1), np.array(2), 1)


def test_the_bootstrap_is_that_of_rows():
    """Rows are drawn in the open here, a thousand times over; the quantiles agree within their own noise."""
    found = counts(400, [60, 150], [300], [[30, 120]])
    low, high = inference.bootstrap_ratio(found, 0, generator=np.random.default_rng(0), resamples=20_000)
    draw = np.random.default_rng(1)
    has, right = np.zeros(400, bool), np.ones(400, bool)
    has[:60], right[:30], right[60:130] = True, False, False
    rows = draw.integers(400, size=(20_000, 400))
    ratios = ((~right & has)[rows].sum(axis=1) / has[rows].sum(axis=1)) / (~right)[rows].mean(axis=1)
    np.testing.assert_allclose([low[0], high[0]], np.quantile(ratios, [0.025, 0.975]), atol=0.02)
    assert low[1] < found.error_ratio[0, 1] < high[1]


@pytest.mark.parametrize("method", ["bootstrap", "wilson"])
def test_intervals_hold_the_true_ratio_about_as_often_as_they_say(method):
    found = drawn(np.random.default_rng(2), trials=400)
    truth = 0.4 / ((2000 * 0.2 + 300 * 0.4) / 2300)
    if method == "wilson":
        low, high = (bound[:, 0] for bound in inference.wilson_ratio(found))
    else:
        draw = np.random.default_rng(3)
        bounds = [inference.bootstrap_ratio(found, model, generator=draw, resamples=400) for model in range(400)]
        low, high = (np.array([bound[side][0] for bound in bounds]) for side in (0, 1))
    assert 0.91 < ((low <= truth) & (truth <= high)).mean() < 0.99


def test_a_ratio_that_is_not_defined_has_no_interval():
    draw = np.random.default_rng(0)
    found = counts(10, [0, 5], [10, 5], [[0, 5], [0, 2]])
    for model in (0, 1):
        low, high = inference.bootstrap_ratio(found, model, generator=draw)
        assert np.isnan([low[0], high[0]]).all()
        assert np.isnan(low[1]) == np.isnan(high[1]) == (model == 0)  # model 0 makes no error
    np.testing.assert_array_equal(np.isnan(inference.wilson_ratio(found)[0]), [[True, True], [True, False]])
    np.testing.assert_array_equal(np.isnan(inference.no_effect(found)), [[True, True], [True, False]])


def test_the_test_of_no_effect_holds_its_level_and_finds_an_effect():
    level = inference.no_effect(drawn(np.random.default_rng(4), 2000, errors=(0.25, 0.25)))
    assert 0.035 < (level < 0.05).mean() < 0.065
    assert (inference.no_effect(drawn(np.random.default_rng(5), 50)) < 1e-4).all()


def test_the_test_of_no_effect_is_near_the_exact_one():
    found = counts(1000, [60], [700], [[36]])
    law = stats.hypergeom(1000, 300, 60)
    exact = 2 * (law.sf(24) + law.pmf(24) / 2)  # the mid-p value
    assert inference.no_effect(found)[0, 0] == pytest.approx(exact, rel=0.1)


def test_two_shares_are_compared_by_the_pooled_test():
    p = inference.same_share(np.array([30, 10]), 100, np.array([60, 150]), 200)
    assert p[0] == 1
    assert p[1] == pytest.approx(stats.chi2_contingency([[10, 90], [150, 50]], correction=False).pvalue)


def test_adjusted_p_values_are_the_textbooks_and_pass_over_what_is_no_test():
    p = np.array([[0.01, 0.04, np.nan], [0.03, 0.005, 0.9]])
    np.testing.assert_allclose(inference.holm(p), [[0.04, 0.09, np.nan], [0.09, 0.025, 0.9]])
    np.testing.assert_allclose(inference.benjamini_hochberg(p), [[0.025, 0.05, np.nan], [0.05, 0.025, 0.9]])
    draw = np.random.default_rng(6).random(40) ** 3
    np.testing.assert_allclose(inference.benjamini_hochberg(draw), stats.false_discovery_control(draw))


def test_agreement_is_the_mean_of_spearmans_over_all_pairs():
    ratios = np.random.default_rng(7).normal(size=(6, 9)) + np.arange(9) / 5
    ratios[:, 4] = np.round(ratios[:, 4])
    found = inference.agreement(ratios, generator=np.random.default_rng(0))
    pairs = [stats.spearmanr(a, b).statistic for a, b in itertools.combinations(ratios, 2)]
    assert found.mean_rank_correlation == pytest.approx(np.mean(pairs))
    assert list(inference.pairs_of_models(ratios, "abcdef").values()) == pytest.approx(pairs)


def test_models_that_share_their_order_are_told_from_those_that_do_not():
    shared = np.arange(8.0) + np.random.default_rng(8).normal(size=(4, 8)) / 4
    alone = np.random.default_rng(9).normal(size=(4, 8))
    found = inference.agreement(shared, generator=np.random.default_rng(0))
    assert found.mean_rank_correlation > 0.9
    assert found.p < 0.01
    assert inference.agreement(alone, generator=np.random.default_rng(0)).p > 0.05
    shared[0, 3] = np.nan
    assert inference.agreement(shared, generator=np.random.default_rng(0)).factors == 7
    with pytest.raises(ValueError, match="1 models and 8 factors"):
        inference.agreement(alone[:1], generator=np.random.default_rng(0))


def test_the_permutation_null_is_true_to_its_level():
    draw = np.random.default_rng(10)
    p = [inference.agreement(draw.normal(size=(3, 8)), generator=draw, permutations=99).p for _ in range(200)]
    assert np.mean(np.array(p) <= 0.05) < 0.1


def test_a_rank_correlation_needs_three_pairs_that_vary():
    assert inference.rank_correlation(np.array([1, 2, np.nan, 3.0]), np.array([1, 4, 0, 9.0])) == pytest.approx(1)
    assert np.isnan(inference.rank_correlation(np.array([1, 2.0]), np.array([1, 2.0])))
    assert np.isnan(inference.rank_correlation(np.ones(3), np.arange(3.0)))


def test_groups_are_compared_factor_by_factor():
    draw = np.random.default_rng(11)
    ratios = draw.normal(1, 0.1, size=(30, 3))
    groups = ["convnet"] * 15 + ["transformer"] * 15
    ratios[15:, 1] += 0.5
    ratios[:, 2] = np.nan
    same, other, none = inference.compare_groups(ratios, groups)
    assert same.p > 0.01 > other.p
    assert other.p == pytest.approx(stats.alexandergovern(ratios[:15, 1], ratios[15:, 1]).pvalue)
    assert other.means["transformer"] == pytest.approx(ratios[15:, 1].mean())
    assert {name: len(group) for name, group in other.ratios.items()} == {"convnet": 15, "transformer": 15}
    assert np.isnan(none.p)
    assert np.isnan(list(none.means.values())).all()
    assert np.isnan(inference.compare_groups(ratios[:2], ["a", "b"])[0].p)  # groups of one have no variance


def test_spread_is_over_the_models_that_have_a_ratio():
    ratios = np.array([[1.0, 3, np.nan], [2, 1, np.nan], [3, 2, np.nan], [np.nan] * 3])
    found = inference.spread(ratios)
    assert found["median"][:2].tolist() == [2, 2]
    assert found["above_1"][:2].tolist() == [2 / 3, 2 / 3]
    assert found["worst"].tolist() == [0.5, 0.25, 0]
    assert np.isnan(found["mean"][2])


def test_a_mean_over_models_is_of_those_that_have_the_figure():
    found = inference.mean_over_models(np.array([[1.0, np.nan, 4], [3, np.nan, np.nan]]))
    np.testing.assert_array_equal(found, [2, np.nan, 4])
