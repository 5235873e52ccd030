# SPDX-License-Identifier: Apache-2.0
"""The order in which an epoch visits pairs in shards: random, but with pairs of a batch from few shards."""

import numpy as np
import torch
from torch import Tensor

from recipes_lib import randomness


class ShardOrder:
    """A random permutation of N pairs that is computed in parts, when they are needed.

    The shards come in random order, and the pairs of ``window`` shards at a time are shuffled together. Memory is
    needed for two windows and for one number per shard; it does not grow with the number of pairs.
    """

    def __init__(self, bounds: np.ndarray, seed: int, epoch: int, window: int) -> None:
        """``bounds`` int64 [shards + 1]: the number of the first pair of each shard, and the number of all pairs."""
        if window < 1:
            raise ValueError(f"window = {window} is not allowed: use at least 1 shard")
        self._seed, self._epoch, self._window = seed, epoch, window
        order = torch.randperm(len(bounds) - 1, generator=randomness.generator(seed, epoch, "order of shards")).numpy()
        self._first, self._size = bounds[:-1][order], np.diff(bounds)[order]
        ends = np.cumsum(self._size)[window - 1 :: window]
        self._bounds = np.unique(np.concatenate([[0], ends, [bounds[-1]]]))  # of windows, in the epoch's order
        self._made: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return int(self._bounds[-1])

    def __getitem__(self, part: slice) -> Tensor:
        """The pairs' indices at positions ``part`` of the epoch: int64 [n]. Raises: ``ValueError`` for a step but 1."""
        start, stop, step = part.indices(len(self))
        if step != 1:
            raise ValueError(f"step = {step} is not allowed: take a slice without a step")
        pieces = [torch.empty(0, dtype=torch.int64)]
        window = int(np.searchsorted(self._bounds, start, "right")) - 1
        while start < stop:
            low, high = int(self._bounds[window]), int(self._bounds[window + 1])
            pieces.append(self._shuffled(window)[start - low : min(stop, high) - low])
            start, window = high, window + 1
        return torch.cat(pieces)

    def _shuffled(self, window: int) -> Tensor:
        """The indices of a window's pairs in shuffled order: int64 [n]."""
        if window not in self._made:
            shards = slice(window * self._window, (window + 1) * self._window)
            runs = zip(self._first[shards].tolist(), self._size[shards].tolist(), strict=True)
            indices = torch.cat([torch.arange(first, first + size) for first, size in runs])
            generator = randomness.generator(self._seed, self._epoch, f"order of window {window}")
            while len(self._made) > 1:  # two windows stay, since a batch may have pairs of both
                del self._made[next(iter(self._made))]
            self._made[window] = indices[torch.randperm(len(indices), generator=generator)]
        return self._made[window]
