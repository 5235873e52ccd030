# SPDX-License-Identifier: Apache-2.0
"""Batches for a training step, addressed by the step's number and by nothing else.

Step ``k`` of a run takes the same images whatever was run before, on however many processes: the epoch's order
comes from ``(seed, epoch)``, each rank takes its share of the global batch, the incomplete batch that ends an epoch is dropped.
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
from recipes_lib.data.images import ImageFiles, ImageSet
from recipes_lib.data.imbalance import grouped_order
from recipes_lib.data.pools.shard_order import ShardOrder
from recipes_lib.data.pools.shard_pairs import ShardPairs
from recipes_lib.errors import STOP_SIGNALS, DataError, UserError

Crop = Callable[..., list[Tensor]]
"""Cuts one image into the uint8 crops of its views: ``crop(image, index, epoch)``."""


@dataclass(frozen=True)
class Batch:
    """The images of one micro-batch on one rank, before augmentation."""

    indices: Tensor
    """int64 [batch], positions in the data set."""
    epoch: int
    images: Tensor | None
    """uint8 [batch, 3, height, width] where the data set is in memory."""
    crops: list[Tensor] | None
    """A uint8 [batch, 3, side, side] for each view, where workers cut the views from files."""
    labels: Tensor | None
    """int64 [batch]"""
    support: "Batch | None" = None
    """The labelled images that go with this micro-batch, in recipes that draw some (PAWS)."""
    tokens: Tensor | None = None
    """int64 [batch, context], of each image's text, in recipes that learn from texts (CLIP)."""

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
            support=None if self.support is None else self.support.to(device),
        )


class SupportSource(Protocol):
    """What draws the labelled images of a micro-batch: :class:`recipes_lib.data.support.SupportBatches`."""

    def batch(self, position: int) -> Batch:
        """This rank's labelled images of micro-batch ``position``, counted from the start of the run."""


def outlive_signals(worker: int) -> None:
    """Set-up of a loader's worker: Ctrl-C or a scheduler's end, sent to all processes, is its parent's to answer.

    A worker that died of it would make the parent fail before it has written its checkpoint.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def each(loader: DataLoader) -> Iterator[Any]:
    """What ``loader`` gives, in order. Closed (``contextlib.closing``), it ends the workers, which ignore signals."""
    source = iter(loader)
    try:
        yield from source
    finally:
        if loader.num_workers:
            source._shutdown_workers()


class StepBatches(Dataset):
    """Micro-batch ``step * accumulate + micro`` of a run, for one rank. Each item is a whole :class:`Batch`.

    Raises: ``DataError`` where there are fewer images than a global batch, or the batch does not divide evenly.
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
        self.classes_per_batch = classes_per_batch
        self.accumulate, self.rank = accumulate, rank
        self.local_size = batch_size // (accumulate * world_size)
        self.world_size, self.batch_size = world_size, batch_size
        self.steps_per_epoch = len(dataset) // batch_size
        self._order = lru_cache(maxsize=2)(self._epoch_order)

    def __getstate__(self) -> dict:
        # Workers started by spawn receive a copy; a cache cannot travel, and is made anew there.
        return {key: value for key, value in self.__dict__.items() if key != "_order"}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._order = lru_cache(maxsize=2)(self._epoch_order)

    def _epoch_order(self, epoch: int) -> Tensor | ShardOrder:
        if isinstance(self.dataset, ShardPairs):
            return self.dataset.order(self.seed, epoch)
        if self.classes_per_batch is None:
            return randomness.permutation(self.seed, epoch, len(self.dataset))
        return grouped_order(self.dataset.labels, self.batch_size, self.classes_per_batch, self.seed, epoch)

    def __getitem__(self, position: int) -> "Batch | UserError":
        step, micro = divmod(position, self.accumulate)
        epoch, step_of_epoch = divmod(step, self.steps_per_epoch)
        first = step_of_epoch * self.batch_size + (micro * self.world_size + self.rank) * self.local_size
        indices = self._order(epoch)[first : first + self.local_size]
        try:
            batch = self._batch(indices, epoch)
            return batch if self.support is None else replace(batch, support=self.support.batch(position))
        except UserError as error:  # returned, not raised: a loader's worker would wrap its one line in a traceback
            return error

    def _batch(self, indices: Tensor, epoch: int) -> Batch:
        labels = None if self.dataset.labels is None else self.dataset.labels[indices]
        tokens = self.encode([self.dataset.text(index) for index in indices.tolist()]) if self.encode else None
        if isinstance(self.dataset, ImageSet):
            return Batch(indices, epoch, self.dataset.images[indices], None, labels, tokens=tokens)
        samples = [self.crop(self.dataset.open(index), index, epoch) for index in indices.tolist()]
        crops = [torch.stack(view) for view in zip(*samples, strict=True)]
        return Batch(indices, epoch, None, crops, labels, tokens=tokens)

    def stream(self, first_step: int, last_step: int, *, workers: int, device: torch.device) -> Iterator[Batch]:
        """The micro-batches of steps ``first_step`` up to, not including, ``last_step``, on ``device``.

        To be closed (``contextlib.closing``) where there are ``workers``: they ignore signals, so a process that an error
        ends would wait for them at its end.

        Raises: ``DataError`` as the data set raises it, one line, also out of a worker process.
        """
        loader = DataLoader(
            self,
            batch_size=None,
            sampler=range(first_step * self.accumulate, last_step * self.accumulate),
            num_workers=workers,
            pin_memory=False,
            persistent_workers=workers > 0,
            worker_init_fn=outlive_signals,
            # not torch's global one: its draw would move the dropout of the step that a resumed run begins with
            generator=torch.Generator(),
        )
        with closing(each(loader)) as source:
            for batch in source:
                if isinstance(batch, UserError):
                    raise batch
                yield batch.to(device)
