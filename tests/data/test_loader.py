# SPDX-License-Identifier: Apache-2.0
import multiprocessing
import os
import signal
from itertools import chain

import pytest
import torch
from torch.utils.data import DataLoader

from recipes_lib.data.images import ImageSet
from recipes_lib.data.loader import StepBatches, each, outlive_signals
from recipes_lib.errors import DataError

CPU = torch.device("cpu")


def images(count: int) -> ImageSet:
    pixels = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 4, 4).contiguous()
    return ImageSet(images=pixels, labels=torch.arange(count), class_names=tuple(map(str, range(count))))


def visited(batches: StepBatches, first: int, last: int, workers: int = 0) -> list[list[int]]:
    return [batch.indices.tolist() for batch in batches.stream(first, last, workers=workers, device=CPU)]


def test_an_epoch_visits_every_image_once_and_the_next_one_in_another_order():
    batches = StepBatches(images(12), seed=0, batch_size=4)
    first, second = visited(batches, 0, 3), visited(batches, 3, 6)
    assert sorted(chain(*first)) == sorted(chain(*second)) == list(range(12))
    assert first != second


def test_the_incomplete_last_batch_is_dropped():
    batches = StepBatches(images(10), seed=0, batch_size=4)
    assert batches.steps_per_epoch == 2
    assert len(set(chain(*visited(batches, 0, 2)))) == 8


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_started_in_the_middle_goes_on_as_the_whole_one(workers):
    batches = StepBatches(images(40), seed=3, batch_size=8)
    assert visited(batches, 4, 11, workers) == visited(batches, 0, 11)[4:]


def test_ranks_and_micro_batches_share_out_the_global_batch_in_order():
    whole = visited(StepBatches(images(32), seed=1, batch_size=16), 0, 2)
    parts = [
        visited(StepBatches(images(32), seed=1, batch_size=16, accumulate=2, rank=rank, world_size=2), 0, 2)
        for rank in range(2)
    ]
    for step in range(2):
        together = [parts[rank][2 * step + micro] for micro in range(2) for rank in range(2)]
        assert list(chain(*together)) == whole[step]


def test_drawn_images_come_by_their_weights_each_copy_with_a_number_of_its_own_and_none_ends_it():
    batches = StepBatches(images(12), seed=0, batch_size=4)
    before = visited(batches, 0, 3)
    batches.draw_by(torch.tensor([0.0, 1.0, 3.0]).repeat(4))
    keys = list(chain(*visited(batches, 0, 3)))
    assert len(set(keys)) == 12
    assert all(key % 12 % 3 != 0 for key in keys)
    drawn = next(batches.stream(0, 1, workers=0, device=CPU))
    assert torch.equal(drawn.labels, drawn.indices % 12)
    assert torch.equal(drawn.images[:, 0, 0, 0].long(), drawn.labels)
    halves = [StepBatches(images(12), seed=0, batch_size=4, rank=rank, world_size=2) for rank in range(2)]
    for half in halves:
        half.draw_by(torch.tensor([0.0, 1.0, 3.0]).repeat(4))
    together = [[*first, *second] for first, second in zip(*(visited(half, 0, 3) for half in halves), strict=True)]
    assert list(chain(*together)) == keys
    batches.draw_by(None)
    assert visited(batches, 0, 3) == before


def test_repeated_images_follow_each_other_with_keys_of_their_own_and_the_epoch_stays_as_long():
    batches = StepBatches(images(12), seed=0, batch_size=6, repeats=3)
    assert batches.steps_per_epoch == 2
    keys = list(chain(*visited(batches, 0, 2)))
    once = list(chain(*visited(StepBatches(images(12), seed=0, batch_size=6), 0, 2)))
    assert [key % 12 for key in keys] == [index for index in once[:4] for _ in range(3)]
    assert [key // 12 for key in keys] == [0, 1, 2] * 4
    batch = batches[0]
    assert batch.labels.tolist() == [key % 12 for key in keys[:6]]
    assert batch.images[:, 0, 0, 0].tolist() == batch.labels.tolist()


def test_copies_of_an_image_go_to_different_ranks():
    whole = visited(StepBatches(images(12), seed=0, batch_size=6, repeats=3), 0, 2)
    parts = [
        visited(StepBatches(images(12), seed=0, batch_size=6, repeats=3, rank=rank, world_size=3), 0, 2)
        for rank in range(3)
    ]
    for step in range(2):
        assert sorted(chain(*(part[step] for part in parts))) == sorted(whole[step])
        for part in parts:
            assert len({key % 12 for key in part[step]}) == len(part[step])


def test_copies_from_files_get_keys_of_their_own():
    class Files:
        labels = None

        def __len__(self):
            return 4

        def open(self, index):
            return index

    told = []

    def crop(image, key, epoch):
        told.append((image, key, epoch))
        return [torch.zeros(1)]

    batch = StepBatches(Files(), seed=0, batch_size=4, repeats=2, crop=crop)[1]
    assert [image for image, _, _ in told] == [key % 4 for key in batch.indices.tolist()]
    assert [key for _, key, _ in told] == batch.indices.tolist()
    assert len(set(batch.indices.tolist())) == 4
    assert {epoch for _, _, epoch in told} == {1}


def test_a_signal_to_all_processes_leaves_the_workers_at_work():
    """As Ctrl-C and a cluster's scheduler send it; the training process itself writes its checkpoint first."""
    stream = StepBatches(images(40), seed=0, batch_size=4).stream(0, 10, workers=2, device=CPU)
    seen = [next(stream).indices.tolist() for _ in range(2)]  # one of each worker: both are at work
    for worker in multiprocessing.active_children():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            os.kill(worker.pid, number)
    assert len(seen + list(stream)) == 10


def test_images_and_labels_belong_to_their_indices():
    batch = next(StepBatches(images(20), seed=5, batch_size=5).stream(0, 1, workers=0, device=CPU))
    assert batch.labels.tolist() == batch.indices.tolist() == batch.images[:, 0, 0, 0].tolist()


def test_fewer_images_than_a_batch_is_refused_with_both_numbers():
    with pytest.raises(DataError, match=r"There are 3 training images, fewer than one batch .*= 4"):
        StepBatches(images(3), seed=0, batch_size=4)


def test_a_batch_that_does_not_divide_among_the_processes_is_refused():
    with pytest.raises(DataError, match=r"batch_size = 9 does not divide among 2 processes x 1"):
        StepBatches(images(20), seed=0, batch_size=9, world_size=2)


@pytest.mark.parametrize("workers", [0, 1])
def test_reading_a_batch_draws_nothing_from_torchs_own_generator(workers):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    visited(StepBatches(images(8), seed=0, batch_size=4), 0, 1, workers)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_stops_the_stream_with_its_own_line_also_out_of_a_worker(workers):
    class Damaged:
        labels = None

        def __len__(self):
            return 8

        def open(self, index):
            raise DataError(f"image {index} is damaged")

    batches = StepBatches(Damaged(), seed=0, batch_size=4, crop=lambda *_: [])
    with pytest.raises(DataError, match=r"^image \d is damaged$"):
        visited(batches, 0, 1, workers)


def test_a_loader_that_is_closed_early_leaves_no_workers_behind():
    loader = DataLoader(range(8), num_workers=1, persistent_workers=True, worker_init_fn=outlive_signals)
    before = set(multiprocessing.active_children())
    source = each(loader)
    next(source)
    assert set(multiprocessing.active_children()) - before
    source.close()
    assert not set(multiprocessing.active_children()) - before
