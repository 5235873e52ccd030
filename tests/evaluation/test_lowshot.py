# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from recipes_lib.evaluation import lowshot


def problem(seed: int = 0, noise: float = 2.0):
    generator = torch.Generator().manual_seed(seed)
    labels, test_labels = torch.arange(120) % 4, torch.arange(80) % 4
    means = torch.randn(4, 16, generator=generator)
    train = means[labels] + noise * torch.randn(120, 16, generator=generator)
    test = means[test_labels] + noise * torch.randn(80, 16, generator=generator)
    return train, labels, test, test_labels


def test_rows_are_centred_over_their_own_features_and_of_length_one():
    # by hand: [1, 2, 6] less its mean 3 is [-2, -1, 3], of length sqrt(14)
    row = lowshot._centred(torch.tensor([[1.0, 2.0, 6.0]]))
    np.testing.assert_allclose(row, np.array([[-2, -1, 3]]) / np.sqrt(14), atol=1e-12)


@pytest.mark.parametrize("penalty", [0.0025, 0.075])
def test_it_is_scikit_learns_regression_of_the_card(penalty):
    train, labels, test, test_labels = problem()
    chosen = torch.arange(0, 40)

    def prepared(x):
        x = x.double().numpy()
        x = x - x.mean(axis=1, keepdims=True)
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    model = LogisticRegression(C=1 / penalty, fit_intercept=False, max_iter=300)
    expected = model.fit(prepared(train[chosen]), labels[chosen]).score(prepared(test), test_labels)
    result = lowshot.low_shot(train, labels, test, test_labels, choices=[chosen], penalty=penalty)
    assert result.scores == (expected,)


def test_the_regression_is_at_the_minimum_of_the_papers_objective():
    # lambda/2 |W|^2 + sum of cross-entropies: its gradient vanishes at scikit-learn's W for C = 1/lambda
    train, labels, _, _ = problem()
    x, penalty = torch.from_numpy(lowshot._centred(train)), 0.075
    model = LogisticRegression(C=1 / penalty, fit_intercept=False, max_iter=300, tol=1e-9).fit(x.numpy(), labels)
    weight = torch.tensor(model.coef_, requires_grad=True)
    loss = (
        torch.nn.functional.cross_entropy(x @ weight.T, labels, reduction="sum") + penalty / 2 * weight.square().sum()
    )
    (gradient,) = torch.autograd.grad(loss, weight)
    assert gradient.abs().max() < 1e-4


def test_scale_and_offset_of_a_row_do_not_count():
    train, labels, test, test_labels = problem()
    choices = [torch.arange(20)]
    plain = lowshot.low_shot(train, labels, test, test_labels, choices=choices)
    assert lowshot.low_shot(train * 50 + 3, labels, test * 0.1 - 8, test_labels, choices=choices) == plain


def test_mean_and_spread_are_those_of_the_choices():
    assert lowshot.LowShot((0.5, 0.7, 0.9)).mean == pytest.approx(0.7)
    assert lowshot.LowShot((0.5, 0.7, 0.9)).std == pytest.approx(0.2)
    assert lowshot.LowShot((0.5,)).std == 0.0
    train, labels, test, test_labels = problem()
    result = lowshot.low_shot(train, labels, test, test_labels, choices=[torch.arange(20), torch.arange(20, 60)])
    assert len(set(result.scores)) == 2
