# SPDX-License-Identifier: Apache-2.0
"""What each rank of ``local_sgd_link.py`` does: times all-reduces, steps and races, for rank 0 to write down as JSON."""

import math
import statistics
import time
from collections.abc import Callable

import torch
from links import limit, sent_bytes
from side_by_side import side_by_side
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
from torch.distributed.optim import PostLocalSGDOptimizer

from recipes_lib.config import SyncConfig
from recipes_lib.distributed import collectives, slowmo
from recipes_lib.distributed.sync import ring_bytes

SIZES = (2**10, 2**16, 2**20, 2**24)
WEIGHTS = 4 * 4_349_962  # bytes of the network whose steps are timed
NOTHING = "nothing averaged"
BATCH = 64  # digits a step of a race, over all ranks
MOST_STEPS = 400
ARMS = {
    "ddp": (SyncConfig(), 0.2),
    "local_sgd, 4": (SyncConfig(name="local_sgd", period=4), 0.1),
    "local_sgd, 16": (SyncConfig(name="local_sgd", period=16), 0.1),
    "slowmo, 16": (SyncConfig(name="slowmo", period=16, momentum=0.5), 0.1),
}
"""Who races to the target accuracy, and the learning rate that ``--tune`` found best."""
GRID = (0.0125, 0.025, 0.05, 0.1, 0.2, 0.4)
Step = Callable[[int], None]


class Rival:
    """Some steps of a training at a call, whole periods; notes the bytes a step that it counts and that the kernel saw."""

    def __init__(self, step: Step, counter: Callable[[], float], *, period: float, block: int) -> None:
        self.step, self.counter, self.period, self.block = step, counter, period, block
        self.done, self.wire, self.counted = 0, [], math.nan

    def __call__(self) -> None:
        """Takes the steps; returns when every rank has."""
        wire, counted = sent_bytes(), self.counter()
        for step in range(self.done, self.done + self.block):
            self.step(step)
        collectives.barrier()
        self.done += self.block
        self.counted = (self.counter() - counted) / self.block
        self.wire.append((sent_bytes() - wire) / self.block)


def rivals(*, few: bool) -> dict[str, Rival]:
    """The strategies, torch's averager as their peer, and a training that averages nothing; ``few``: the main ones.

    Each has taken one block of steps.
    """
    found = {"ddp": Rival(*ours(SyncConfig()), period=1, block=3)}
    for period in (4, 16) if few else (4, 16, 48):
        sync = SyncConfig(name="local_sgd", period=period)
        found[f"local_sgd, {period}"] = Rival(*ours(sync), period=period, block=period)
    if not few:
        # the first block of post_local_sgd is synchronous; what is timed comes after
        for sync in (
            SyncConfig(name="slowmo", period=16),
            SyncConfig(name="post_local_sgd", period=16, start=16),
        ):
            found[f"{sync.name}, 16"] = Rival(*ours(sync), period=16, block=16)
        found["torch's averager, 16"] = Rival(*peer(16), period=16, block=16)
    found[NOTHING] = Rival(*ours(SyncConfig(name="local_sgd", period=10**9)), period=math.inf, block=8)
    for rival in found.values():
        rival()
    return found


def ours(sync: SyncConfig) -> tuple[Step, Callable[[], float]]:
    """A step under one of the library's strategies, and its count of bytes."""
    net, optimizer, loss = _parts()
    strategy = slowmo.build(sync)
    model = strategy.wrap(net, optimizer)

    def step(number: int) -> None:
        optimizer.zero_grad()
        with strategy.hold(number, last=True):
            loss(model).backward()
        optimizer.step()
        strategy.after_step(number)

    return step, lambda: strategy.traffic.bytes_sent


def peer(period: int) -> tuple[Step, Callable[[], float]]:
    """The same with torch's own averager, whose first round ends one step after ``warmup_steps``."""
    net, inner, loss = _parts()
    optimizer = PostLocalSGDOptimizer(inner, PeriodicModelAverager(period=period, warmup_steps=period - 1))
    done = 0

    def step(number: int) -> None:
        nonlocal done
        optimizer.zero_grad()
        loss(net).backward()
        optimizer.step()
        done = number + 1

    return step, lambda: done // period * ring_bytes(WEIGHTS, collectives.world_size())


def _parts() -> tuple[nn.Module, torch.optim.Optimizer, Callable[[nn.Module], Tensor]]:
    net = network(2048, seed=0)
    g = torch.Generator().manual_seed(collectives.rank())
    x, y = torch.randn(16, 64, generator=g), torch.randint(10, (16,), generator=g)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9)
    return net, optimizer, lambda model: nn.functional.cross_entropy(model(x), y)


def network(width: int, seed: int) -> nn.Sequential:
    """A perceptron with two hidden layers, the same on every rank: 4,349,962 weights at width 2,048, 301,066 at 512."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))


def measure(trainings: dict[str, Rival], megabits: float, rounds: int) -> dict:
    """Median times, and bytes a step, of all-reduces and steps on links of one rate."""
    collectives.barrier()
    limit(megabits)
    collectives.barrier()
    flat = {str(size): torch.zeros(size // 4) for size in SIZES}
    calls = {name: lambda values=values: collectives.average_in_place([values]) for name, values in flat.items()}
    reductions = side_by_side(calls, rounds=rounds + 2, reference=str(SIZES[0]))
    for rival in trainings.values():
        rival.wire.clear()
    timings = side_by_side(trainings, rounds=rounds, reference="ddp", warm_up=0)
    limit(0)
    wires = collectives.gather_objects({name: statistics.median(rival.wire) for name, rival in trainings.items()})
    return {
        "sent": [ring_bytes(size, collectives.world_size()) for size in SIZES],
        "reduce": [reductions[str(size)].seconds for size in SIZES],
        "exchanged": ring_bytes(WEIGHTS, collectives.world_size()),
        "rivals": {
            name: {
                "seconds": timings[name].seconds / rival.block,
                "period": rival.period,
                "bytes": rival.counted,
                "wire": statistics.mean(own[name] for own in wires),
            }
            for name, rival in trainings.items()
        },
    }


def race(sync: SyncConfig, lr: float, seed: int, *, target: float, validation: bool = False) -> tuple[float, float]:
    """Seconds and steps of training until digits are classified at ``target``, looked at wherever the ranks meet.

    Both are infinite where ``MOST_STEPS`` do not suffice. Scoring is not timed.
    """
    x, y, scored_x, scored_y = digits(validation=validation)
    rank, size = collectives.rank(), collectives.world_size()
    x, y = x[rank::size], y[rank::size]  # each rank draws from images of its own
    draw = torch.Generator().manual_seed(1000 * seed + rank)
    net, strategy = network(512, seed), slowmo.build(sync)
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    model, seconds = strategy.wrap(net, optimizer), 0.0
    collectives.barrier()
    start = time.perf_counter()
    for step in range(MOST_STEPS):
        chosen = torch.randint(len(x), (BATCH // size,), generator=draw)
        optimizer.zero_grad()
        with strategy.hold(step, last=True):
            nn.functional.cross_entropy(model(x[chosen]), y[chosen]).backward()
        optimizer.step()
        strategy.after_step(step)
        if not strategy.meets(step):
            continue
        seconds += time.perf_counter() - start
        if collectives.from_main(lambda: _accuracy(net, scored_x, scored_y)) >= target:
            return seconds, step + 1
        collectives.barrier()
        start = time.perf_counter()
    return math.inf, math.inf


def digits(*, validation: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Train images and labels, then those to score: 1,297 and 500; for validation 997 and 300 of the first."""
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    x, y = torch.as_tensor(images, dtype=torch.float32)[order] / 16, torch.as_tensor(labels)[order]
    train, scored = (slice(0, 997), slice(997, 1297)) if validation else (slice(0, 1297), slice(1297, None))
    return x[train], y[train], x[scored], y[scored]


@torch.no_grad()
def _accuracy(net: nn.Module, x: Tensor, y: Tensor) -> float:
    return (net(x).argmax(1) == y).float().mean().item()
