# SPDX-License-Identifier: Apache-2.0
"""Each check tells the sick from the healthy by its threshold, and says where it cannot tell."""

import math

import pytest

from recipes_lib.evaluation import diagnosis

FALLING = [10.0 - 0.05 * step for step in range(100)]


def status(finding: diagnosis.Finding) -> str:
    assert "\n" not in finding.line
    assert finding.line.startswith(finding.status)
    return finding.status


@pytest.mark.parametrize(
    ("embedding", "features", "untrained", "expected"),
    [
        (0.95, 0.6, 0.5, "healthy"),
        (0.31, 0.6, 0.5, "healthy"),  # DINO's, with prototypes
        (0.013, 0.6, 0.5, "found"),  # SimSiam without stop-gradient
        (0.95, 0.1, 0.5, "found"),  # a collapsed backbone under a batch norm, which spreads rounding noise
        (None, 0.6, 0.5, "healthy"),
        (None, 0.01, 0.5, "found"),
        (0.0, 0.0, 0.5, "found"),
    ],
)
def test_a_full_collapse_is_told_by_embeddings_and_by_features(embedding, features, untrained, expected):
    finding = diagnosis.full_collapse(embedding, features, untrained, steps=100)
    assert status(finding) == expected
    assert (finding.number < finding.threshold) == (expected == "found")


def test_little_spread_is_a_collapse_only_if_the_features_lost_their_rank_too():
    assert status(diagnosis.full_collapse(0.17, 0.6, 0.5, kept_rank=0.77, steps=150)) == "healthy"  # DINO
    assert status(diagnosis.full_collapse(0.153, 0.6, 0.5, kept_rank=0.41, steps=150)) == "found"  # no stop-gradient
    assert status(diagnosis.full_collapse(0.95, 0.6, 0.5, kept_rank=0.2, steps=150)) == "healthy"


@pytest.mark.parametrize(
    ("embedding", "features", "untrained", "expected"),
    [
        (18.6, 22.7, 35.3, "healthy"),  # SimCLR
        (2.3, 12.4, 35.3, "healthy"),  # DINO
        (1.4, 10.5, 35.3, "found"),  # SimSiam without stop-gradient
        (7.4, 5.5, 35.3, "found"),  # VICReg without its variance term
        (None, 3.0, 5.0, "healthy"),  # the network had few dimensions before
        (None, 0.0, 35.3, "found"),
    ],
)
def test_a_dimensional_collapse_is_told_against_the_untrained_network_and_the_ceiling(
    embedding, features, untrained, expected
):
    assert status(diagnosis.dimensional_collapse(embedding, features, untrained, ceiling=64, steps=100)) == expected


def test_a_loss_lies_if_it_falls_while_the_features_get_worse():
    how = {"classes": 10, "images": 500}
    assert status(diagnosis.lying_loss(FALLING, 0.18, 0.6, **how)) == "found"
    assert status(diagnosis.lying_loss(FALLING, 0.55, 0.6, **how)) == "healthy"
    assert status(diagnosis.lying_loss(FALLING[::-1], 0.18, 0.6, **how)) == "healthy"  # it rises: it tells the truth
    assert status(diagnosis.lying_loss([5.0] * 100, 0.18, 0.6, **how)) == "healthy"
    assert status(diagnosis.lying_loss(FALLING, 0.55, 0.6, collapsed=True, **how)) == "found"


def test_few_images_raise_no_false_alarm_of_a_lying_loss():
    assert status(diagnosis.lying_loss(FALLING, 0.2, 0.4, classes=10, images=1000)) == "found"
    assert status(diagnosis.lying_loss(FALLING, 0.2, 0.4, classes=10, images=40)) == "healthy"


@pytest.mark.parametrize(
    ("losses", "failed", "finite", "expected"),
    [
        ([1.0, 0.5], False, True, "healthy"),
        ([1.0, None], False, True, "found"),
        ([1.0, math.inf], False, True, "found"),
        ([1.0, 0.5], True, True, "found"),
        ([1.0, 0.5], False, False, "found"),
        ([], False, True, "healthy"),
    ],
)
def test_divergence_is_told_by_losses_weights_and_state(losses, failed, finite, expected):
    assert status(diagnosis.divergence(losses, failed=failed, finite_weights=finite)) == expected


def test_a_gradient_spike_is_told_against_the_running_median_and_the_first_fall_is_none():
    falling = [100 / (1 + step) for step in range(200)]
    assert status(diagnosis.gradient_spikes(falling)) == "healthy"
    spiked = [*falling[:150], 30.0, *falling[150:]]
    finding = diagnosis.gradient_spikes(spiked)
    assert status(finding) == "found"
    assert "at step 150; 1 such steps" in finding.text
    assert status(diagnosis.gradient_spikes([0.0] * 100)) == "healthy"
    assert status(diagnosis.gradient_spikes([0.0] * 80 + [1.0])) == "found"


def test_a_learning_rate_that_stays_0_or_still_rises_at_the_end_is_found():
    rising, cosine = [0.1 * step for step in range(10)], [0.1, 0.5, 1.0, 0.7, 0.1, 0.0]
    assert status(diagnosis.learning_rate([0.0] * 5, done=False)) == "found"
    assert status(diagnosis.learning_rate(rising, done=True)) == "found"
    unfinished = diagnosis.learning_rate(rising, done=False)
    assert status(unfinished) == "healthy"
    assert "still in the warm-up" in unfinished.text
    assert status(diagnosis.learning_rate(cosine, done=True)) == "healthy"
    assert status(diagnosis.learning_rate([0.1, 0.2, 0.2, 0.2], done=True)) == "healthy"  # constant after its warm-up
    assert status(diagnosis.learning_rate([0.1] * 5, done=True)) == "healthy"


@pytest.mark.parametrize(
    ("momentum", "moved", "steps", "expected", "word"),
    [
        (0.9, 0.8, 300, "healthy", "0.033 of the run"),
        (0.99, 0.5, 300, "healthy", "0.33 of the run"),
        (0.999, 0.5, 300, "found", "too slow for this run: try 0.93"),
        (0.0, 1.0, 300, "found", "copies the student"),
        (1.0, 0.0, 300, "found", "too slow"),
        (0.9, 0.0, 300, "found", "stands still"),
        (0.996, 0.9, 300_000, "healthy", "250 steps"),
    ],
)
def test_a_teacher_is_too_slow_too_fast_or_stands_still(momentum, moved, steps, expected, word):
    finding = diagnosis.teacher(momentum, moved, steps=steps, done=steps)
    assert status(finding) == expected
    assert word in finding.text


def test_a_teacher_that_had_no_time_to_move_is_not_said_to_stand_still():
    assert status(diagnosis.teacher(0.99, 0.001, steps=3000, done=10)) == "healthy"


def test_waiting_leaking_and_batches_that_are_too_small_are_found():
    assert status(diagnosis.slow_input(10.0, 1.0)) == "healthy"
    assert status(diagnosis.slow_input(10.0, 6.0)) == "found"
    assert status(diagnosis.slow_input(0.0, 0.0)) == "healthy"
    assert status(diagnosis.leaky_labels(0, 1000)) == "healthy"
    assert status(diagnosis.leaky_labels(50, 1000)) == "found"
    assert status(diagnosis.few_images(256, 128)) == "healthy"
    assert status(diagnosis.few_images(128, 256)) == "healthy"
    assert status(diagnosis.few_images(2, 0)) == "healthy"
    assert status(diagnosis.few_images(64, 300)) == "found"


@pytest.mark.parametrize(
    ("loss", "gradient", "expected"),
    [(1e-7, 1e-5, "healthy"), (0.0, 0.5, "found"), (0.1, 0.0, "found"), (0.0, math.nan, "found")],
)
def test_two_processes_differ_in_loss_or_gradient(loss, gradient, expected):
    assert status(diagnosis.two_processes(loss, gradient)) == expected


def test_a_short_run_cannot_tell_and_says_so():
    few = diagnosis.FEW_STEPS - 1
    findings = [
        diagnosis.full_collapse(0.0, 0.0, 0.5, steps=few),
        diagnosis.dimensional_collapse(1.0, 1.0, 30.0, ceiling=64, steps=few),
        diagnosis.lying_loss(FALLING[:few], 0.1, 0.9, classes=10, images=1000),
        diagnosis.gradient_spikes([1.0] * diagnosis.SPIKE_WINDOW),
        diagnosis.learning_rate([], done=False),
    ]
    assert [status(finding) for finding in findings] == ["unknown"] * 5
    assert all(finding.number is None for finding in findings)
