# SPDX-License-Identifier: Apache-2.0
"""Workers simulated in one process take the steps of as many gloo processes."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recipes_lib.config import SyncConfig
from recipes_lib.distributed import collectives, slowmo
from recipes_lib.distributed.local import run_ranks
from recipes_lib.distributed.simulation import Workers
from recipes_lib.errors import ConfigError

STEPS = 11
POLICIES = ("maintain", "reset", "average")
ARMS = {
    "ddp": SyncConfig(),
    **{f"local {b}": SyncConfig(name="local_sgd", period=4, buffers=b) for b in POLICIES},
    **{f"post {b}": SyncConfig(name="post_local_sgd", period=3, start=4, buffers=b) for b in POLICIES},
    **{f"slowmo {b}": SyncConfig(name="slowmo", period=4, momentum=0.6, lr=0.9, buffers=b) for b in POLICIES},
    "slowmo, late": SyncConfig(name="slowmo", period=3, start=5, momentum=0.5),
}


def net(dtype: torch.dtype) -> nn.Module:
    g = torch.Generator().manual_seed(5)
    model = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 3))
    for p in model.parameters():
        p.data = torch.randn(p.shape, generator=g) * 0.4
    return model.to(dtype)


def batch(step: int, rank: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(10 * step + rank)
    return torch.randn(8, 6, generator=g).to(dtype), torch.randint(3, (8,), generator=g)


def lr(step: int) -> float:
    return 0.05 * (1 + math.cos(math.pi * (step + 1) / STEPS)) / 2  # it ends in 0


def sgd(weights: list[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.SGD(weights, lr=0.1, momentum=0.9, nesterov=True)


def adamw(weights: list[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(weights, lr=0.1, weight_decay=0.05)


MAKE = {"sgd": sgd, "adamw": adamw}
RUNS = [(name, "sgd") for name in ARMS] + [
    (name, "adamw") for name in ("local reset", "post average", "slowmo maintain")
]


def really(name: str, make: str, dtype: torch.dtype) -> dict:
    sync, model = slowmo.build(ARMS[name]), net(dtype)
    optimizer = MAKE[make](list(model.parameters()))
    wrapped, path = sync.wrap(model, optimizer), []
    for step in range(STEPS):
        x, y = batch(step, collectives.rank(), dtype)
        optimizer.param_groups[0]["lr"] = lr(step)
        optimizer.zero_grad()
        with sync.hold(step, last=True):
            F.cross_entropy(wrapped(x), y).backward()
        optimizer.step()
        sync.after_step(step)
        path.append({key: p.detach().clone() for key, p in model.named_parameters()})
    sync.finish(STEPS - 1)
    path.append({key: p.detach().clone() for key, p in model.named_parameters()})
    return {"path": path, "bytes": sync.traffic.bytes_sent}


def everything() -> dict:
    made = {f"{name}/{make}": really(name, make, torch.float64) for name, make in RUNS}
    return made | {"float32": really("slowmo maintain", "sgd", torch.float32)}


@pytest.fixture(scope="module")
def ranks() -> list[dict]:
    return run_ranks(everything, 3)


def batches(workers: int, dtype: torch.dtype) -> list[tuple[Tensor, ...]]:
    return [
        tuple(torch.stack(parts) for parts in zip(*(batch(s, r, dtype) for r in range(workers)), strict=True))
        for s in range(STEPS)
    ]


def simulated(name: str, make: str, dtype: torch.dtype, workers: int = 3) -> tuple[list[dict], float]:
    group = Workers(net(dtype), F.cross_entropy, workers=workers, sync=ARMS[name], optimizer=MAKE[make])
    path = []
    for step, parts in enumerate(batches(workers, dtype)):
        group.step(parts, lr(step))
        path.append({key: value.clone() for key, value in group.weights.items()})
    group.finish()
    return [*path, group.weights], group.traffic.bytes_sent


def furthest(ranks: list[dict], key: str, path: list[dict]) -> float:
    """Largest difference of any weight of any rank after any step."""
    return max(
        (state[name][rank] - theirs[name]).abs().max().item()
        for rank, real in enumerate(ranks)
        for state, theirs in zip(path, real[key]["path"], strict=True)
        for name in theirs
    )


@pytest.mark.distributed
@pytest.mark.parametrize(("name", "make"), RUNS)
def test_simulated_workers_follow_three_gloo_processes(ranks, name, make):
    path, sent = simulated(name, make, torch.float64)
    assert furthest(ranks, f"{name}/{make}", path) <= 1e-12
    assert sent == ranks[0][f"{name}/{make}"]["bytes"]


@pytest.mark.distributed
def test_in_float32_they_stay_within_rounding(ranks):
    path, _ = simulated("slowmo maintain", "sgd", torch.float32)
    assert furthest(ranks, "float32", path) <= 1e-6


def test_other_periods_and_policies_are_told_apart():
    ends = {name: simulated(name, "sgd", torch.float64)[0][-1]["0.weight"] for name in ARMS}
    names = list(ARMS)
    for i, one in enumerate(names):
        assert all((ends[one] - ends[other]).abs().max() > 1e-7 for other in names[:i]), one


def test_one_worker_is_plain_sgd():
    model = net(torch.float64)
    optimizer = sgd(list(model.parameters()))
    for step in range(STEPS):
        x, y = batch(step, 0, torch.float64)
        optimizer.param_groups[0]["lr"] = lr(step)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    path, sent = simulated("local maintain", "sgd", torch.float64, workers=1)
    assert sent == 0
    for name, p in model.named_parameters():
        assert (path[-1][name][0] - p).abs().max() <= 1e-12


def steps(group: Workers, data: list) -> list[float]:
    """Does all steps and ends the last round; the drift after each step."""
    drift = []
    for step, part in enumerate(data):
        group.step(part, lr(step))
        drift.append(group.drift())
    group.finish()
    return drift


def test_workers_with_the_same_data_do_not_mind_the_period():
    same = [tuple(part[:1].expand(3, *part.shape[1:]) for part in parts) for parts in batches(1, torch.float64)]
    one, four = (
        Workers(
            net(torch.float64),
            F.cross_entropy,
            workers=3,
            sync=SyncConfig(name="local_sgd", period=period),
            optimizer=sgd,
        )
        for period in (1, 4)
    )
    for group in (one, four):
        steps(group, same)
    assert all((one.mean()[key] - weight).abs().max() <= 1e-12 for key, weight in four.mean().items())
    assert one.traffic.bytes_sent * 3 == four.traffic.bytes_sent * 11


def test_workers_agree_where_a_round_ends_and_leave_the_model_alone():
    model = net(torch.float64)
    before = {key: p.clone() for key, p in model.named_parameters()}
    group = Workers(model, F.cross_entropy, workers=3, sync=ARMS["local maintain"], optimizer=sgd)
    drift = steps(group, batches(3, torch.float64))
    assert [step for step, apart in enumerate(drift) if apart == pytest.approx(0, abs=1e-15)] == [3, 7]
    assert all(torch.equal(p, before[key]) for key, p in model.named_parameters())
    assert all(p.grad is None for p in model.parameters())


def test_what_cannot_be_simulated_is_refused():
    how = {"workers": 2, "sync": SyncConfig(), "optimizer": sgd}
    norm = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    with pytest.raises(ValueError, match="1 is a batch norm in training mode"):
        Workers(norm, F.mse_loss, **how)
    Workers(norm.eval(), F.mse_loss, **how).step((torch.ones(2, 3, 2), torch.ones(2, 3, 2)))
    with pytest.raises(ValueError, match="workers = 0"):
        Workers(nn.Linear(2, 2), F.mse_loss, **{**how, "workers": 0})
    with pytest.raises(ConfigError, match=r"sync\.period = 0"):
        Workers(nn.Linear(2, 2), F.mse_loss, **{**how, "sync": SyncConfig(name="local_sgd", period=0)})
    with pytest.raises(ConfigError, match=r"sync\.name = fsdp cannot be simulated"):
        Workers(nn.Linear(2, 2), F.mse_loss, **{**how, "sync": SyncConfig(name="fsdp")})
