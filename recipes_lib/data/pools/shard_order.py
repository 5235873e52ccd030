# SPDX-License-Identifier: Apache-2.0
"""The order in which an epoch visits pairs that lie in shards: random, and yet near each other on disk."""

import numpy as np
import torch
from torch import Tensor

from recipes_lib import randomness


class ShardOrder:
    """A permutation of N pairs, of which only the part in use is ever made.

    The shards come in random order, and ``window`` of them at a time are shuffled among each other. Memory is that of
    two windows and of a number a shard, however many pairs there are.
    """

    def __init__(self, bounds: np.ndarray, seed: int, epoch: int, window: int) -> None:
        """``bounds`` int64 [shards + 1]: where the pairs of each shard begin, and the end of the last."""
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
        """The indices at positions ``part`` of the epoch: int64 [n]. Raises: ``ValueError`` for a slice with a step."""
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
        """The indices of a window's pairs, in its order: int64 [n]."""
        if window not in self._made:
            shards = slice(window * self._window, (window + 1) * self._window)
            runs = zip(self._first[shards].tolist(), self._size[shards].tolist(), strict=True)
            indices = torch.cat([torch.arange(first, first + size) for first, size in runs])
            generator = randomness.generator(self._seed, self._epoch, f"order of window {window}")
            while len(self._made) > 1:  # a batch may lie across two
                del self._made[next(iter(self._made))]
            self._made[window] = indices[torch.randperm(len(indices), generator=generator)]
        return self._made[window]
