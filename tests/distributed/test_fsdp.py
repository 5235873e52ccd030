# SPDX-License-Identifier: Apache-2.0
"""Two gloo processes train the same net in shares and whole; the tests look at what they returned."""

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from recipes_lib.distributed import DDP, FSDP, LocalSGD, collectives, fsdp
from recipes_lib.distributed.local import run_ranks
from recipes_lib.distributed.sync import Strategy
from recipes_lib.errors import RunError
from recipes_lib.optim import LARS, StableAdamW

STEPS = 5


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(5), nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear(self.norm(x)).tanh()


class Net(nn.Module):
    """Blocks that compute twice a step, a teacher, a scalar, a batch norm, a weight that no two ranks share evenly."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.blocks, self.norm, self.out = nn.Sequential(Block(), Block(), Block()), nn.BatchNorm1d(5), nn.Linear(5, 1)
        self.teacher = nn.ModuleList([Block(), Block(), Block()]).requires_grad_(False)
        self.scale = nn.Parameter(torch.zeros(()))
        g = torch.Generator().manual_seed(seed)
        for p in self.parameters():
            p.data = torch.randn(p.shape, generator=g, dtype=torch.float64) * 0.3
        self.double()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.norm(self.blocks(x) + self.blocks(-x))
        with torch.no_grad():
            target = self.teacher[2](self.teacher[1](self.teacher[0](x)))
        return {"loss": ((self.out(y) * self.scale.exp() - target[:, :1]) ** 2).mean()}

    @torch.no_grad()
    def after_step(self) -> None:
        torch._foreach_lerp_(list(self.teacher.parameters()), list(self.blocks.parameters()), 0.1)


def batch(step: int, rank: int, micro: int) -> Tensor:
    g = torch.Generator().manual_seed(100 * step + 10 * micro + rank)
    return torch.randn(8, 5, generator=g, dtype=torch.float64)


def adamw(net: nn.Module) -> torch.optim.Optimizer:
    decayed = [p for p in net.parameters() if p.requires_grad and p.dim() > 1]
    others = [p for p in net.parameters() if p.requires_grad and p.dim() <= 1]
    return torch.optim.AdamW([{"params": decayed, "weight_decay": 0.1}, {"params": others}], lr=0.02, fused=True)


def sgd(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1, momentum=0.9, nesterov=True)


def train(sync: Strategy, *, make=adamw, accumulate: int = 1, clip: float = float("inf")) -> dict:
    """Losses, gradient norms, the weights at the end, and what it cost."""
    rank = collectives.rank()
    net = Net(seed=7 * rank)  # different on each rank: wrap must make them rank 0's
    optimizer = make(net)
    model = sync.wrap(net, optimizer)
    trained, parts = sync.trained, list(net.modules())
    waiting = {str(p.device) for p in net.parameters()}
    losses, norms = [], []
    for step in range(STEPS):
        for micro in range(accumulate):
            with sync.hold(step, last=micro + 1 == accumulate):
                loss = model(batch(step, rank, micro))["loss"]
                (loss / accumulate).backward()
            losses.append(loss.detach())
        norms.append(fsdp.clip_grad_norm([p for p in trained.parameters() if p.requires_grad], clip).clone())
        optimizer.step()
        optimizer.zero_grad()
        sync.after_step(step)
        trained.after_step()
    shares = [type(p).__name__ for p in trained.parameters()]
    sizes = [p.to_local().numel() if hasattr(p, "to_local") else p.numel() for p in trained.parameters()]
    gathered = {name: value.clone() for name, value in fsdp.gather(trained.state_dict()).items()}
    sync.unwrap()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    alone = net(batch(0, 0, 0))["loss"].detach() if rank == 0 else torch.zeros(())  # no rank waits for another
    return {
        "losses": torch.stack(losses),
        "norms": torch.stack(norms),
        "state": state,
        "gathered": gathered,
        "alone": alone,
        "shares": shares,
        "elements": sum(sizes),
        "same": list(net.modules()) == parts and not any(isinstance(part, FSDPModule) for part in parts),
        "waiting": waiting,
        "class": type(net).__name__,
        "plain": all(type(p) is nn.Parameter for p in net.parameters()),
        "bytes": sync.traffic.bytes_sent,
        "rounds": sync.traffic.rounds,
    }


CASES = {
    "adamw": {},
    "sgd": {"make": sgd},
    "accumulated": {"accumulate": 2},
    "clipped": {"clip": 0.05},
}


def everything() -> dict:
    found = {}
    for name, how in CASES.items():
        found[name] = {"ddp": train(DDP(), **how), "fsdp": train(FSDP(), **how)}
    return found | {"refused": refusals()}


def refusals() -> list[str]:
    messages = []
    for make in (lambda net: StableAdamW(net.parameters(), lr=0.1), lambda net: LARS(net.parameters(), lr=0.1)):
        net = Net(0)
        try:
            FSDP().wrap(net, make(net))
        except RunError as error:
            messages.append(str(error))
    return messages


@pytest.fixture(scope="module")
def results() -> list[dict]:
    return run_ranks(everything, 2)


@pytest.mark.distributed
@pytest.mark.parametrize("case", CASES)
def test_shares_take_the_steps_of_whole_weights(results, case):
    for number, rank in enumerate(results):
        ours, whole = rank[case]["fsdp"], rank[case]["ddp"]
        if number:  # DDP's other ranks take rank 0's statistics before the next step
            whole["state"] |= {name: value for name, value in ours["state"].items() if "running" in name}
        torch.testing.assert_close(ours["losses"], whole["losses"], rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(ours["norms"], whole["norms"], rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(ours["state"], whole["state"], rtol=1e-10, atol=1e-12)


@pytest.mark.distributed
def test_clipping_changed_the_steps(results):
    free, clipped = (results[0][case]["fsdp"]["state"]["out.weight"] for case in ("sgd", "clipped"))
    assert not torch.allclose(free, clipped)
    assert min(results[0]["clipped"]["fsdp"]["norms"]) > 0.05


@pytest.mark.distributed
def test_each_rank_keeps_half_of_all_but_scalars(results):
    total = sum(p.numel() for p in Net(0).parameters())
    for rank in results:
        assert sorted(set(rank["adamw"]["fsdp"]["shares"])) == ["DTensor", "Parameter"]
        assert rank["adamw"]["fsdp"]["shares"].count("Parameter") == 1
    held = [rank["adamw"]["fsdp"]["elements"] for rank in results]
    assert sum(held) == total + 1  # the scalar, twice
    assert max(held) < 0.65 * total


@pytest.mark.distributed
def test_meanwhile_the_methods_own_weights_take_no_memory(results):
    assert [rank["adamw"]["fsdp"]["waiting"] for rank in results] == [{"meta"}] * 2


@pytest.mark.distributed
def test_rank_0_gathers_what_every_rank_ends_with(results):
    main, other = (rank["adamw"]["fsdp"] for rank in results)
    torch.testing.assert_close(main["gathered"], main["state"], rtol=0, atol=0)
    torch.testing.assert_close(main["state"], other["state"], rtol=0, atol=0)
    assert "out.weight" not in other["gathered"]


@pytest.mark.distributed
def test_after_training_the_method_is_plain_and_rank_0_computes_alone(results):
    for rank in results:
        assert (rank["adamw"]["fsdp"]["class"], rank["adamw"]["fsdp"]["plain"]) == ("Net", True)
        assert rank["adamw"]["fsdp"]["same"]
    alone = [results[0]["adamw"][name]["alone"] for name in ("ddp", "fsdp")]
    torch.testing.assert_close(*alone)


@pytest.mark.distributed
def test_bytes_are_those_of_every_gathering_and_scattering(results):
    found = results[0]["adamw"]["fsdp"]
    net = Net(0)
    row = {
        name: 8 * -(-p.shape[0] // 2) * 2 * (p.numel() // p.shape[0]) for name, p in net.named_parameters() if p.dim()
    }
    block = sum(size for name, size in row.items() if name.startswith("blocks.0"))  # padded to even rows
    rest = block + sum(size for name, size in row.items() if name.startswith(("norm", "out")))  # and the last block
    root = rest + block  # with the teacher's last
    # a block is gathered for both its uses, forward and backward, and scattered once; the rest once; the teacher's forward
    gathered, scattered = 2 * block * 4 + root + 2 * block, 2 * block + rest
    assert found["bytes"] == STEPS * ((gathered + scattered) / 2 + 8)  # 8: the scalar's all-reduce
    assert found["rounds"] == STEPS


@pytest.mark.distributed
def test_optimisers_that_measure_whole_weights_are_refused(results):
    for messages in (rank["refused"] for rank in results):
        assert [message.split(" measures")[0].split()[-1] for message in messages] == ["StableAdamW", "LARS"]
        assert all("Use --optim.name adamw or sgd" in message and "\n" not in message for message in messages)


def test_one_process_keeps_its_model_whole():
    net = Net(0)
    before = dict(net.named_parameters())
    sync = FSDP()
    assert sync.wrap(net, adamw(net)) is net
    with sync.hold(0, last=True):
        net(batch(0, 0, 0))["loss"].backward()
    sync.after_step(0)
    sync.unwrap()
    assert all(weight is before[name] for name, weight in net.named_parameters())
    assert sync.traffic.rounds == 0


def test_blocks_are_repeated_parts_and_not_single_layers():
    net = Net(0)
    assert fsdp.blocks(net) == [net.teacher[1], net.teacher[0], net.blocks[1], net.blocks[0]]
    assert fsdp.blocks(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))) == []
    assert fsdp.blocks(nn.Sequential(Block(), nn.Linear(2, 2))) == []


def test_without_shares_the_norm_is_torchs():
    ours, theirs = Net(0), Net(0)
    for net in (ours, theirs):
        net(batch(0, 0, 0))["loss"].backward()
    found = fsdp.clip_grad_norm(list(ours.parameters()), 0.1)
    assert found == nn.utils.clip_grad_norm_(theirs.parameters(), 0.1)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert p.grad is None or torch.equal(p.grad, q.grad)


def test_other_strategies_leave_the_model_as_it_is():
    for sync in (DDP(), LocalSGD(2)):
        net = Net(0)
        sync.wrap(net, sgd(net))
        sync.unwrap()
        assert type(net) is Net
