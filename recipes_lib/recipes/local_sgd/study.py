# SPDX-License-Identifier: Apache-2.0
"""Measures accuracy and bytes by period, length, number of workers and strategy, each tuned with the same budget.

Every arm tries ten settings with two runs each, and takes the best one on held-out scans. Plain arms try ten learning
rates; SlowMo tries five of them with each of two slow momenta. Four new runs with the chosen setting are then scored on
the test images, once. Runs are simulated (:mod:`recipes_lib.distributed.simulation`), many at a time. They can share
one optimiser because multiplying a loss by c has the same effect on SGD, with or without momentum and slow momentum, as
multiplying the learning rate by c.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap

from recipes_lib import randomness
from recipes_lib.config import SyncConfig
from recipes_lib.data import digits
from recipes_lib.data.load import load
from recipes_lib.distributed.simulation import Workers
from recipes_lib.optim.build import Schedule
from recipes_lib.pretraining import engine
from recipes_lib.pretraining.scoring import DATA_SEED
from recipes_lib.recipes.local_sgd import recipe as local_sgd
from recipes_lib.views.multicrop import eval_view

TOY = local_sgd.PRESETS["toy"]
PERIODS = (1, 4, 16, 48)
"""Numbers of steps between two averagings; 1 is synchronous SGD, up to rounding."""
RATES = tuple(0.05 * 1.6**place for place in range(-2, 8))
"""Learning rates of a plain arm, 0.02 to 1.3; SlowMo tries every second one, up to 0.84. An earlier range, 0.05 to
0.52, was too narrow: arms that reset their momentum sometimes chose its largest rate, and SlowMo its smallest."""
MOMENTA = (0.3, 0.6)
"""Slow momenta that SlowMo tries. In the pilot, each of them helped in some regime."""
TUNING, FINAL = 2, 4
"""Number of runs per setting in tuning, and number of runs with the chosen setting."""
WRONG = 0.3
"""Share of training labels that are random in the scene ``noisy``."""


@dataclass(frozen=True)
class Split:
    """Views of images, float32 [N, 3, 8, 8], and their classes, int64 [N]."""

    images: Tensor
    labels: Tensor

    def where(self, chosen: Tensor) -> "Split":
        """The images where ``chosen`` (bool [N]) is true."""
        return Split(self.images[chosen], self.labels[chosen])


@dataclass(frozen=True)
class Scene:
    """A data set: images to train on, to choose settings by (validation), and to score on (test)."""

    train: Split
    validation: Split
    test: Split


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to train; the learning rate and SlowMo's momentum are tuned."""

    path: str
    """Dotted place of its metrics in the report."""
    scene: str
    """Name of the data set, for :func:`scene`."""
    steps: int
    sync: SyncConfig
    workers: int = 4
    batch_size: int = 64
    """Images per step, summed over workers."""

    def settings(self) -> list[tuple[SyncConfig, tuple[float, ...]]]:
        """The ten settings that tuning tries: pairs of a strategy and its learning rates."""
        if self.sync.name != "slowmo":
            return [(self.sync, RATES)]
        return [(replace(self.sync, momentum=momentum), RATES[::2]) for momentum in MOMENTA]


def arms() -> Iterator[Arm]:
    """All arms of the study. The scene ``noisy`` is the setting of a pilot in which SlowMo gained most.

    The pilot had seeds 100 and 101, the validation split and six settings per arm. Accuracies of synchronous SGD, local
    SGD and the best SlowMo, by number of steps, period, and workers x images per worker:

    - 192 steps, period 16, 4 x 16: 0.926 0.900 0.901 (validation: new inks of the same scans)
    - 192 steps, period 48, 4 x 16: 0.926 0.891 0.889 (validation: new inks of the same scans)
    - 384 steps, period 48, 8 x 8: 0.925 0.875 0.877
    - 384 steps, period 12, 16 x 4: 0.925 0.875 0.883
    - 96 steps, period 12, 8 x 8: 0.863 0.775 0.786
    - 192 steps, period 16, 8 x 8, 30 % of the labels random: 0.879 0.785 0.797, which became ``noisy``
    """
    for steps in (48, 192):
        for period in PERIODS:
            yield Arm(path=f"drawn.{steps}.local.{period}", scene="drawn", steps=steps, sync=_local(period))
        for period in PERIODS[1:]:
            yield Arm(path=f"drawn.{steps}.slowmo.{period}", scene="drawn", steps=steps, sync=_slowmo(period))
    for period in PERIODS[1:3]:
        reset = replace(_local(period), buffers="reset")
        yield Arm(path=f"drawn.48.reset.{period}", scene="drawn", steps=48, sync=reset)
    for workers in (2, 8):
        path = f"drawn.192.workers_{workers}.16"
        yield Arm(path=path, scene="drawn", steps=192, workers=workers, sync=_local(16))
    late = SyncConfig(name="post_local_sgd", period=16, start=64)
    yield Arm(path="drawn.192.post_local.16", scene="drawn", steps=192, sync=late)
    for period in PERIODS:
        yield Arm(path=f"scans.192.local.{period}", scene="scans", steps=192, sync=_local(period))
    for name, sync in {"local.1": _local(1), "local.16": _local(16), "slowmo.16": _slowmo(16)}.items():
        yield Arm(path=f"noisy.192.{name}", scene="noisy", steps=192, workers=8, sync=sync)


def _local(period: int) -> SyncConfig:
    return SyncConfig(name="local_sgd", period=period)


def _slowmo(period: int) -> SyncConfig:
    return SyncConfig(name="slowmo", period=period)


@cache
def scene(name: str) -> Scene:
    """The data set ``name``: ``drawn``, the toy's digits in random inks; ``noisy``, the same with some random labels in
    training; ``scans``, the scans without inks.

    A fifth of the scans is held out for validation, with all images drawn from them.
    """
    if name == "scans":
        from sklearn.datasets import load_digits  # the import takes a second, which --help should not

        bunch = load_digits()
        order = randomness.permutation(0, 0, len(bunch.target))  # as in recipes_lib.data.digits
        grey = (torch.from_numpy(bunch.images)[order] * 255 / 16).round().to(torch.uint8)
        pictures = eval_view(grey[:, None].expand(-1, 3, -1, -1).contiguous(), 8, TOY.views.normalize)
        every = Split(pictures, torch.from_numpy(bunch.target).long()[order])
        held = torch.arange(len(order)) < digits.HELD_OUT_SCANS
        train, test, scans = every.where(~held), every.where(held), torch.arange(int((~held).sum()))
    else:
        found = load(TOY.data, DATA_SEED)
        train, test = (
            Split(eval_view(part.images, 8, TOY.views.normalize), part.labels) for part in (found.train, found.test)
        )
        scans = found.train.factors["scan"]
    chosen = scans % 5 == 0
    kept = train.where(~chosen)
    if name == "noisy":
        draw = randomness.generator(0, 0, "wrong labels")
        wrong = torch.rand(len(kept.labels), generator=draw) < WRONG
        others = torch.randint(10, kept.labels.shape, generator=draw)
        kept = Split(kept.images, torch.where(wrong, others, kept.labels))
    return Scene(kept, train.where(chosen), test)


class Runs(nn.Module):
    """Several classifiers, one per seed, as one model: [runs, batch, 3, 8, 8] -> logits [runs, batch, 10]."""

    def __init__(self, config: local_sgd.Config, seeds: Sequence[int]) -> None:
        super().__init__()
        configs = [replace(config, train=replace(config.train, seed=seed)) for seed in seeds]
        methods = [engine.build(local_sgd.RECIPE, each, config.train.steps) for each in configs]
        names = [name for name, _ in methods[0].named_parameters()]
        stacked = {name: torch.stack([method.get_parameter(name) for method in methods]) for name in names}
        self.names = names
        self.weights = nn.ParameterList([stacked[name].detach() for name in names])
        classify = _Logits(methods[0])
        self._one = lambda weights, x: functional_call(classify, weights, (x,))

    def forward(self, images: Tensor) -> Tensor:
        """The logits of every run on its own images: [runs, batch, 3, 8, 8] -> [runs, batch, 10]."""
        return vmap(self._one)(dict(zip(self.names, self.weights, strict=True)), images)


class _Logits(nn.Module):
    """A module whose ``forward`` gives a classifier's logits and whose weights have the classifier's names."""

    def __init__(self, method: local_sgd.LocalClassifier) -> None:
        super().__init__()
        self.backbone, self.head = method.backbone, method.head

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.backbone(images))


def train(arm: Arm, sync: SyncConfig, split: Split, trials: Sequence[tuple[float, int]]) -> tuple[Any, float]:
    """Trains one run per (learning rate, seed) of ``trials``, all at once, as the toy would with these values.

    Returns a function that computes the runs' accuracies on a split, float64 [runs], and the bytes that each worker
    sent in one run.
    """
    config = replace(TOY, train=replace(TOY.train, steps=arm.steps, batch_size=arm.batch_size))
    runs = Runs(config, [seed for _, seed in trials])
    rates = torch.tensor([rate for rate, _ in trials])
    per_epoch = len(split.labels) // arm.batch_size
    shape = Schedule(config=replace(TOY.optim, lr=1.0), steps=arm.steps, steps_per_epoch=per_epoch)

    def loss(logits: Tensor, labels: Tensor, rates: Tensor) -> Tensor:
        errors = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
        return (rates * errors.view(labels.shape).mean(dim=1)).sum()  # a sum: the runs have no weight in common

    @cache
    def orders(epoch: int) -> Tensor:  # [runs, images]
        return torch.stack([randomness.permutation(seed, epoch, len(split.labels)) for _, seed in trials])

    def batches() -> Iterator[tuple[Tensor, ...]]:
        for step in range(arm.steps):
            epoch, place = divmod(step, per_epoch)
            rows = orders(epoch)[:, place * arm.batch_size : (place + 1) * arm.batch_size]
            rows = rows.unflatten(1, (arm.workers, -1)).transpose(0, 1)  # [workers, runs, batch]
            yield split.images[rows], split.labels[rows], rates.expand(arm.workers, -1)

    def optimizer(weights: list[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.SGD(weights, lr=1.0, momentum=0.9, nesterov=True)

    group = Workers(runs, loss, workers=arm.workers, sync=sync, optimizer=optimizer)
    for step, batch in enumerate(batches()):
        group.step(batch, shape.at(step)["lr"])
    group.finish()
    mean = group.mean()

    @torch.no_grad()
    def accuracies(judged: Split) -> Tensor:
        logits = functional_call(runs, mean, (judged.images.expand(len(trials), *judged.images.shape),))
        return (logits.argmax(dim=-1) == judged.labels).double().mean(dim=1)

    return accuracies, group.traffic.bytes_sent / len(trials)


def tune(arm: Arm, seed: int) -> tuple[SyncConfig, float, float]:
    """The strategy and the learning rate with the best accuracy on the validation split, and this accuracy."""
    place, best = scene(arm.scene), None
    for sync, rates in arm.settings():
        trials = [(rate, 100 * seed + run) for rate in rates for run in range(TUNING)]
        found = train(arm, sync, place.train, trials)[0](place.validation).view(len(rates), TUNING).mean(dim=1)
        top = int(found.argmax())
        if best is None or found[top] > best[2]:
            best = (sync, rates[top], float(found[top]))
    return best


def measure(seed: int) -> dict[str, Any]:
    """All metrics of one seed: ``accuracy``, ``chosen`` and ``bytes`` by arm, and two metrics computed from them.

    ``gap``: accuracy of synchronous SGD minus that of local SGD, by steps and period. ``times_period``: bytes times
    period, by period.
    """
    torch.set_num_threads(1)
    report: dict[str, Any] = {"accuracy": {}, "chosen": {}, "bytes": {}}
    for arm in arms():
        sync, rate, reached = tune(arm, seed)
        trials = [(rate, 100 * seed + 50 + run) for run in range(FINAL)]  # seeds that tuning did not use
        place = scene(arm.scene)
        accuracies, sent = train(arm, sync, place.train, trials)
        chosen = {"lr": rate, "validation": reached} | ({"momentum": sync.momentum} if sync.name == "slowmo" else {})
        for part, value in (("accuracy", float(accuracies(place.test).mean())), ("chosen", chosen), ("bytes", sent)):
            _put(report[part], arm.path, value)
    drawn = report["accuracy"]["drawn"]
    report["gap"] = {
        steps: {p: drawn[steps]["local"]["1"] - a for p, a in drawn[steps]["local"].items()} for steps in drawn
    }
    sent = report["bytes"]["drawn"]["192"]["local"]
    report["times_period"] = {period: int(period) * count for period, count in sent.items()}
    return report


def _put(report: dict[str, Any], path: str, value: Any) -> None:
    *groups, name = path.split(".")
    for group in groups:
        report = report.setdefault(group, {})
    report[name] = value


def fingerprint() -> dict[str, Any]:
    """Accuracies after eight steps, which change if the numerics change.

    They are those of local SGD, SlowMo and local SGD with reset momentum at learning rate 0.1, and of local SGD at 0.2.
    """
    found = []
    for sync in (_local(4), replace(_slowmo(4), momentum=MOMENTA[0]), replace(_local(4), buffers="reset")):
        arm = Arm(path="", scene="drawn", steps=8, sync=sync)
        found.append(train(arm, sync, scene("drawn").train, [(0.1, 0), (0.2, 1)])[0](scene("drawn").validation))
    return {"accuracies": [float(pair[0]) for pair in found], "accuracy_at_twice_the_rate": float(found[0][1])}
