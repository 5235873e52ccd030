# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from recipes_lib.evaluation import trained_heads
from recipes_lib.evaluation.trained_heads import best_head


def problem(noise: float, scale: float = 1.0):
    draw = torch.Generator().manual_seed(0)
    labels, test_labels = torch.arange(600) % 5, torch.arange(400) % 5
    means = torch.randn(5, 24, generator=draw)
    train = means[labels] + noise * torch.randn(600, 24, generator=draw)
    test = means[test_labels] + noise * torch.randn(400, 24, generator=draw)
    return train * scale, labels, test * scale, test_labels


def rings(count: int, seed: int):
    """Two classes that no line separates: near the centre, and far from it."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    rows = torch.nn.functional.normalize(torch.randn(count, 2, generator=draw), dim=1)
    return rows * (1 + labels[:, None] + 0.1 * torch.randn(count, 1, generator=draw)), labels


def test_separable_classes_are_read_off_perfectly():
    assert best_head(*problem(noise=0.1), seed=0, epochs=20).accuracy == 1.0


def test_it_reaches_the_accuracy_of_a_logistic_regression_on_noisy_classes():
    train, labels, test, test_labels = problem(noise=1.5)
    exact = LogisticRegression(C=1.0, max_iter=3000).fit(train.numpy(), labels)
    assert best_head(train, labels, test, test_labels, seed=0).accuracy >= exact.score(test, test_labels) - 0.03


def test_the_rate_is_chosen_on_held_out_training_images_and_the_test_images_have_no_say():
    train, labels, test, test_labels = problem(noise=1.0)
    how = {
        "seed": 0,
        "rates": (1e-6, 0.1),
        "epochs": 10,
        "hidden": 16,
    }  # the first leaves the random weights as they are
    found = best_head(train, labels, test, test_labels, **how)
    assert found.rate == 0.1
    assert found.held_out[1] > found.held_out[0]
    misled = best_head(train, labels, test, (test_labels + 1) % 5, **how)
    assert (misled.rate, misled.held_out) == (found.rate, found.held_out)
    assert misled.accuracy < 0.1


def test_a_head_among_others_learns_as_if_it_were_alone():
    data = problem(noise=1.5)
    together = best_head(*data, seed=0, rates=(0.01, 0.1), epochs=5)
    alone = [best_head(*data, seed=0, rates=(rate,), epochs=5) for rate in (0.01, 0.1)]
    assert together.held_out == pytest.approx([head.held_out[0] for head in alone], abs=1e-6)
    assert together.accuracy == pytest.approx(alone[(0.01, 0.1).index(together.rate)].accuracy, abs=1e-6)


def test_an_mlp_separates_what_a_linear_layer_cannot():
    data = (*rings(400, 0), *rings(300, 1))
    assert best_head(*data, seed=0, epochs=20).accuracy < 0.7
    assert best_head(*data, seed=0, epochs=20, hidden=32).accuracy > 0.95


def test_the_scale_of_a_feature_changes_nothing_and_a_constant_one_does_no_harm():
    plain = best_head(*problem(noise=1.5), seed=0, epochs=5)
    scaled = best_head(*problem(noise=1.5, scale=1000.0), seed=0, epochs=5)
    assert scaled.accuracy == pytest.approx(plain.accuracy, abs=0.01)
    train, labels, test, test_labels = problem(noise=0.1)
    train, test = (torch.cat([rows, torch.full((len(rows), 1), 7.0)], dim=1) for rows in (train, test))
    assert best_head(train, labels, test, test_labels, seed=0, epochs=20).accuracy == 1.0


def test_a_rate_at_which_the_head_diverges_is_not_chosen():
    found = best_head(*problem(noise=0.1), seed=0, epochs=5, rates=(0.1, 1e30), hidden=8)
    assert found.rate == 0.1
    assert found.held_out[1] == 0


def test_the_score_leaves_the_global_random_state_alone():
    state = torch.get_rng_state()
    first = best_head(*problem(noise=2.5), seed=3, epochs=5, hidden=8)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert best_head(*problem(noise=2.5), seed=3, epochs=5, hidden=8) == first


def test_too_few_images_and_no_rate_are_refused():
    train, labels, test, test_labels = problem(noise=1.0)
    with pytest.raises(ValueError, match="0 learning rates and 600 training images"):
        best_head(train, labels, test, test_labels, seed=0, rates=())
    with pytest.raises(ValueError, match="8 learning rates and 3 training images"):
        best_head(train[:3], labels[:3], test, test_labels, seed=0)
    assert len(trained_heads.RATES) == 8
