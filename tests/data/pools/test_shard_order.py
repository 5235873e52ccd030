# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch

from recipes_lib.data.pools.shard_order import ShardOrder

SIZES = [7, 1, 12, 5, 9, 30, 2]
BOUNDS = np.concatenate([[0], np.cumsum(SIZES)])


def shard_of(indices: torch.Tensor) -> np.ndarray:
    return np.searchsorted(BOUNDS, indices.numpy(), "right") - 1


@pytest.mark.parametrize("window", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("seed", [0, 1])
def test_an_epoch_visits_each_pair_once(window, seed):
    order = ShardOrder(BOUNDS, seed, 0, window)
    assert len(order) == 66
    assert sorted(order[:].tolist()) == list(range(66))


@pytest.mark.parametrize("window", [1, 3])
def test_slices_are_parts_of_one_order(window):
    whole = ShardOrder(BOUNDS, 0, 5, window)[:]
    order = ShardOrder(BOUNDS, 0, 5, window)
    for size in (1, 10, 25):
        parts = [order[first : first + size] for first in range(0, 66, size)]
        assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(order[60:], whole[60:])  # back and forth, as a resumed run goes
    assert torch.equal(order[3:9], whole[3:9])
    assert order[66:80].tolist() == order[9:3].tolist() == []


def test_a_window_holds_whole_shards_and_mixes_them():
    order = ShardOrder(BOUNDS, 0, 0, 3)
    first = order[:]
    shards = shard_of(first)
    changes = sum(shards[1:] != shards[:-1])
    assert changes > 15  # seven shards in a row would change six times
    seen = list(dict.fromkeys(shards.tolist()))
    assert sum(SIZES[shard] for shard in seen[:3]) == len([s for s in shards if s in seen[:3]])
    last = max(np.flatnonzero(np.isin(shards, seen[:3])))
    assert last == sum(SIZES[shard] for shard in seen[:3]) - 1


def test_epochs_and_seeds_give_other_orders_and_the_same_pair_of_them_the_same():
    orders = [tuple(ShardOrder(BOUNDS, seed, epoch, 2)[:].tolist()) for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(orders)) == 4
    assert tuple(ShardOrder(BOUNDS, 1, 0, 2)[:].tolist()) == orders[2]


def test_memory_is_that_of_two_windows():
    bounds = np.arange(0, 1_000_001, 1000)
    order = ShardOrder(bounds, 0, 0, 4)
    for first in range(0, 1_000_000, 50_000):
        order[first : first + 100]
        assert sum(len(made) for made in order._made.values()) <= 8000


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="window = 0 is not allowed"):
        ShardOrder(BOUNDS, 0, 0, 0)
    with pytest.raises(ValueError, match="step = 2 is not allowed"):
        ShardOrder(BOUNDS, 0, 0, 1)[::2]
