# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recipes_lib.models.nac.network import NeuralAttentiveCircuit, Shape
from recipes_lib.models.nac.tokens import ImageTokens
from recipes_lib.models.perceiver import PerceiverIO, Sizes
from recipes_lib.recipes.nac.adaptation import adapt, moving


def circuit() -> NeuralAttentiveCircuit:
    torch.manual_seed(0)
    return NeuralAttentiveCircuit(Shape(6, 1, 12, 4, 2, 2, 5, 10), ImageTokens(8, 4, 6, stem="patch"))


def perceiver() -> PerceiverIO:
    torch.manual_seed(0)
    return PerceiverIO(Sizes(6, 1, 12, 2, 2, 5, 10), ImageTokens(8, 4, 6, stem="patch"))


def few() -> tuple[Tensor, Tensor]:
    """Nine images that are shades of three pictures."""
    generator = torch.Generator().manual_seed(0)
    pictures, labels = torch.randn(3, 3, 8, 8, generator=generator), torch.arange(9) % 3
    return pictures[labels] + 0.3 * torch.randn(9, 3, 8, 8, generator=generator), labels


def changed(network: nn.Module, model: nn.Module) -> set[str]:
    pairs = zip(network.named_parameters(), model[0].parameters(), strict=True)
    return {name for (name, before), after in pairs if not torch.equal(before, after)}


@pytest.mark.parametrize(
    ("make", "moves", "moved"),
    [
        (circuit, "head", set()),
        (circuit, "circuit", {"circuit.codes", "circuit.signatures"}),
        (perceiver, "head", set()),
        (perceiver, "circuit", {"latents", "queries"}),
    ],
)
def test_only_the_part_that_may_move_does(make, moves, moved):
    network, (images, labels) = make(), few()
    model = adapt(network, images, labels, classes=3, moves=moves, lr=0.01, steps=3)
    assert changed(network, model) == moved
    assert model[1].weight.abs().sum() > 0
    assert network.training


@pytest.mark.parametrize("make", [circuit, perceiver])
def test_all_parameters_may_move(make):
    network, (images, labels) = make(), few()
    model = adapt(network, images, labels, classes=3, moves="all", lr=0.01, steps=3)
    assert changed(network, model) == {name for name, _ in network.named_parameters()}
    assert len(moving(network, "all")) == len(list(network.parameters()))


def test_labels_are_learned_the_same_way_each_time_and_views_distort_each_step():
    images, labels = few()
    models = [adapt(circuit(), images, labels, classes=3, moves="all", lr=0.01, steps=15) for _ in range(2)]
    assert F.cross_entropy(models[0](images), labels) < math.log(3) - 0.1
    assert torch.equal(models[0](images), models[1](images))
    steps = []
    adapt(
        circuit(),
        images,
        labels,
        classes=3,
        moves="head",
        lr=0.1,
        steps=3,
        views=lambda x, step: steps.append(step) or x,
    )
    assert steps == [0, 1, 2]


def test_the_head_begins_at_0():
    model = adapt(circuit(), *few(), classes=4, moves="all", lr=0.1, steps=0)
    assert model(few()[0]).abs().max() == 0


def test_labels_out_of_range_are_refused():
    images, labels = few()
    with pytest.raises(ValueError, match="9 labels from 0 to 2 for 9 inputs of 2 classes: every input needs a label"):
        adapt(circuit(), images, labels, classes=2, moves="head", lr=0.1)
    with pytest.raises(ValueError, match="moves = 'codes' is none of head, circuit, all"):
        adapt(circuit(), images, labels, classes=3, moves="codes", lr=0.1)
