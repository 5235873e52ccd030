# SPDX-License-Identifier: Apache-2.0
import dataclasses

import pytest
import torch
from torch import nn

from recipes_lib.config import OptimConfig
from recipes_lib.optim.build import Schedule, build
from recipes_lib.optim.groups import decay_groups
from recipes_lib.optim.lars import LARS
from recipes_lib.optim.stable_adamw import StableAdamW
from recipes_lib.recipes.switchback import recipe as switchback

PAPER = Schedule(config=OptimConfig(), steps=1_000_800, steps_per_epoch=1251)


def groups() -> list[dict]:
    torch.manual_seed(0)
    net, prototypes = nn.Linear(3, 2), nn.Parameter(torch.randn(4, 2))
    return [*decay_groups(net), {"params": [prototypes], "decays": False}]


def test_the_first_update_counts_as_one():
    """G7 of the MSN card."""
    assert PAPER.at(0)["lr"] == pytest.approx(2.000426326e-4, rel=1e-9, abs=0)
    assert PAPER.at(18_764)["lr"] == pytest.approx(1e-3, rel=1e-12, abs=0)


def test_the_last_update_of_the_paper():
    """G7 of the MSN card."""
    assert PAPER.at(1_000_799) == {
        "lr": pytest.approx(9.922370815e-5, rel=1e-9, abs=0),
        "weight_decay": pytest.approx(0.365623059, rel=1e-9, abs=0),
    }


@pytest.mark.parametrize(
    ("step", "lr"), [(0, 0.8), (975, 2.0), (1950, 3.2), (58_500, 1.658166906), (116_999, 0.032000001)]
)
def test_p5_schedule_of_paws_counts_from_zero(step, lr):
    """CIFAR-10: 600 epochs of 195 steps, 10 of them warm-up."""
    config = OptimConfig(lr_start=0.8, lr=3.2, lr_final=0.032, warmup_epochs=10, stretch=1.0, first_count=0)
    paws = Schedule(config=config, steps=117_000, steps_per_epoch=195)
    assert paws.at(step)["lr"] == pytest.approx(lr, rel=0, abs=5e-10)


@pytest.mark.parametrize(
    ("step", "lr"),
    [(0, 0.1), (390, 1.65), (780, 3.2), (4679, 3.2), (4680, 0.32), (9360, 0.032), (12_480, 0.0032), (14_039, 0.0032)],
)
def test_the_learning_rate_drops_to_a_tenth_at_the_epochs_that_are_named(step, lr):
    """ImageNet in SlowMo: 156 steps of 8,192 images an epoch, 5 epochs of warm-up, drops at 30, 60 and 80 of 90."""
    config = OptimConfig(lr_start=0.1, lr=3.2, lr_final=0.0, warmup_epochs=5, lr_drops=(30, 60, 80), first_count=0)
    assert Schedule(config=config, steps=14_040, steps_per_epoch=156).at(step)["lr"] == pytest.approx(lr, rel=1e-12)


@pytest.mark.parametrize("lr_in_momentum", [True, False])
def test_the_form_of_lars_is_the_configs(lr_in_momentum):
    optimizer = build(OptimConfig(name="lars", lr_in_momentum=lr_in_momentum), groups())
    assert [group["lr_in_momentum"] for group in optimizer.param_groups] == [lr_in_momentum] * 3


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("adamw", torch.optim.AdamW),
        ("lars", LARS),
        ("sgd", torch.optim.SGD),
        ("stable_adamw", StableAdamW),
    ],
)
def test_only_groups_that_decay_get_weight_decay(name, kind):
    optimizer = build(OptimConfig(name=name), groups())
    PAPER.apply(optimizer, 500_399)
    assert type(optimizer) is kind
    assert [group["lr"] for group in optimizer.param_groups] == [pytest.approx(6.684248735e-4, rel=1e-9, abs=0)] * 3
    assert [group["weight_decay"] for group in optimizer.param_groups] == [PAPER.at(500_399)["weight_decay"], 0, 0]


@pytest.mark.parametrize(("nesterov", "moved"), [(True, 0.1 * (1 + 0.9 + 1 + 0.9 * 1.9)), (False, 0.1 * (1 + 1.9))])
def test_the_momentum_of_sgd_is_the_configs(nesterov, moved):
    """Two steps with the gradient 1: the momentum is 1, then 1.9; Nesterov's step adds 0.9 of it to the gradient."""
    weight = nn.Parameter(torch.ones(1))
    optimizer = build(OptimConfig(name="sgd", lr=0.1, nesterov=nesterov), [{"params": [weight], "decays": False}])
    for _ in range(2):
        weight.grad = torch.ones(1)
        optimizer.step()
    assert weight.item() == pytest.approx(1 - moved, abs=1e-6)


def test_the_learning_rate_of_a_group_that_asks_for_it_is_the_peak_at_every_step():
    """SimSiam's predictor: neither warm-up nor cosine."""
    config = OptimConfig(name="sgd", lr=0.1, lr_start=0.0, lr_final=0.0, warmup_steps=2, stretch=1.0)
    first, second, third = groups()
    optimizer = build(config, [first, second | {"constant_lr": False}, third | {"constant_lr": True}])
    schedule = Schedule(config=config, steps=10, steps_per_epoch=10)
    for step in range(10):
        schedule.apply(optimizer, step)
        assert [group["lr"] for group in optimizer.param_groups] == [schedule.at(step)["lr"]] * 2 + [0.1]


@pytest.mark.parametrize("name", ["adamw", "lars", "sgd", "stable_adamw"])
def test_a_frozen_group_stands_still_for_its_share_and_its_running_means_start_afterwards(name):
    config = OptimConfig(name=name, warmup_steps=0)
    schedule = Schedule(config=config, steps=10, steps_per_epoch=10)
    (weight, frozen), alone = (nn.Parameter(torch.ones(2, 2)) for _ in range(2)), nn.Parameter(torch.ones(2, 2))
    optimizer = build(
        config,
        [{"params": [weight], "decays": True}, {"params": [frozen], "decays": True, "frozen": 0.25}],
    )
    other = build(config, [{"params": [alone], "decays": True}])
    for step in range(4):
        schedule.apply(optimizer, step)
        weight.grad, frozen.grad = torch.full((2, 2), 2.0), torch.full((2, 2), 3.0)
        optimizer.step()
        assert (frozen.grad is None) == (step < 3)
        assert not torch.equal(weight.detach(), torch.ones(2, 2))
        assert torch.equal(frozen.detach(), torch.ones(2, 2)) == (step < 3)
    schedule.apply(other, 3)  # an optimiser whose first step is the fourth of the run
    alone.grad = torch.full((2, 2), 3.0)
    other.step()
    assert torch.equal(frozen, alone)


def test_a_group_with_a_factor_has_the_learning_rate_of_the_step_times_this_factor():
    one, scaled = [{"params": [torch.nn.Parameter(torch.ones(2, 2))], "decays": True} for _ in range(2)]
    optimizer = build(OptimConfig(name="lars"), [one, {**scaled, "lr_scale": 0.024}])
    for step in (0, 500_399):
        PAPER.apply(optimizer, step)
        rates = [group["lr"] for group in optimizer.param_groups]
        assert rates == [PAPER.at(step)["lr"], 0.024 * PAPER.at(step)["lr"]]


def test_adamw_step_is_the_one_of_the_papers():
    """Decoupled decay, betas .9 and .999, eps 1e-8: the first step is lr * sign(gradient), after lr * decay * weight."""
    weights = groups()
    before = [group["params"][0].detach().clone() for group in weights]
    optimizer = build(OptimConfig(), weights)
    PAPER.apply(optimizer, 18_764)
    for group in weights:
        group["params"][0].grad = torch.full_like(group["params"][0], -0.3)
    optimizer.step()
    decay = PAPER.at(18_764)["weight_decay"]
    for group, old, wd in zip(weights, before, (decay, 0.0, 0.0), strict=True):
        torch.testing.assert_close(group["params"][0].detach(), old * (1 - 1e-3 * wd) + 1e-3, rtol=1e-6, atol=1e-8)


def test_stable_adamw_has_the_betas_and_the_eps_of_the_config():
    optimizer = build(OptimConfig(name="stable_adamw", betas=(0.8, 0.95), eps=1e-5), groups())
    assert {(group["betas"], group["eps"], group["clip_decay"]) for group in optimizer.param_groups} == {
        ((0.8, 0.95), 1e-5, True)
    }


def test_the_weight_decay_of_stable_adamw_follows_the_authors_where_the_config_says_so():
    optimizer = build(OptimConfig(name="stable_adamw", clip_decay=False), groups())
    assert [group["clip_decay"] for group in optimizer.param_groups] == [False] * 3
    full, toy = (switchback.PRESETS[name].optim.clip_decay for name in ("vitb32_laion2b", "toy"))
    assert (full, toy) == (False, True)


def test_unknown_names_are_refused():
    config = OptimConfig()
    object.__setattr__(config, "name", "adam")
    with pytest.raises(ValueError, match="no optimiser 'adam'; there are adamw, adamw8bit, lars, sgd and stable_adamw"):
        build(config, groups())


@pytest.mark.parametrize("steps", [117_000, 117_001, 117_002])
def test_whole_steps_differ_from_fractional_ones_by_less_than_a_step(steps):
    """The official codes cut 1.25 times the run to whole steps: the same where it is whole, else less than a step's change."""
    config = OptimConfig(lr_start=0.8, lr=3.2, lr_final=0.032, warmup_steps=1950)
    ours = Schedule(config=config, steps=steps, steps_per_epoch=195)
    official = Schedule(
        config=dataclasses.replace(config, stretch=int(1.25 * steps) / steps), steps=steps, steps_per_epoch=195
    )
    step = steps // 2
    change = ours.at(step)["lr"] - ours.at(step + 1)["lr"]
    assert abs(ours.at(step)["lr"] - official.at(step)["lr"]) <= (0 if steps % 4 == 0 else change)


def test_a_schedule_is_a_value():
    assert dataclasses.replace(PAPER, steps=10).at(9)["weight_decay"] == pytest.approx(
        PAPER.at(1_000_799)["weight_decay"]
    )
