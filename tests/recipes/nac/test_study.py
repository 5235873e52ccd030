# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from recipes_lib import randomness
from recipes_lib.models.nac.network import LinkConfig, NeuralAttentiveCircuit, Shape
from recipes_lib.models.perceiver import PerceiverIO
from recipes_lib.recipes.nac import answering, fitting, study, tasks

SMALL = Shape(modules=8, outputs=1, width=8, signature_dim=4, depth=1, heads=2, head_width=4, hidden=8)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(study, "SHAPE", SMALL)
    monkeypatch.setattr(study, "STEPS", 2)
    monkeypatch.setattr(study, "SIZES", (4, 2))
    monkeypatch.setattr(study, "DRAWS", 1)
    monkeypatch.setattr(study, "SHOTS", (1,))
    whole, asked = fitting.fit, answering.task
    monkeypatch.setattr(
        fitting,
        "fit",
        lambda make, task, settings, *, seed: whole(
            make, task, fitting.Settings(steps=2, module_dropout=settings.module_dropout), seed=seed
        ),
    )
    monkeypatch.setattr(study.answering, "task", lambda seed: asked(seed, train=80))


@pytest.mark.parametrize("way", ["circuit", "dense", "perceiver"])
def test_the_numbers_of_a_network_on_digits(small, way):
    found = study.digits(3, way, dropout=0.8)
    rankings = {"greedy", "single", "random"} | (set() if way == "perceiver" else {"links"})
    assert set(found["pruned"]) == rankings
    assert all(set(sizes) == {"4", "2"} for sizes in found["pruned"].values())
    assert found["lost"]["2"] == pytest.approx(found["accuracy"] - found["pruned"]["greedy"]["2"])
    assert found["operations"]["2"] > found["operations"]["4"] > 1
    assert set(found["speed"]) == {"8", "4", "2"}
    assert found["speed"]["8"] == 1
    kinds = [found["damaged"][kind] for kind in ("noise", "rows", "shift")]
    assert found["damaged"]["mean"] == pytest.approx(sum(kinds) / 3)
    assert set(found["adapted"]["1"]) == {"head", "circuit", "all"}
    assert ("use" in found) == (way != "perceiver")


def test_the_three_networks_are_what_they_are_called(small):
    task = tasks.only(tasks.digits(), study.OLD)
    circuit, dense, perceiver = (study.network(way, task, 16) for way in ("circuit", "dense", "perceiver"))
    assert isinstance(circuit, NeuralAttentiveCircuit)
    assert isinstance(perceiver, PerceiverIO)
    assert circuit.circuit.signatures.requires_grad
    assert not dense.circuit.signatures.requires_grad
    assert circuit.link == dense.link == LinkConfig(bandwidth=1.0)


def test_the_arms_differ_in_their_network_and_their_dropout(monkeypatch):
    given = {}
    monkeypatch.setattr(study, "digits", lambda seed, way, *, dropout: {"way": way, "dropout": dropout, "seed": seed})
    for name in ("circuit", "whole", "dense", "perceiver"):
        given[name] = getattr(study, name)(5)
    assert {name: (made["way"], made["dropout"]) for name, made in given.items()} == {
        "circuit": ("circuit", 0.8),
        "whole": ("circuit", 0.0),
        "dense": ("dense", 0.8),
        "perceiver": ("perceiver", 0.8),
    }


@pytest.mark.parametrize("kind", ["clouds", "letters", "symbols"])
def test_both_networks_learn_every_kind_of_data(small, kind, monkeypatch):
    made = tasks.clouds, tasks.sequences
    monkeypatch.setattr(study.tasks, "clouds", lambda seed: made[0](seed, train=80))
    monkeypatch.setattr(study.tasks, "sequences", lambda name, seed: made[1](name, seed, train=80))
    found = getattr(study, kind)(0)
    assert set(found) == {"circuit", "perceiver", "chance"}
    assert all(0 <= value <= 1 for value in found.values())


def test_questions_tell_what_the_use_of_modules_says_about_every_factor(small):
    found = study.questions(0)
    assert set(found["use"]) == {"sentence", "left", "right"}
    assert all(0 < told["p"] <= 1 for told in found["use"].values())


def test_a_few_samples_of_each_class_are_drawn():
    labels = torch.arange(40) % 4
    rows = study.few(labels, 3, randomness.generator(0, 0, "shots"))
    assert labels[rows].bincount().tolist() == [3, 3, 3, 3]
    assert len(rows.unique()) == 12
    assert not torch.equal(rows, study.few(labels, 3, randomness.generator(0, 1, "shots")))


def test_the_fingerprint_has_a_loss_for_every_size(small):
    found = study.fingerprint()
    assert len(found["losses"]) == 3
    assert found == study.fingerprint()
