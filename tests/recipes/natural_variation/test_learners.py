# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from recipes_lib.data import pantry
from recipes_lib.recipes.natural_variation import catalogue, learners

GENERATOR = torch.Generator().manual_seed(0)
ROWS = torch.randn(40, 6, generator=GENERATOR) * torch.tensor([1.0, 5, 0.1, 1, 1, 0]) + 3
LABELS = torch.arange(40) % 4


@pytest.mark.parametrize("classes", [2, 4])
def test_the_probe_is_scikit_learns_on_standardised_features(classes):
    labels = LABELS % classes
    head = learners.probe(ROWS, labels, penalty=0.5)
    scaled = ((ROWS - ROWS.mean(0)) / ROWS.std(0, correction=0).where(ROWS.std(0) > 1e-6, torch.inf)).double().numpy()
    peer = LogisticRegression(C=2.0, max_iter=300).fit(scaled, labels.numpy())
    assert head.answers(ROWS).tolist() == peer.predict(scaled).tolist()
    logits = (ROWS @ head.weight.T + head.bias).softmax(1)
    np.testing.assert_allclose(logits.numpy(), peer.predict_proba(scaled), atol=2e-3)


def test_rows_count_as_often_as_they_occur():
    repeated = torch.cat([torch.arange(40), torch.zeros(30, dtype=torch.int64)])
    head = learners.probe(ROWS[repeated], LABELS[repeated], penalty=1.0)
    alone = learners.probe(ROWS, LABELS, penalty=1.0)
    right = lambda head: (ROWS[:1] @ head.weight.T + head.bias).softmax(1)[0, LABELS[0]]  # noqa: E731
    assert right(head) > right(alone) + 0.1


def _network() -> catalogue.Network:
    return catalogue.load("convnet", class_names=pantry.CLASSES, side=32, device=torch.device("cpu"), seed=0)


def test_fine_tuning_is_the_same_twice_and_leaves_the_network_as_it_was():
    network, images = _network(), pantry.render(pantry.sample_factors(24, seed=0), 32)
    labels = pantry.sample_factors(24, seed=0).label
    before = {name: value.clone() for name, value in network.body.state_dict().items()}
    how = {"classes": 12, "steps": 3, "batch_size": 8, "lr": 1e-3, "seed": 1}
    one, two = (learners.finetune(network, images, labels, torch.arange(24), **how) for _ in range(2))
    for name, value in one.state_dict().items():
        assert torch.equal(value, two.state_dict()[name])
    assert all(torch.equal(value, before[name]) for name, value in network.body.state_dict().items())
    assert any(not torch.equal(one[0].state_dict()[name], value) for name, value in before.items())
    again = learners.untrained_classifier(network, width=128, classes=12)
    again.load_state_dict(one.state_dict())
    views = network.prepare(images)
    assert torch.equal(again(views), one(views))


def test_only_the_rows_of_the_lesson_are_trained_on():
    network, images = _network(), pantry.render(pantry.sample_factors(24, seed=0), 32)
    labels = pantry.sample_factors(24, seed=0).label
    how = {"classes": 12, "steps": 2, "batch_size": 8, "lr": 1e-3, "seed": 1}
    other = images.clone()
    other[16:] = 0
    rows = torch.arange(16)
    one, two = (learners.finetune(network, given, labels, rows, **how) for given in (images, other))
    assert all(torch.equal(value, two.state_dict()[name]) for name, value in one.state_dict().items())
