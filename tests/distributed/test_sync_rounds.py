# SPDX-License-Identifier: Apache-2.0
"""Rounds: what happens to the momentum where one ends, going on from the middle of one, and who is alike when."""

import copy
import re

import pytest
import torch
from torch import Tensor, nn

from recipes_lib.distributed import DDP, LocalSGD, SlowMo, collectives
from recipes_lib.distributed.local import run_ranks
from recipes_lib.distributed.sync import Strategy
from recipes_lib.errors import RunError

pytestmark = pytest.mark.distributed

CURVATURE, GOAL = (1.0, 3.0), (1.0, -1.0)
"""Of each rank's parabola in the worked example."""


def parabolas(sync: Strategy) -> list[float]:
    rank = collectives.rank()
    holder = nn.ParameterList([nn.Parameter(torch.zeros((), dtype=torch.float64))])
    optimizer = torch.optim.SGD(holder.parameters(), lr=0.1, momentum=0.9)
    sync.wrap(holder, optimizer)
    path = []
    for step in range(4):
        optimizer.zero_grad()
        _parabola(holder[0], rank).backward()
        optimizer.step()
        sync.after_step(step)
        path.append(holder[0].item())
    return path


def _parabola(x: Tensor, rank: int) -> Tensor:
    return CURVATURE[rank] * (x - GOAL[rank]) ** 2 / 2


def net_of(seed: int) -> nn.Module:
    g = torch.Generator().manual_seed(seed)
    net = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 2))
    for p in net.parameters():
        p.data = torch.randn(p.shape, generator=g)
    return net


def momentum(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)


def batch(step: int, rank: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(10 * step + rank)
    return torch.randn(8, 4, generator=g), torch.randn(8, 2, generator=g)


def resumed(make: type, **how) -> dict:
    """Five steps, then a new strategy, model and optimiser that go on from their states for four more."""
    rank, net = collectives.rank(), net_of(0)
    first, optimizer = make(**how), momentum(net)
    first.wrap(net, optimizer)
    _go(first, net, optimizer, range(5), rank)
    again = net_of(3)
    second, other = make(**how), momentum(again)
    second.wrap(again, other)
    again.load_state_dict(net.state_dict())
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    second.load_state_dict(first.state_dict())
    _go(first, net, optimizer, range(5, 9), rank)
    _go(second, again, other, range(5, 9), rank)
    return {"whole": net.state_dict(), "resumed": again.state_dict()}


def _go(sync: Strategy, net: nn.Module, optimizer: torch.optim.Optimizer, steps: range, rank: int) -> None:
    for step in steps:
        x, y = batch(step, rank)
        optimizer.zero_grad()
        with sync.hold(step, last=True):
            (net(x) - y).square().mean().backward()
        optimizer.step()
        sync.after_step(step)


def refused() -> str:
    net = nn.Linear(4, 3 + collectives.rank())
    try:
        LocalSGD(2).wrap(net, torch.optim.SGD(net.parameters(), lr=0.1))
    except RunError as error:
        return str(error)
    return ""


def everything() -> dict:
    out: dict = {f"parabolas {b}": parabolas(LocalSGD(2, buffers=b)) for b in ("maintain", "reset", "average")}
    return out | {
        "resumed local": resumed(LocalSGD, period=3),
        "resumed slowmo": resumed(SlowMo, period=3, momentum=0.5),
        "refused": refused(),
    }


@pytest.fixture(scope="module")
def ranks() -> list[dict]:
    return run_ranks(everything, 2)


@pytest.mark.parametrize(
    ("buffers", "after"), [("maintain", (-0.25, -0.5673)), ("reset", (-0.25, -0.3675)), ("average", (-0.25, -0.597))]
)
def test_the_cards_parabolas_with_each_policy_for_the_momentum(ranks, buffers, after):
    for rank in ranks:
        path = rank[f"parabolas {buffers}"]
        assert (path[1], path[3]) == pytest.approx(after, abs=5e-5)


@pytest.mark.parametrize("name", ["resumed local", "resumed slowmo"])
def test_a_round_goes_on_from_its_middle_bit_for_bit(ranks, name):
    for rank in ranks:
        whole, again = rank[name]["whole"], rank[name]["resumed"]
        assert [key for key in whole if not torch.equal(whole[key], again[key])] == []


def test_models_that_differ_between_ranks_are_refused_by_name_and_rank(ranks):
    wanted = r"rank 1 has weight \(4, 4\) torch.float32 where rank 0 has weight \(3, 4\) torch.float32"
    assert all(re.search(wanted, rank["refused"]) for rank in ranks)


def test_where_ranks_are_alike():
    def alike(sync: Strategy) -> list[bool]:
        return [sync.alike(step) for step in range(6)]

    assert alike(DDP()) == [True] * 6
    assert alike(LocalSGD(2)) == [True] * 6  # one process


def test_ranks_are_alike_at_the_end_of_a_round_unless_each_keeps_its_momentum(monkeypatch):
    monkeypatch.setattr(collectives, "world_size", lambda: 2)
    found = {b: [LocalSGD(2, start=1, buffers=b).alike(step) for step in range(5)] for b in ("maintain", "reset")}
    assert found == {"maintain": [True] + [False] * 4, "reset": [True, False, True, False, True]}
