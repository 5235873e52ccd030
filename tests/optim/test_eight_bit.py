# SPDX-License-Identifier: Apache-2.0
"""bitsandbytes' 8-bit AdamW as an optimiser of every recipe: what it is given, saved and refused."""

import sys

import pytest
import torch
from torch import Tensor, nn

from recipes_lib import recipes
from recipes_lib.config import OptimConfig, SyncConfig, override
from recipes_lib.distributed.sync import running_means
from recipes_lib.errors import ConfigError
from recipes_lib.optim import build, eight_bit, groups
from recipes_lib.training import checkpoint

CONFIG = OptimConfig(name="adamw8bit", lr=1e-2, lr_start=0.0, lr_final=0.0)


@pytest.fixture(autouse=True)
def installed():
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install '.[lowbit]'")


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(60, 100), nn.GELU(), nn.Linear(100, 60))  # weights of 6,000, biases of fewer


def optimizer_of(net: nn.Module, config: OptimConfig = CONFIG) -> torch.optim.Optimizer:
    return build.build(config, groups.decay_groups(net))


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> list[float]:
    losses = []
    for step in steps:
        x = torch.randn(32, 60, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        loss = (net(x) - x).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_large_weights_have_codes_and_small_ones_numbers():
    net = network()
    optimizer = optimizer_of(net)
    train(net, optimizer, range(1))
    kinds = {name: optimizer.state[p]["state1"].dtype for name, p in net.named_parameters()}
    assert kinds == {
        "0.weight": torch.uint8,
        "0.bias": torch.float32,
        "2.weight": torch.uint8,
        "2.bias": torch.float32,
    }


def test_it_follows_adamw():
    """Sixty steps of a small auto-encoder: the loss falls to within a tenth of what AdamW's falls by."""
    ends = {}
    for name in ("adamw", "adamw8bit"):
        net = network()
        ends[name] = train(net, optimizer_of(net, OptimConfig(name=name, lr=1e-2, lr_start=0.0)), range(60))
    fallen = {name: losses[0] - losses[-1] for name, losses in ends.items()}
    assert fallen["adamw"] > 0.3
    assert fallen["adamw8bit"] == pytest.approx(fallen["adamw"], rel=0.1)


def test_the_schedule_sets_its_learning_rate_and_weight_decay():
    net = network()
    optimizer = optimizer_of(net)
    schedule = build.Schedule(config=CONFIG, steps=100, steps_per_epoch=10)
    schedule.apply(optimizer, 99)
    decay = schedule.at(99)["weight_decay"]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [decay, 0.0]
    before = [p.detach().clone() for p in net.parameters()]
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    shrink = 1 - schedule.at(99)["lr"] * decay
    for old, (name, p) in zip(before, net.named_parameters(), strict=True):
        torch.testing.assert_close(p.detach(), old * (shrink if "weight" in name else 1))


def test_training_goes_on_bit_for_bit_through_a_checkpoint(tmp_path):
    net = network()
    optimizer = optimizer_of(net)
    train(net, optimizer, range(3))
    tensors, facts = checkpoint.flatten_optimizer(optimizer, dict(net.named_parameters()))
    assert sum(t.nbytes for t in tensors.values()) < 0.5 * 2 * sum(p.nbytes for p in net.parameters())
    checkpoint.save(tmp_path, 3, net.state_dict(), tensors, facts, 2)
    losses = train(net, optimizer, range(3, 6))

    again = network()
    resumed = optimizer_of(again)
    found = checkpoint.latest(tmp_path, pytest.fail)
    again.load_state_dict(found.model)
    checkpoint.restore_optimizer(resumed, dict(again.named_parameters()), found)
    assert train(again, resumed, range(3, 6)) == losses
    for ours, theirs in zip(again.parameters(), net.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_bytes_of_a_large_tensors_state_are_the_real_ones():
    weight = nn.Parameter(torch.ones(41, 101))  # 4,141: 17 blocks, the last of them short
    weight.grad = torch.ones_like(weight)
    optimizer = build.build(CONFIG, [{"params": [weight], "decays": True}])
    optimizer.step()
    tensors = [value for value in optimizer.state[weight].values() if isinstance(value, Tensor)]
    assert sum(tensor.nbytes for tensor in tensors) == eight_bit.state_bytes(weight.numel())


def test_without_the_package_one_line_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(
        ConfigError, match=r"adamw8bit needs bitsandbytes.*pip install 'ssl-cookbook\[lowbit\]'"
    ) as error:
        build.check(CONFIG, SyncConfig(), torch.device("cpu"))
    assert "\n" not in str(error.value)


def test_a_device_that_it_has_no_kernel_for_is_refused_in_one_line():
    with pytest.raises(
        ConfigError, match=r"adamw8bit does not run on meta with bitsandbytes \d.*Use --optim.name adamw"
    ):
        build.check(CONFIG, SyncConfig(), torch.device("meta"))
    with pytest.raises(ConfigError, match="does not run on meta"):
        optimizer_of(network().to("meta"))


def test_codes_are_never_averaged():
    with pytest.raises(
        ConfigError, match=r"sync\.buffers average cannot average the running means of optim\.name adamw8bit"
    ):
        build.check(CONFIG, SyncConfig(name="local_sgd", buffers="average"), torch.device("cpu"))
    net = network()
    optimizer = optimizer_of(net)
    train(net, optimizer, range(1))
    with pytest.raises(ValueError, match="AdamW8bit are codes"):
        running_means(optimizer)


def test_a_run_is_refused_before_it_has_a_folder(tmp_path):
    changes = {"optim.name": "adamw8bit", "sync.name": "local_sgd", "sync.buffers": "average", "train.device": "cpu"}
    recipe = recipes.named("msn")
    with pytest.raises(ConfigError, match=r"sync\.buffers average"):
        recipe.run(override(recipe.presets["toy"], changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()
