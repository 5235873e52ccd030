# SPDX-License-Identifier: Apache-2.0
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression

from recipes_lib.evaluation.linear import linear_probe


def problem(noise: float):
    generator = torch.Generator().manual_seed(0)
    labels, test_labels = torch.arange(600) % 5, torch.arange(400) % 5
    means = torch.randn(5, 24, generator=generator)
    train = means[labels] + noise * torch.randn(600, 24, generator=generator)
    test = means[test_labels] + noise * torch.randn(400, 24, generator=generator)
    return train, labels, test, test_labels


def test_separable_classes_are_read_off_perfectly():
    assert linear_probe(*problem(noise=0.1), seed=0) == 1.0


def test_shuffled_labels_give_chance():
    train, _, test, test_labels = problem(noise=0.1)
    labels = torch.randint(5, (600,), generator=torch.Generator().manual_seed(1))
    # clusters map to their majority label, so any of a few multiples of 1/5 may come; the mean over draws is chance
    assert linear_probe(train, labels, test, test_labels, seed=0, epochs=20) <= 0.6


def test_it_reaches_the_accuracy_of_an_unpenalised_logistic_regression():
    train, labels, test, test_labels = problem(noise=1.5)

    def prepared(x):
        return F.normalize(F.layer_norm(x, x.shape[1:]), dim=1).numpy()

    exact = LogisticRegression(C=1e4, max_iter=3000).fit(prepared(train), labels)
    ours = linear_probe(train, labels, test, test_labels, seed=0)
    assert abs(ours - exact.score(prepared(test), test_labels)) <= 0.02


def test_the_score_depends_on_features_and_seed_and_leaves_the_global_state_alone():
    data = problem(noise=2.5)
    state = torch.get_rng_state()
    first = linear_probe(*data, seed=3, epochs=10, batch_size=64)
    torch.manual_seed(99)
    torch.set_rng_state(state)
    assert linear_probe(*data, seed=3, epochs=10, batch_size=64) == first
    assert torch.equal(torch.get_rng_state(), state)


def test_long_rows_do_not_outvote_the_others():
    train, labels, test, test_labels = problem(noise=0.1)
    train[:60] *= 1000
    labels = labels.clone()
    labels[:60] = (labels[:60] + 1) % 5  # a tenth is labelled wrongly, in each class alike
    assert linear_probe(train, labels, test, test_labels, seed=0) >= 0.98
