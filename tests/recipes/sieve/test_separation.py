# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from recipes_lib.recipes.sieve.separation import auc, by_kind, kept_kinds

NAMES = ("caption", "unusual", "wrong_pair", "file_name", "boilerplate")
ALIGNED = ("caption", "unusual")
KINDS = np.array([0, 0, 1, 2, 2, 3])
SCORES = np.array([0.9, 0.4, 0.3, 0.5, 0.1, 0.3])


@pytest.mark.parametrize(
    ("scores", "good", "wanted"),
    [
        ([0.9, 0.8, 0.2, 0.1], [1, 1, 0, 0], 1.0),
        ([0.1, 0.2, 0.8, 0.9], [1, 1, 0, 0], 0.0),
        ([0.9, 0.3, 0.5, 0.1], [1, 1, 0, 0], 0.75),  # of four comparisons 0.3 < 0.5 alone is lost
        ([0.5, 0.5, 0.5], [1, 0, 0], 0.5),
        ([0.5, 0.7, 0.5, 0.1], [1, 1, 0, 0], 0.875),  # one tie, counted half
    ],
)
def test_the_auc_is_the_share_of_comparisons_that_the_good_pair_wins(scores, good, wanted):
    assert auc(np.array(scores), np.array(good, bool)) == pytest.approx(wanted)


@pytest.mark.parametrize(("good", "count"), [([True] * 3, 3), ([False] * 3, 0)])
def test_an_auc_needs_both_kinds(good, count):
    with pytest.raises(ValueError, match=rf"{count} of 3 pairs are good: an AUC needs both kinds"):
        auc(np.zeros(3), np.array(good))


def test_a_kind_is_compared_with_all_of_the_other_side():
    found = by_kind({"sieve": SCORES, "turned": -SCORES}, KINDS, NAMES, ALIGNED)
    # good .9 .4 .3 against bad .5 .1 .3: three wins, two wins, a win and a tie
    wanted = {
        "all": 6.5 / 9,
        "caption": 5 / 6,  # .9 .4 against all bad ones
        "unusual": 1.5 / 3,  # .3 against all bad ones
        "wrong_pair": 4 / 6,  # all good ones against .5 .1
        "file_name": 2.5 / 3,  # all good ones against .3
    }
    assert found["sieve"] == pytest.approx(wanted)
    assert found["turned"] == pytest.approx({kind: 1 - value for kind, value in wanted.items()})


def test_the_share_kept_is_of_each_kind_that_is_there():
    kept = np.array([True, False, True, True, False, False])
    assert kept_kinds(kept, KINDS, NAMES) == {"caption": 0.5, "unusual": 1.0, "wrong_pair": 0.5, "file_name": 0.0}
