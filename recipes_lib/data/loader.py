# SPDX-License-Identifier: Apache-2.0
"""Loads the batches of training steps; a batch depends only on the step's number.

Step ``k`` of a run takes the same images, no matter what ran before or how many processes there are. The epoch's order
derives from ``(seed, epoch)``, each rank takes its part of the global batch, and the incomplete last batch of an epoch
is dropped.
"""

import signal
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from recipes_lib import randomness
from recipes_lib.data.groups import drawn_order
from recipes_lib.data.images import ImageFiles, ImageSet
from recipes_lib.data.imbalance import grouped_order
from recipes_lib.data.pools.shard_order import ShardOrder
from recipes_lib.data.pools.shard_pairs import ShardPairs
from recipes_lib.data.posed import PosedImages
from recipes_lib.errors import STOP_SIGNALS, DataError, UserError

Crop = Callable[..., list[Tensor]]
"""A function ``crop(image, index, epoch)`` that returns the uint8 crops of one image's views."""


@dataclass(frozen=True)
class Batch:
    """The images of one micro-batch on one rank, before augmentation."""

    indices: Tensor
    """int64 [batch], positions in the data set, from which random numbers derive. Of an image that an epoch has several
    times, copy number c has its position plus c times the number of images."""
    epoch: int
    """Epoch, from 0."""
    images: Tensor | None
    """uint8 [batch, 3, height, width] if the data set is in memory, else None."""
    crops: list[Tensor] | None
    """uint8 [batch, 3, side, side] for each view if workers crop image files, else None."""
    labels: Tensor | None
    """int64 [batch], or None without labels."""
    support: "Batch | None" = None
    """The labelled images of this micro-batch, in recipes that use some (PAWS)."""
    tokens: Tensor | None = None
    """int64 [batch, context]: the tokens of the images' texts, in recipes that learn from texts (CLIP)."""
    partners: Tensor | None = None
    """uint8 [batch, 3, height, width]: another image of the same instance, if the data set has several of each."""

    def to(self, device: torch.device) -> "Batch":
        """The same batch on ``device``."""

        def move(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device, non_blocking=True)

        return replace(
            self,
            indices=move(self.indices),
            images=move(self.images),
            crops=None if self.crops is None else [move(crop) for crop in self.crops],
            labels=move(self.labels),
            tokens=move(self.tokens),
            partners=move(self.partners),
            support=None if self.support is None else self.support.to(device),
        )


class SupportSource(Protocol):
    """A source of the labelled images of a micro-batch, such as :class:`recipes_lib.data.support.SupportBatches`."""

    def batch(self, position: int) -> Batch:
        """This rank's labelled images of micro-batch ``position``, counted from the start of the run."""


def outlive_signals(worker: int) -> None:
    """Makes a loader's worker ignore stop signals, such as Ctrl-C, which reach all processes: its parent handles them.

    If a signal ended the worker, the parent would fail before it has written its checkpoint.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def each(loader: DataLoader) -> Iterator[Any]:
    """Yields the items of ``loader`` in order.

    Close it (``contextlib.closing``): this ends the workers, which ignore signals.
    """
    source = iter(loader)
    try:
        yield from source
    finally:
        if loader.num_workers:
            source._shutdown_workers()


class StepBatches(Dataset):
    """The micro-batches of a run for one rank; item ``step * accumulate + micro`` is a whole :class:`Batch`.

    Raises: ``DataError`` if there are fewer images than a global batch, or the batch cannot be divided evenly.
    """

    def __init__(
        self,
        dataset: ImageSet | ImageFiles | ShardPairs,
        *,
        seed: int,
        batch_size: int,
        accumulate: int = 1,
        rank: int = 0,
        world_size: int = 1,
        classes_per_batch: int | None = None,
        repeats: int = 1,
        crop: Crop | None = None,
        support: SupportSource | None = None,
        encode: Callable[[list[str]], Tensor] | None = None,
    ) -> None:
        if len(dataset) < batch_size:
            raise DataError(
                f"There are {len(dataset)} training images, fewer than one batch (train.batch_size = {batch_size}). "
                f"Use a batch of at most {len(dataset)}, or more images."
            )
        if batch_size % (accumulate * world_size):
            raise DataError(
                f"train.batch_size = {batch_size} does not divide among {world_size} processes x {accumulate} "
                f"micro-batches. Use a multiple of {accumulate * world_size}."
            )
        self.dataset, self.seed, self.crop, self.support, self.encode = dataset, seed, crop, support, encode
        self.classes_per_batch, self.repeats = classes_per_batch, repeats
        self._weights: Tensor | None = None
        self.accumulate, self.rank = accumulate, rank
        self.local_size = batch_size // (accumulate * world_size)
        self.world_size, self.batch_size = world_size, batch_size
        self.steps_per_epoch = len(dataset) // batch_size
        self._order = lru_cache(maxsize=2)(self._epoch_order)

    def draw_by(self, weights: Tensor | None) -> None:
        """From now on, an epoch draws its images with replacement, in proportion to ``weights``, float [images].

        ``None``: an epoch has each image once, in random order, as before the first call.
        """
        self._weights = weights
        self._order = lru_cache(maxsize=2)(self._epoch_order)

    def __getstate__(self) -> dict:
        # workers started by spawn receive a copy; the cache cannot be pickled, so it is made anew there
        return {key: value for key, value in self.__dict__.items() if key != "_order"}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._order = lru_cache(maxsize=2)(self._epoch_order)

    def _epoch_order(self, epoch: int) -> Tensor | ShardOrder:
        if isinstance(self.dataset, ShardPairs):
            return self.dataset.order(self.seed, epoch)
        if self._weights is not None:
            return drawn_order(self._weights, self.seed, epoch)
        if self.classes_per_batch is None:
            count = len(self.dataset)
            order = randomness.permutation(self.seed, epoch, count)
            if self.repeats == 1:
                return order
            copies = torch.arange(count) % self.repeats
            return order.repeat_interleave(self.repeats)[:count] + copies * count
        return grouped_order(self.dataset.labels, self.batch_size, self.classes_per_batch, self.seed, epoch)

    def __getitem__(self, position: int) -> "Batch | UserError":
        step, micro = divmod(position, self.accumulate)
        epoch, step_of_epoch = divmod(step, self.steps_per_epoch)
        indices = self._own(self._order(epoch), step_of_epoch * self.batch_size, micro)
        try:
            batch = self._batch(indices, epoch)
            return batch if self.support is None else replace(batch, support=self.support.batch(position))
        except UserError as error:  # returned: if a worker raised it, its one line would arrive inside a traceback
            return error

    def _own(self, order: Tensor | ShardOrder, first: int, micro: int) -> Tensor:
        """The part of this rank and micro-batch of the global batch that begins at place ``first`` of ``order``."""
        part = micro * self.world_size + self.rank
        if self.repeats == 1:
            return order[first + part * self.local_size : first + (part + 1) * self.local_size]
        # as in DeiT, the copies of an image, which follow each other, go to different parts
        return order[first + part : first + self.batch_size : self.batch_size // self.local_size]

    def _batch(self, keys: Tensor, epoch: int) -> Batch:
        copies = self.repeats > 1 or self._weights is not None
        indices = keys % len(self.dataset) if copies else keys
        labels = None if self.dataset.labels is None else self.dataset.labels[indices]
        tokens = self.encode([self.dataset.text(index) for index in indices.tolist()]) if self.encode else None
        if isinstance(self.dataset, PosedImages):
            others = self.dataset.images[self.dataset.partners(keys, seed=self.seed, epoch=epoch)]
            return Batch(keys, epoch, self.dataset.images[indices], None, labels, partners=others)
        if isinstance(self.dataset, ImageSet):
            return Batch(keys, epoch, self.dataset.images[indices], None, labels, tokens=tokens)
        pairs = zip(indices.tolist(), keys.tolist(), strict=True)
        samples = [self.crop(self.dataset.open(index), key, epoch) for index, key in pairs]
        crops = [torch.stack(view) for view in zip(*samples, strict=True)]
        return Batch(keys, epoch, None, crops, labels, tokens=tokens)

    def stream(self, first_step: int, last_step: int, *, workers: int, device: torch.device) -> Iterator[Batch]:
        """Yields the micro-batches of the steps from ``first_step`` to ``last_step - 1``, on ``device``.

        With ``workers``, close it (``contextlib.closing``): workers ignore signals, so a process that ends with an
        error would wait for them.

        Raises: ``DataError`` of the data set, in one line, also from a worker process.
        """
        loader = DataLoader(
            self,
            batch_size=None,
            sampler=range(first_step * self.accumulate, last_step * self.accumulate),
            num_workers=workers,
            pin_memory=False,
            persistent_workers=workers > 0,
            worker_init_fn=outlive_signals,
            # a draw from torch's global generator would change the dropout of a resumed run's first step
            generator=torch.Generator(),
        )
        with closing(each(loader)) as source:
            for batch in source:
                if isinstance(batch, UserError):
                    raise batch
                yield batch.to(device)
