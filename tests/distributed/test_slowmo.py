# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from torch import nn

from recipes_lib.config import SyncConfig
from recipes_lib.distributed.slowmo import SlowMo, build, slow_step
from recipes_lib.distributed.sync import DDP, LocalSGD


@pytest.mark.parametrize(
    ("means", "gammas", "slow", "weights"),
    [((0.8, 0.6), (0.1, 0.1), (2, 3), (0.8, 0.5)), ((0.8, 0.7), (0.1, 0.05), (2, 3), (0.8, 0.65))],
)
def test_the_cards_two_rounds(means, gammas, slow, weights):
    x, u = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    for mean, gamma, wanted_u, wanted_x in zip(means, gammas, slow, weights, strict=True):
        slow_step([x], [u], [torch.tensor([mean], dtype=torch.float64)], gamma, momentum=0.5, lr=1.0)
        assert (u.item(), x.item()) == pytest.approx((wanted_u, wanted_x), abs=1e-12)


@pytest.mark.parametrize("gamma", [0.0, 1e-45])
def test_without_a_learning_rate_a_round_is_averaged_plainly(gamma):
    x, u, mean = torch.ones(2), torch.full((2,), 3.0), torch.tensor([0.5, 0.25])
    slow_step([x], [u], [mean], gamma, momentum=0.5, lr=1.0)
    assert torch.equal(x, mean)
    assert torch.equal(u, torch.full((2,), 3.0))


def test_the_end_of_a_cosine_gives_finite_weights():
    x, u, mean = torch.ones(2), torch.full((2,), 3.0), torch.tensor([0.5, 0.25])
    slow_step([x], [u], [mean], 1e-29, momentum=0.5, lr=1.0)
    assert x.isfinite().all()
    assert u.isfinite().all()
    torch.testing.assert_close(x, mean)


def test_a_state_without_a_parameter_is_refused_by_its_name():
    net = nn.Linear(2, 1)
    sync = SlowMo(2, momentum=0.5)
    sync.wrap(net, torch.optim.SGD(net.parameters(), lr=0.1))
    state = sync.state_dict()
    assert sorted(state) == ["anchor/bias", "anchor/weight", "slow_momentum/bias", "slow_momentum/weight"]
    del state["slow_momentum/bias"]
    with pytest.raises(KeyError, match="slow_momentum/bias"):
        sync.load_state_dict(state)


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (SyncConfig(), DDP),
        (SyncConfig(name="local_sgd", period=3), LocalSGD),
        (SyncConfig(name="post_local_sgd", period=3, start=5), LocalSGD),
        (SyncConfig(name="slowmo", period=3, start=5, buffers="reset"), SlowMo),
    ],
)
def test_a_config_becomes_its_strategy(config, kind):
    built = build(config)
    assert type(built) is kind
    if kind is LocalSGD:
        assert (built.period, built.start) == (3, config.start)
