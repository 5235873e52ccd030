# SPDX-License-Identifier: Apache-2.0
"""Two gloo processes take every strategy's steps once; the tests look at what they returned."""

import pytest
import torch
from torch import Tensor, nn

from recipes_lib.distributed import DDP, LocalSGD, SlowMo, collectives
from recipes_lib.distributed.local import run_ranks
from recipes_lib.distributed.sync import Strategy, ring_bytes

pytestmark = pytest.mark.distributed


class Net(nn.Module):
    """A layer with batch norm, one that another rule than the optimiser moves, and a buffer that is no statistic."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        self.inner, self.norm, self.out = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 2)
        self.teacher = nn.Linear(6, 2).requires_grad_(False)
        self.register_buffer("table", torch.randn(3, generator=g))
        for p in self.parameters():
            p.data = torch.randn(p.shape, generator=g) * 0.3
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(self.inner(x)).tanh())


def batch(step: int, rank: int, micro: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(100 * step + 10 * micro + rank)
    return torch.randn(8, 4, generator=g, dtype=torch.float64), torch.randn(8, 2, generator=g, dtype=torch.float64)


def sgd(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD([{"params": [*net.inner.parameters(), *net.norm.parameters()], "lr": 0.1},
                            {"params": net.out.parameters(), "lr": 0.05}], momentum=0.9)  # fmt: skip


def adamw(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=0.02)


def train(sync: Strategy, steps: int, *, make=sgd, seed: int = 0, finish: bool = False, accumulate: int = 1) -> dict:
    """Weights after each step, and what it cost."""
    rank = collectives.rank()
    net = Net(seed + 7 * rank)  # different on each rank: wrap must make them rank 0's
    optimizer = make(net)
    model = sync.wrap(net, optimizer)
    seen = []
    for step in range(steps):
        optimizer.zero_grad()
        for micro in range(accumulate):
            x, y = batch(step, rank, micro)
            with sync.hold(step, last=micro + 1 == accumulate):
                ((model(x) - y).square().mean() / accumulate).backward()
        optimizer.step()
        sync.after_step(step)
        if finish and step + 1 == steps:
            sync.finish(step)
        with torch.no_grad():
            net.teacher.weight.lerp_(net.out.weight, 0.3)
        seen.append({key: value.clone() for key, value in net.state_dict().items()})
    return {"seen": seen, "bytes": sync.traffic.bytes_sent, "rounds": sync.traffic.rounds}


def everything() -> dict:
    return {
        "ddp": train(DDP(), 9),
        "ddp accumulated": train(DDP(), 3, accumulate=2),
        "period 1": train(LocalSGD(1), 9),
        "local": train(LocalSGD(4), 9),
        "local, finished": train(LocalSGD(4), 9, finish=True),
        "local average": train(LocalSGD(4, buffers="average"), 8),
        "local adamw average": train(LocalSGD(4, buffers="average"), 8, make=adamw),
        "local adamw reset": train(LocalSGD(4, buffers="reset"), 8, make=adamw),
        "post": train(LocalSGD(2, start=3), 9),
        "post accumulated": train(LocalSGD(2, start=3), 3, accumulate=2),
        "slowmo plain": train(SlowMo(4, momentum=0.0), 9),
        "slowmo": train(SlowMo(4, momentum=0.6, lr=0.8), 9, finish=True),
        "slowmo over ddp": train(SlowMo(3, momentum=0.6, start=99), 9),
    }


@pytest.fixture(scope="module")
def ranks() -> list[dict]:
    return run_ranks(everything, 2)


def states(ranks: list[dict], name: str) -> list[list[dict]]:
    return [rank[name]["seen"] for rank in ranks]


def same(a: dict, b: dict, **close) -> bool:
    return all(torch.allclose(a[key], b[key], **close) if close else torch.equal(a[key], b[key]) for key in a)


def trained(state: dict) -> dict:
    return {
        key: value for key, value in state.items() if key.startswith(("inner.", "out.", "norm.weight", "norm.bias"))
    }


def test_every_rank_starts_from_rank_0(ranks):
    first, second = states(ranks, "period 1")
    assert torch.equal(first[0]["table"], second[0]["table"])
    assert torch.equal(first[0]["inner.weight"], second[0]["inner.weight"])


def test_ranks_agree_bitwise_where_a_round_ends_and_nowhere_between(ranks):
    for name in ("local", "local average", "local adamw reset", "slowmo"):
        for step, (a, b) in enumerate(zip(*states(ranks, name), strict=True)):
            level = step % 4 == 3 or (name == "slowmo" and step == 8)
            assert same(a, b) == level, (name, step)


def test_a_forced_last_averaging_levels_what_a_shorter_round_left(ranks):
    open_end, closed = states(ranks, "local"), states(ranks, "local, finished")
    assert not same(open_end[0][8], open_end[1][8])
    assert same(closed[0][8], closed[1][8])
    mean = (open_end[0][8]["inner.weight"] + open_end[1][8]["inner.weight"]) / 2
    assert torch.allclose(closed[0][8]["inner.weight"], mean)


def test_period_1_takes_the_steps_of_ddp(ranks):
    for ours, theirs in zip(states(ranks, "period 1")[0], states(ranks, "ddp")[0], strict=True):
        assert same(trained(ours), trained(theirs), atol=1e-12)


def test_statistics_are_averaged_and_their_count_is_not(ranks):
    a, b = (state[2] for state in states(ranks, "local"))
    assert not torch.allclose(a["norm.running_mean"], b["norm.running_mean"])
    a, b = (state[3] for state in states(ranks, "local"))
    assert torch.equal(a["norm.running_mean"], b["norm.running_mean"])
    assert a["norm.num_batches_tracked"] == 4


def test_synchronous_steps_before_the_start_are_ddps_bit_for_bit(ranks):
    for rank, ddp in zip(states(ranks, "post"), states(ranks, "ddp"), strict=True):
        assert all(same(trained(ours), trained(theirs)) for ours, theirs in zip(rank[:3], ddp[:3], strict=True))
    a, b = states(ranks, "post")
    assert [same(trained(x), trained(y)) for x, y in zip(a, b, strict=True)] == [True] * 3 + [False, True] * 3
    accumulated = [states(ranks, name)[0][2] for name in ("post accumulated", "ddp accumulated")]
    assert same(*map(trained, accumulated))


def test_slow_momentum_0_is_plain_averaging(ranks):
    for ours, theirs in zip(states(ranks, "slowmo plain")[1], states(ranks, "local")[1], strict=True):
        assert same(ours, theirs, atol=1e-12)


def by_hand(steps: int, ends: tuple[int, ...], *, momentum: float, lr: float, average_gradients: bool) -> list[dict]:
    """The paper's update of two workers, one parameter at a time, with each group's own learning rate."""
    nets = [Net(0), Net(0)]
    optimizers = [sgd(net) for net in nets]
    names = list(trained(nets[0].state_dict()))
    parameters = [dict(net.named_parameters()) for net in nets]
    anchor = {name: parameters[0][name].detach().clone() for name in names}
    slow, path = dict.fromkeys(names, 0.0), []
    for step in range(steps):
        for rank, (net, optimizer) in enumerate(zip(nets, optimizers, strict=True)):
            x, y = batch(step, rank)
            optimizer.zero_grad()
            (net(x) - y).square().mean().backward()
        if average_gradients:
            for name in names:
                mean = sum(worker[name].grad for worker in parameters) / 2
                for worker in parameters:
                    worker[name].grad = mean.clone()
        for optimizer in optimizers:
            optimizer.step()
        if step in ends:
            for name in names:
                gamma = 0.05 if name.startswith("out.") else 0.1
                mean = sum(worker[name].detach() for worker in parameters) / 2
                slow[name] = momentum * slow[name] + (anchor[name] - mean) / gamma
                anchor[name] = anchor[name] - lr * gamma * slow[name]
                for worker in parameters:
                    worker[name].data.copy_(anchor[name])
        path.append({name: parameters[0][name].detach().clone() for name in names})
    return path


@pytest.mark.parametrize(
    ("name", "ends", "how"),
    [
        ("slowmo", (3, 7, 8), {"momentum": 0.6, "lr": 0.8, "average_gradients": False}),
        ("slowmo over ddp", (2, 5, 8), {"momentum": 0.6, "lr": 1.0, "average_gradients": True}),
    ],
)
def test_slowmo_is_the_papers_update(ranks, name, ends, how):
    for ours, theirs in zip(states(ranks, name)[0], by_hand(9, ends, **how), strict=True):
        assert same(theirs, ours, atol=1e-12)


def test_what_the_optimiser_does_not_move_is_averaged_plainly(ranks):
    before, after = ([rank[step]["teacher.bias"] for rank in states(ranks, "slowmo")] for step in (2, 3))
    assert torch.equal(after[0], (before[0] + before[1]) / 2)


def test_bytes_are_those_of_the_ring(ranks):
    net = Net(0)
    gradients = 8 * sum(p.numel() for p in net.parameters() if p.requires_grad)
    weights = 8 * sum(p.numel() for p in net.parameters()) + 8 * 12  # and two running statistics
    cost = {name: (found["bytes"], found["rounds"]) for name, found in ranks[1].items() }  # fmt: skip
    assert cost["ddp"] == (9 * gradients, 9)
    assert cost["ddp accumulated"] == (3 * gradients, 3)
    assert cost["local"] == cost["slowmo plain"] == (2 * weights, 2)
    assert cost["local, finished"] == cost["slowmo"] == (3 * weights, 3)
    assert cost["local average"] == (2 * (weights + gradients), 2)
    assert cost["local adamw average"] == (2 * (weights + 2 * gradients), 2)
    assert cost["post"] == (3 * gradients + 3 * weights, 6)
    assert cost["slowmo over ddp"] == cost["ddp"]
    assert ring_bytes(12.0, workers=4) == 18.0


@pytest.mark.parametrize(("period", "per_step"), [(1, 17399848), (4, 4349962), (16, 1087490.5)])
def test_the_cards_bytes_a_step(period, per_step):
    assert ring_bytes(4 * 4349962, workers=2) / period == per_step


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LocalSGD(0), "period = 0 is not allowed: use a whole number of at least 1"),
        (lambda: LocalSGD(2.5), "period = 2.5"),
        (lambda: LocalSGD(2, start=-1), "start = -1"),
        (lambda: LocalSGD(2, buffers="drop"), "buffers = 'drop' .* maintain, reset or average"),
        (lambda: SlowMo(2, momentum=1.0), r"momentum = 1.0 is not allowed: use a value in \[0, 1\)"),
        (lambda: SlowMo(2, momentum=0.5, lr=0.0), "lr = 0.0 is not allowed: use a value above 0"),
    ],
)
def test_a_value_out_of_range_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
