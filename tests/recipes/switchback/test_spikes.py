# SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
import pytest

from recipes_lib.recipes.switchback.spikes import Following, followed, loss_spikes, rms_spikes


def wave(steps: int) -> list[float]:
    """1, 3, 1, 3, ...: mean 2 and standard deviation 1 over any even number of steps."""
    return [1.0, 3.0] * (steps // 2)


def with_values(series: list[float], values: dict[int, float]) -> list[float]:
    return [values.get(step, value) for step, value in enumerate(series)]


@pytest.mark.parametrize(("loss", "found"), [(5.19, []), (5.21, [50])])
def test_a_deviation_is_3_2_standard_deviations_above_the_mean(loss, found):
    assert loss_spikes(with_values(wave(100), {50: loss}), start=0, at_least=1, history=10) == found


def test_lower_losses_are_no_spikes():
    assert loss_spikes(with_values(wave(100), {50: -50.0}), start=0, at_least=1, history=10) == []


def test_the_step_itself_and_those_after_it_are_no_history():
    losses = with_values(wave(100), {50: 5.21, 51: 1e6})
    assert loss_spikes(losses, start=0, at_least=1, history=10) == [50]  # merged with 51


@pytest.mark.parametrize(("second", "found"), [(51, [50]), (60, [50]), (61, [])])
def test_a_spike_has_two_deviations_at_most_ten_steps_apart(second, found):
    """A history of 40 steps with one loss of 9 in it has mean 2.175 or 2.2, deviation 1.47: 90 is far above."""
    losses = with_values(wave(200), {50: 9.0, second: 90.0})
    assert loss_spikes(losses, start=0, history=40) == found


def test_deviations_further_apart_are_spikes_of_their_own():
    losses = with_values(wave(400), {100: 9.0, 101: 90.0, 200: 9.0, 201: 90.0})
    assert loss_spikes(losses, start=0, history=40) == [100, 200]
    assert loss_spikes(losses, start=101, history=40) == [200]  # one deviation of the first is left
    assert loss_spikes(losses, start=0, history=40, at_least=3) == []


def test_the_first_thousand_steps_are_not_judged():
    losses = with_values(wave(1200), {998: 9.0, 999: 90.0})
    assert loss_spikes(losses) == []
    assert loss_spikes(losses, start=998) == [998]


def test_a_constant_series_has_no_spikes():
    assert loss_spikes([0.1] * 300, start=0, at_least=1) == []


def test_rms_spikes_are_merged_and_begin_at_the_threshold():
    rms = with_values([1.0] * 100, {5: 2.29, 20: 2.3, 30: 7.0, 40: 2.5, 51: 2.4})
    assert rms_spikes(rms) == [20, 51]  # 20, 30 and 40 are each 10 after the one before, 51 is 11
    assert rms_spikes(rms, threshold=2.0, window=1) == [5, 20, 30, 40, 51]


def test_fraction_chance_and_p_value_by_hand():
    """20 steps, RMS spike at 4: steps 5 and 6 follow at lag 1-2. Loss spikes 6 and 15: one of two follows.

    By chance 2 of 20 do. Shifted by k, 6 + k lies on 5 or 6 for k = 0 and 19, 15 + k for k = 10 and 11: 4 of 20 shifts
    have one hit, none has two.
    """
    assert followed([6, 15], [4], 20, lag=(1, 2)) == Following(spikes=2, fraction=0.5, chance=0.1, p_value=0.2)


def test_the_lag_includes_both_of_its_ends():
    for step, fraction in ((10, 0.0), (11, 1.0), (18, 1.0), (19, 0.0)):
        assert followed([step], [10], 100).fraction == fraction


def test_steps_before_the_start_count_for_nothing_but_their_rms_spikes():
    """RMS spike at 8, lag 1-4: of the steps 10 to 19, 10, 11 and 12 follow."""
    found = followed([11], [8, 2], 20, lag=(1, 4), start=10)
    assert found == Following(spikes=1, fraction=1.0, chance=0.3, p_value=0.3)


def test_what_follows_an_rms_spike_at_the_end_does_not_come_round():
    assert followed([0], [19], 20).chance == 0


def test_without_loss_spikes_there_is_no_fraction():
    found = followed([], [4], 20)
    assert math.isnan(found.fraction)
    assert (found.spikes, found.chance, found.p_value) == (0, 0.4, 1.0)


def test_unrelated_series_have_p_values_that_are_uniform_or_larger():
    g = np.random.default_rng(0)
    values = []
    for _ in range(300):
        losses, rms = (np.flatnonzero(g.random(1000) < 0.01).tolist() for _ in range(2))
        values.append(followed(losses, rms, 1000).p_value)
    for level in (0.05, 0.2, 0.5):
        assert np.mean(np.array(values) <= level) <= level + 3 * math.sqrt(level * (1 - level) / 300)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_series_that_diverged_are_refused(bad):
    with pytest.raises(ValueError, match=f"losses has {bad} at step 3: cut the series"):
        loss_spikes([1.0, 1.0, 1.0, bad])
    with pytest.raises(ValueError, match=f"rms has {bad} at step 0"):
        rms_spikes([bad])


def test_impossible_arguments_are_refused():
    with pytest.raises(ValueError, match=r"lag = \(8, 1\)"):
        followed([1], [0], 10, lag=(8, 1))
    with pytest.raises(ValueError, match="loss spike at step 10, outside the steps from 2 to 10"):
        followed([5, 10], [], 10, start=2)
    with pytest.raises(ValueError, match="history = 1"):
        loss_spikes([1.0] * 5, history=1)
