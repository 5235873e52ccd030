# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from scipy.stats import spearmanr

from recipes_lib.recipes.evaluation import ranking


def table(**columns):
    count = len(next(iter(columns.values())))
    return {f"n{i}": {name: values[i] for name, values in columns.items()} for i in range(count)}


@pytest.mark.parametrize("seed", range(3))
def test_the_correlation_is_scipys_with_ties(seed):
    draw = np.random.default_rng(seed)
    knn, rank = draw.integers(0, 5, 12) / 5, draw.integers(0, 6, 12).astype(float)
    found = ranking.correlation(table(knn=knn, rankme=rank), "rankme")
    assert found == pytest.approx(spearmanr(rank, knn).statistic, abs=1e-12)


def test_metrics_of_which_less_is_better_are_turned_and_alpha_is_best_at_one():
    rows = table(
        knn=[0.3, 0.2, 0.1], loss=[1.0, 2.0, 3.0], uniformity=[-3, -2, -1], alpha_req=[1.1, 0.7, 1.9], rankme=[3, 1, 2]
    )
    assert ranking.correlations(rows, ("loss", "uniformity", "alpha_req")) == pytest.approx(
        {"loss": 1.0, "uniformity": 1.0, "alpha_req": 1.0}
    )
    assert ranking.correlation(rows, "rankme") == pytest.approx(0.5)


def test_a_constant_metric_has_no_relation_and_a_network_without_the_metric_does_not_count():
    rows = table(knn=[0.1, 0.2, 0.3, 0.4], rankme=[5.0, 5.0, 5.0, 5.0])
    assert ranking.correlation(rows, "rankme") == 0.0
    rows = table(knn=[0.1, 0.2, 0.3, 0.4], rankme=[1, 2, 3, 0])
    del rows["n3"]["rankme"]
    assert ranking.correlation(rows, "rankme") == pytest.approx(1.0)
    del rows["n2"]["rankme"]
    with pytest.raises(ValueError, match="2 networks have rankme and knn"):
        ranking.correlation(rows, "rankme")


def test_the_share_that_a_network_leaves_behind_counts_equal_ones_half():
    rows = table(knn=[0.2, 0.1, 0.2, 0.4, 0.9], loss=[1, 2, 3, 4, 5])
    assert ranking.beaten(rows, "knn", "n0") == (1 + 0.5) / 4
    assert ranking.beaten(rows, "loss", "n0") == 1.0


def test_the_interval_is_narrow_where_all_samples_agree_and_wide_where_there_is_no_relation():
    draw = np.random.default_rng(0)
    knn = draw.normal(size=9)
    mean, low, high = ranking.interval([table(knn=knn, rankme=knn)] * 3, "rankme")
    assert (mean, high) == pytest.approx((1.0, 1.0))
    assert low > 0.9
    tables = [table(knn=knn, rankme=draw.normal(size=9)) for _ in range(3)]
    mean, low, high = ranking.interval(tables, "rankme")
    assert low < mean < high
    assert high - low > 0.4
    assert mean == pytest.approx(np.mean([ranking.correlation(t, "rankme") for t in tables]))


def test_the_interval_is_the_same_for_the_same_seed():
    draw = np.random.default_rng(0)
    rows = [table(knn=draw.normal(size=9), rankme=draw.normal(size=9)) for _ in range(3)]
    assert ranking.interval(rows, "rankme") == ranking.interval(rows, "rankme")
    assert ranking.interval(rows, "rankme") != ranking.interval(rows, "rankme", seed=1)
