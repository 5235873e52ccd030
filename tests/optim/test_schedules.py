# SPDX-License-Identifier: Apache-2.0
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipes_lib.optim.schedules import cosine, linear, warmup_cosine

# G7 of the MSN card: ImageNet, 1,251 steps an epoch, 800 epochs, 15 of them warm-up.
STEPS, WARMUP, STRETCH = 1_000_800, 18_765, 1.25


@pytest.mark.parametrize(
    ("step", "expected"), [(1, 2.000426326e-4), (18_765, 1e-3), (500_400, 6.684248735e-4), (1_000_800, 9.922370815e-5)]
)
def test_learning_rate_is_g7(step, expected):
    lr = warmup_cosine(step, start=2e-4, peak=1e-3, final=1e-6, warmup_steps=WARMUP, total_steps=STEPS, stretch=STRETCH)
    assert lr == pytest.approx(expected, rel=1e-9, abs=0)


def test_weight_decay_is_g7():
    assert cosine(STEPS, 0.04, 0.4, STEPS, stretch=STRETCH) == pytest.approx(0.365623059, rel=1e-9, abs=0)


def test_ema_momentum_is_g7():
    assert linear(STEPS - 1, 0.996, 1.0, STEPS, stretch=STRETCH) == pytest.approx(0.9991999968, rel=1e-10, abs=0)


def test_ends_are_met_and_kept():
    assert cosine(0, 3.0, 1.0, 10) == 3.0
    assert cosine(5, 3.0, 1.0, 10) == pytest.approx(2.0)
    assert [cosine(step, 3.0, 1.0, 10) for step in (10, 11, 20)] == [1.0] * 3
    assert [linear(step, 3.0, 1.0, 10) for step in (0, 5, 10, 11)] == [3.0, 2.0, 1.0, 1.0]


@pytest.mark.parametrize(("warmup", "step", "expected"), [(0, 0, 2.0), (10, 9, 1.9), (10, 10, 0.0), (20, 10, 1.5)])
def test_warm_up_may_be_absent_or_longer_than_the_run(warmup, step, expected):
    lr = warmup_cosine(step, start=1.0, peak=2.0, final=0.0, warmup_steps=warmup, total_steps=10)
    assert lr == pytest.approx(expected)


@given(st.integers(0, 400), st.integers(0, 300), st.integers(1, 300), st.floats(1, 2))
def test_warmup_cosine_stays_between_its_values(step, warmup, total, stretch):
    lr = warmup_cosine(step, start=0.2, peak=1.0, final=0.1, warmup_steps=warmup, total_steps=total, stretch=stretch)
    assert 0.1 <= lr <= 1.0
