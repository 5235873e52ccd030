# SPDX-License-Identifier: Apache-2.0
"""What the chapter on circuits measures, seed by seed.

Digits: a network learns the digits 0 to 5, with module dropout or without. Then modules are left out, test images are
damaged, and the network learns the digits 6 to 9 from a few images of each. Modules are ranked on validation images.
The networks are a circuit, the same network without codes and links ("dense"), and a Perceiver IO with as many
parameters. All see the same images, and have the same steps and rates.

Other kinds of data: a circuit and a Perceiver IO learn point clouds, letters and expressions. A circuit that a sentence
generates answers questions about two digits.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from recipes_lib import randomness
from recipes_lib.models.nac import network as nac
from recipes_lib.models.nac.network import LinkConfig, NeuralAttentiveCircuit, Shape
from recipes_lib.models.perceiver import matched, operations
from recipes_lib.recipes.nac import adaptation, answering, controls, fitting, pruning, specialisation, tasks
from recipes_lib.recipes.nac.answering import Answering
from recipes_lib.recipes.nac.fitting import Classifier, Settings
from recipes_lib.recipes.nac.tasks import Part, Task

SHAPE = Shape(modules=32, outputs=1, width=32, signature_dim=8, depth=2, heads=2, head_width=16, hidden=32)
"""The circuit of all measurements, about 53,000 parameters."""
LINKS = LinkConfig(bandwidth=1.0)
DROPOUT = 0.8
"""Share of the steps with module dropout, in the arms that have it."""
STEPS = 2500
OLD, NEW = range(6), range(6, 10)
"""The digits that networks are trained on, and those that they learn from a few images."""
SIZES = (16, 8, 4)
"""Numbers of modules that pruned networks keep: a half, a quarter and an eighth."""
RANDOM_RANKINGS = 10
SHOTS = (1, 5, 10)
"""Numbers of images of each new digit."""
DRAWS = 5
"""Number of random choices of those images, over which accuracies are averaged."""
RATES = {"head": 0.01, "circuit": 0.03, "all": 0.001}
"""Adam's learning rate by what moves, the same for all networks; chosen in pilots with other seeds among three values each."""
Way = Literal["circuit", "dense", "perceiver"]


def circuit(seed: int) -> dict[str, Any]:
    """A circuit on digits, with module dropout."""
    return digits(seed, "circuit", dropout=DROPOUT)


def whole(seed: int) -> dict[str, Any]:
    """The same circuit without module dropout."""
    return digits(seed, "circuit", dropout=0.0)


def dense(seed: int) -> dict[str, Any]:
    """The same network without codes and links, with module dropout."""
    return digits(seed, "dense", dropout=DROPOUT)


def perceiver(seed: int) -> dict[str, Any]:
    """A Perceiver IO of equal size, with module dropout of its latents."""
    return digits(seed, "perceiver", dropout=DROPOUT)


def network(way: Way, task: Task, count: int) -> fitting.Network:
    """An untrained network for a task of ``count`` tokens a sample."""
    tokens = task.tokens(SHAPE.width)
    if way == "perceiver":
        return controls.perceiver(SHAPE, tokens, count)
    made = NeuralAttentiveCircuit(SHAPE, tokens, link=LINKS)
    return controls.densely(made) if way == "dense" else made


def trained(seed: int, way: Way, task: Task, *, dropout: float, steps: int = STEPS) -> Classifier:
    """A network that has learned a task of images."""
    settings = Settings(steps=steps, module_dropout=dropout)
    return fitting.fit(lambda: network(way, task, count=16), task, settings, seed=seed)


def digits(seed: int, way: Way, *, dropout: float) -> dict[str, Any]:
    """All numbers of one network on digits.

    ``accuracy``: on test images; ``pruned``: ranking -> kept modules -> accuracy, ``random`` as the mean of ten;
    ``lost``: kept modules -> accuracy lost by greedy elimination; ``operations`` and ``speed``: kept modules -> how
    many times fewer operations, how many times faster
    (``speed`` also has all modules: 1); ``damaged``: kind of damage (and ``mean``) -> accuracy;
    ``adapted``: shots -> what moves -> accuracy; ``use``: what the use of modules tells about the class (none of a
    Perceiver IO).
    """
    torch.set_num_threads(1)
    every = tasks.digits()
    task = tasks.only(every, OLD)
    model = trained(seed, way, task, dropout=dropout)
    found = {"accuracy": fitting.accuracy(model, task.test), **pruning_numbers(model, task, way, seed)}
    found |= {"damaged": damaged(model, task.test), "adapted": adapted(model, tasks.only(every, NEW), seed)}
    if way != "perceiver":
        with torch.no_grad():
            use = model.network.use(task.test.inputs)
        found["use"] = _information(use, task.test.labels, seed)
    return found


def pruning_numbers(model: Classifier, task: Task, way: Way, seed: int) -> dict[str, Any]:
    """``pruned``, ``lost``, ``operations`` and ``speed`` of :func:`digits`."""
    modules, whole = SHAPE.modules, fitting.accuracy(model, task.test)

    def validation(kept: Tensor) -> float:
        return fitting.loss(model, task.validation, kept)

    orders = {
        "greedy": pruning.by_elimination(modules, validation),
        "single": pruning.by_single_removal(modules, validation),
    }
    if way != "perceiver":
        orders["links"] = pruning.by_link_mass(model.network)
    generator = randomness.generator(seed, 0, "rankings")
    chance = [pruning.at_random(modules, generator) for _ in range(RANDOM_RANKINGS)]
    pruned = {name: _by_size(model, task.test, [order]) for name, order in orders.items()}
    pruned["random"] = _by_size(model, task.test, chance)
    with torch.no_grad():
        points = pruning.curve(
            model.network,
            orders["greedy"],
            (modules, *SIZES),
            lambda _: 0.0,
            task.test.inputs[:256],
            clock=time.process_time,  # a busy machine does not change it
        )
    return {
        "pruned": pruned,
        "lost": {size: whole - accuracy for size, accuracy in pruned["greedy"].items()},
        "operations": {str(size): counted(way, modules) / counted(way, size) for size in SIZES},
        "speed": {str(point.kept): points[0].seconds / point.seconds for point in points},
    }


def counted(way: Way, modules: int) -> int:
    """Operations per image of which ``modules`` (or latents) run, without those of the tokens."""
    size = {"tokens": 16, "token_width": SHAPE.width + 16}
    if way == "perceiver":
        return operations(matched(SHAPE, "parameters", **size), modules, **size)
    return nac.operations(SHAPE, modules, **size)


def _by_size(model: Classifier, part: Part, orders: Sequence[Tensor]) -> dict[str, float]:
    return {
        str(size): sum(fitting.accuracy(model, part, order[:size]) for order in orders) / len(orders) for size in SIZES
    }


def damaged(model: Classifier, part: Part) -> dict[str, float]:
    """Accuracy on images that are noisier than those of training, lack two rows, or are shifted; and the mean."""
    keys = randomness.sample_keys(0, 0, torch.arange(len(part.labels)))
    kinds = ("noise", "rows", "shift")
    found = {kind: fitting.accuracy(model, Part(tasks.corrupt(part.inputs, kind, keys), part.labels)) for kind in kinds}
    return {**found, "mean": sum(found.values()) / len(found)}


def adapted(model: Classifier, task: Task, seed: int) -> dict[str, dict[str, float]]:
    """Accuracy on new digits after :func:`adaptation.adapt`: shots -> what moves -> mean over draws of images."""
    return {
        str(shots): {moves: _adapted(model, task, seed, shots, moves, rate) for moves, rate in RATES.items()}
        for shots in SHOTS
    }


def _adapted(model: Classifier, task: Task, seed: int, shots: int, moves: adaptation.Moves, rate: float) -> float:
    right = 0.0
    for draw in range(DRAWS):
        rows = few(task.train.labels, shots, randomness.generator(seed, draw, "shots"))

        def views(inputs: Tensor, step: int, draw: int = draw) -> Tensor:
            return tasks.distort_scans(inputs, randomness.sample_keys(draw, step, torch.arange(len(inputs))))

        made = adaptation.adapt(
            model.network,
            task.train.inputs[rows],
            task.train.labels[rows],
            classes=task.classes,
            moves=moves,
            lr=rate,
            views=views,
        )
        right += float((made(task.test.inputs).argmax(dim=1) == task.test.labels).double().mean())
    return right / DRAWS


def few(labels: Tensor, shots: int, generator: torch.Generator) -> Tensor:
    """The rows of ``shots`` random samples of each class: int64 [classes * shots]."""
    rows = [(labels == label).nonzero()[:, 0] for label in range(int(labels.max()) + 1)]
    return torch.cat([each[torch.randperm(len(each), generator=generator)[:shots]] for each in rows])


def _information(use: Tensor, factor: Tensor, seed: int) -> dict[str, float]:
    found = specialisation.specialisation(use, factor, generator=randomness.generator(seed, 0, "permutations"))
    return {"bits": float(found.bits.max()), "chance": float(found.chance.max()), "p": found.p_value}


def clouds(seed: int) -> dict[str, Any]:
    """A circuit and a Perceiver IO on point clouds."""
    return _both(seed, tasks.clouds(seed), steps=1500)


def letters(seed: int) -> dict[str, Any]:
    """A circuit and a Perceiver IO on strings of bytes."""
    return _both(seed, tasks.sequences("letters", seed), steps=1500)


def symbols(seed: int) -> dict[str, Any]:
    """A circuit and a Perceiver IO on expressions of symbols."""
    return _both(seed, tasks.sequences("symbols", seed), steps=2500)


def _both(seed: int, task: Task, *, steps: int) -> dict[str, Any]:
    """Accuracies of a ``circuit`` and a ``perceiver``, and ``chance``: the share of the most frequent class."""
    torch.set_num_threads(1)
    count = task.train.inputs.shape[1]
    ways: tuple[Way, ...] = ("circuit", "perceiver")
    found = {
        way: fitting.accuracy(fitting.fit(_maker(way, task, count), task, Settings(steps=steps), seed=seed), task.test)
        for way in ways
    }
    return {**found, "chance": float(task.test.labels.bincount().max()) / len(task.test.labels)}


def _maker(way: Way, task: Task, count: int) -> Callable[[], fitting.Network]:
    return lambda: network(way, task, count)


def questions(seed: int) -> dict[str, Any]:
    """A circuit that sentences generate: accuracy, and what the use of its modules tells about each true factor."""
    torch.set_num_threads(1)
    task, drawn = answering.task(seed)
    width = SHAPE.width

    def make() -> Answering:
        made = NeuralAttentiveCircuit(SHAPE, answering.pair_tokens(width), link=LINKS, text_dim=width)
        return Answering(made, answering.text_encoder(width))

    model = fitting.fit(make, task, Settings(steps=STEPS), seed=seed)
    with torch.no_grad():
        use = model.network.use(task.test.inputs)
    told = {name: _information(use, factor, seed) for name, factor in drawn["test"].factors.items()}
    return {"accuracy": fitting.accuracy(model, task.test), "use": told}


def fingerprint() -> dict[str, Any]:
    """Losses of a circuit's first steps, with module dropout, and of a pruned one; they change if the numerics do."""
    task = tasks.only(tasks.digits(), OLD)
    model = trained(0, "circuit", task, dropout=1.0, steps=3)
    sizes = (*SIZES, SHAPE.modules)
    return {"losses": [fitting.loss(model, task.validation, torch.arange(size)) for size in sizes]}
