# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipes_lib.data.pools.selection import check_weights, fuse, keep, min_max, number_kept
from recipes_lib.data.pools.uids import to_u8
from recipes_lib.errors import DataError

SIEVE = np.array([0.12, 0.55, 0.31, 0.80, 0.31])
CLIP = np.array([0.28, 0.19, 0.33, 0.22, 0.24])
FUSED = [0.3214285714, 0.3161764706, 0.6397058824, 0.6071428571, 0.3182773109]
HALVES = {"sieve": 0.5, "clip": 0.5}


def numbered(count: int) -> np.ndarray:
    return to_u8([f"{row:032x}" for row in range(count)])


def test_scores_are_rescaled_and_fused_as_on_the_card():
    np.testing.assert_allclose(min_max(SIEVE), [0, 0.6323529412, 0.2794117647, 1, 0.2794117647], atol=1e-10)
    np.testing.assert_allclose(min_max(CLIP), [0.6428571429, 0, 1, 0.2142857143, 0.3571428571], atol=1e-10)
    np.testing.assert_allclose(fuse({"sieve": SIEVE, "clip": CLIP}, HALVES), FUSED, atol=1e-10)


@pytest.mark.parametrize(("fraction", "ours", "official"), [(0.4, [2, 3], [0, 2, 3]), (0.2, [2], [2, 3])])
def test_the_share_is_kept_as_on_the_card(fraction, ours, official):
    fused = fuse({"sieve": SIEVE, "clip": CLIP}, HALVES)
    assert keep(fused, numbered(5), fraction).tolist() == ours
    assert keep(fused, numbered(5), fraction, official_ties=True).tolist() == official


def test_of_equal_scores_the_lowest_uids_are_kept_wherever_they_stand():
    scores = np.array([0.5, 0.9, 0.5, 0.5, 0.1])
    uids = to_u8([f"{n:032x}" for n in (7, 1, 3, 5, 2)])
    assert keep(scores, uids, 0.6).tolist() == [1, 2, 3]
    assert keep(scores, uids, 0.6, official_ties=True).tolist() == [0, 1, 2, 3]


def test_everything_can_be_kept():
    for ties in (False, True):
        assert keep(SIEVE, numbered(5), 1.0, official_ties=ties).tolist() == [0, 1, 2, 3, 4]


@given(st.integers(1, 10**9), st.integers(1, 1000))
def test_the_number_kept_is_exact_for_a_share_in_thousandths(total, thousandths):
    wanted = total * thousandths // 1000
    if wanted:
        assert number_kept(total, thousandths / 1000) == wanted


def test_a_rounding_error_of_the_product_loses_no_sample():
    assert int(100 * 0.29) == 28
    assert number_kept(100, 0.29) == 29 == len(keep(np.arange(100.0), numbered(100), 0.29))


@given(
    st.lists(st.integers(-1000, 1000), min_size=2, max_size=40),
    st.floats(0.01, 100),
    st.floats(-100, 100),
)
def test_fusion_keeps_its_order_under_positive_affine_maps_of_a_signal(sieve, scale, shift):
    sieve = np.array(sieve, dtype=float)
    clip = np.linspace(0, 1, len(sieve))
    plain = fuse({"sieve": sieve, "clip": clip}, HALVES)
    mapped = fuse({"sieve": scale * sieve + shift, "clip": clip}, HALVES)
    np.testing.assert_allclose(mapped, plain, atol=1e-9)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=60), st.floats(0.05, 1), st.randoms())
def test_what_is_kept_does_not_depend_on_the_order_of_the_pool(scores, fraction, random):
    if int(len(scores) * fraction) < 1:
        return
    scores, uids = np.array(scores, dtype=float), numbered(len(scores))
    order = list(range(len(scores)))
    random.shuffle(order)
    kept = keep(scores, uids, fraction)
    moved = keep(scores[order], uids[order], fraction)
    assert sorted(uids[kept].tolist()) == sorted(uids[order][moved].tolist())
    by_hand = sorted(range(len(scores)), key=lambda row: (-scores[row], row))[: number_kept(len(scores), fraction)]
    assert kept.tolist() == sorted(by_hand)


@pytest.mark.parametrize(("total", "fraction", "count"), [(100, 0.29, 29), (3, 1 / 3, 1), (7, 3 / 7, 3), (10, 0.19, 1)])
def test_a_share_is_what_was_meant_and_not_what_a_float_rounds_it_to(total, fraction, count):
    assert number_kept(total, fraction) == count


def test_a_constant_signal_counts_one_half_and_decides_nothing():
    assert min_max(np.full(3, 0.7)).tolist() == [0.5, 0.5, 0.5]
    fused = fuse({"sieve": SIEVE, "clip": np.zeros(5)}, HALVES)
    assert np.argsort(fused, kind="stable").tolist() == np.argsort(SIEVE, kind="stable").tolist()


def test_a_signal_without_weight_is_left_out():
    np.testing.assert_array_equal(fuse({"sieve": SIEVE, "clip": CLIP}, {"sieve": 1.0}), min_max(SIEVE))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_no_number_is_refused_and_counted(bad):
    scores = np.array([0.1, bad, 0.3, bad])
    for call in (
        lambda: min_max(scores, "clip"),
        lambda: fuse({"sieve": SIEVE[:4], "clip": scores}, HALVES),
        lambda: keep(scores, numbered(4), 0.5),
    ):
        with pytest.raises(DataError, match="2 of 4 scores are not finite"):
            call()
    with pytest.raises(DataError, match=r"^clip: "):
        min_max(scores, "clip")


@pytest.mark.parametrize("fraction", [0, -0.1, 1.0001, float("nan"), float("inf")])
def test_a_fraction_outside_its_range_is_refused(fraction):
    with pytest.raises(ValueError, match=r"use a value in \(0, 1\]"):
        keep(SIEVE, numbered(5), fraction)


def test_a_fraction_that_keeps_nothing_is_refused_with_the_size_of_the_pool():
    with pytest.raises(DataError, match=r"fraction 0\.1 keeps no sample of 5"):
        keep(SIEVE, numbered(5), 0.1)
    with pytest.raises(DataError, match="keeps no sample of 0"):
        keep(SIEVE[:0], numbered(0), 1.0)


def test_weights_must_sum_to_one_but_for_rounding():
    assert 0.7 + 0.2 + 0.1 != 1
    check_weights({"a": 0.7, "b": 0.2, "c": 0.1})
    for weights in ({"a": 0.5, "b": 0.4}, {"a": 1.5, "b": -0.5}, {}, {"a": float("nan")}, {"a": 1.00001}):
        with pytest.raises(ValueError, match="use weights of at least 0 that sum to 1"):
            check_weights(weights)


def test_arguments_that_do_not_fit_together_are_refused():
    with pytest.raises(ValueError, match="no signal 'blip' to fuse; there are: sieve, clip"):
        fuse({"sieve": SIEVE, "clip": CLIP}, {"sieve": 0.5, "blip": 0.5})
    with pytest.raises(ValueError, match="different lengths"):
        fuse({"sieve": SIEVE, "clip": CLIP[:3]}, HALVES)
    with pytest.raises(ValueError, match="5 scores for 4 uids"):
        keep(SIEVE, numbered(4), 0.5)
