# SPDX-License-Identifier: Apache-2.0
"""All communication between ranks, with gradients for collectives inside losses; the identity on one process.

The gradient is that of the *sum of all ranks' losses*: the backward pass of a collective sums over ranks the gradients
of what its forward pass sent to them. DDP then divides parameter gradients by the world size, which gives the gradient
of the mean of the losses, as one process would compute it on the concatenated batch. Autograd does not see an in-place
``torch.distributed.all_reduce``, so a loss that calls it directly would miss this sum.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

T = TypeVar("T")

_BUCKET = 2**27  # 128 MiB: largest size of a flattened copy in the in-place collectives

_pretended: ContextVar[int | None] = ContextVar("pretended world size", default=None)


@contextmanager
def pretend(world_size: int) -> Iterator[None]:
    """Inside the context, this process acts as rank 0 of ``world_size`` ranks, although there are no others.

    The collectives that losses call send nothing: a sum returns rank 0's tensor, and a gather repeats it. So shapes,
    dtypes and bytes are those of a real rank 0, but values are not. The other collectives raise.
    """
    # torch's fake process group is global to the process, cannot be used beside a real one, and changes sys.excepthook
    before = _pretended.set(world_size)
    try:
        yield
    finally:
        _pretended.reset(before)


def world_size() -> int:
    """The number of processes of this run; 1 if the process was started alone."""
    if (pretended := _pretended.get()) is not None:
        return pretended
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() and _pretended.get() is None else 0


def is_main() -> bool:
    """True on rank 0, which writes files and shows messages to the user."""
    return rank() == 0


def barrier() -> None:
    """Waits until all processes have called it."""
    if world_size() > 1:
        dist.barrier()


def left_alone(error: BaseException | None) -> bool:
    """Whether ``error`` was raised by a collective because another process has ended or did not answer in time."""
    told = ("closed by peer", "reset by peer", "Broken pipe", "Timed out waiting", "timed out", "aborted communicator")
    ours = isinstance(error, RuntimeError) and world_size() > 1
    return ours and (isinstance(error, dist.DistError) or any(words in str(error) for words in told))


def _sum_in_place(x: Tensor) -> None:
    if _pretended.get() is None:
        dist.all_reduce(x)


def _gathered(x: Tensor) -> list[Tensor]:
    """The tensors ``x`` of all ranks, rank 0's first."""
    if _pretended.get() is not None:
        return [x] * world_size()
    parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(world_size())]
    dist.all_gather(parts, x.contiguous())
    return parts


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)  # the collective works in place
        _sum_in_place(total)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> Tensor:
        return _SumOverRanks.forward(ctx, grad)  # every rank's loss depends on every rank's x


class _ConcatenateRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.rows = x.shape[0]
        return torch.cat(_gathered(x))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = grad.clone(memory_format=torch.contiguous_format)
        _sum_in_place(total)
        return total[rank() * ctx.rows : (rank() + 1) * ctx.rows]


def all_reduce_sum(x: Tensor) -> Tensor:
    """The sum of ``x`` over ranks, equal on all ranks, with gradients.

    Shapes: [...] -> [...], the same on every rank.
    """
    return x if world_size() == 1 else _SumOverRanks.apply(x)


def all_reduce_mean(x: Tensor) -> Tensor:
    """The mean of ``x`` over ranks, equal on all ranks, with gradients.

    Shapes: [...] -> [...], the same on every rank.
    """
    return x if world_size() == 1 else _SumOverRanks.apply(x / world_size())


def all_gather(x: Tensor) -> Tensor:
    """The rows of all ranks concatenated, rank 0's first, with gradients.

    Shapes: [rows, ...] -> [ranks * rows, ...]; ``rows`` must be the same on every rank.
    """
    return x if world_size() == 1 else _ConcatenateRanks.apply(x)


@torch.no_grad()
def average_in_place(tensors: Sequence[Tensor]) -> int:
    """Replaces floating-point tensors by their means over ranks, bit-equal on all ranks, without gradients.

    Tensors of the same dtype and device are sent together. Returns the number of bytes averaged, 0 on one process.
    """
    if world_size() == 1:
        return 0
    for bucket in _buckets(tensors):
        flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
        dist.all_reduce(flat)
        _unflatten(flat.div_(world_size()), bucket)
    return sum(tensor.nbytes for tensor in tensors)


@torch.no_grad()
def broadcast_in_place(tensors: Sequence[Tensor]) -> None:
    """Replaces tensors by those of rank 0."""
    if world_size() == 1:
        return
    for bucket in _buckets(tensors):
        flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
        dist.broadcast(flat, src=0)
        _unflatten(flat, bucket)


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Groups the non-empty tensors by dtype and device, in groups of at most ``_BUCKET`` bytes."""
    open_ones: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in tensors:
        bucket = open_ones.setdefault((tensor.dtype, tensor.device), [])
        if bucket and sum(other.nbytes for other in bucket) + tensor.nbytes > _BUCKET:
            yield list(bucket)
            bucket.clear()
        if tensor.numel():
            bucket.append(tensor)
    yield from filter(None, open_ones.values())


def _unflatten(flat: Tensor, tensors: list[Tensor]) -> None:
    pieces = flat.split([tensor.numel() for tensor in tensors])
    torch._foreach_copy_(tensors, [piece.view(tensor.shape) for piece, tensor in zip(pieces, tensors, strict=True)])


def gather_objects(value: T) -> list[T]:
    """The values of all ranks (any picklable object), rank 0's first, on every rank. Every rank must call it."""
    if world_size() == 1:
        return [value]
    box: list[Any] = [None] * world_size()
    dist.all_gather_object(box, value)
    return box


def broadcast_object(value: T) -> T:
    """Rank 0's ``value`` (any picklable object), on every rank. Every rank must call it."""
    if world_size() == 1:
        return value
    box = [value if is_main() else None]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def from_main(function: Callable[[], T]) -> T:
    """Calls ``function`` on rank 0 only and returns its result on every rank. Every rank must call it.

    Inside ``function``, the world size is 1: the other ranks do not take part, so a batch norm over all ranks would wait
    for them without end.

    Raises: the error of ``function`` on rank 0, on every rank, so that no rank waits for ever.
    """
    if world_size() == 1:
        return function()
    outcome: tuple[Any, Exception | None] = (None, None)
    if is_main():
        try:
            with pretend(1):
                outcome = (function(), None)
        except Exception as error:
            outcome = (None, error)
    result, problem = broadcast_object(outcome)
    if problem is not None:
        raise problem
    return result


def from_each(function: Callable[[], T]) -> list[T]:
    """Calls ``function`` on every rank and returns all results, rank 0's first, on every rank.

    Raises: the error of the lowest rank that failed, on every rank.
    """
    outcome: tuple[Any, Exception | None]
    try:
        outcome = (function(), None)
    except Exception as error:
        outcome = (None, error)
    outcomes = gather_objects(outcome)
    for _, problem in outcomes:
        if problem is not None:
            raise problem
    return [result for result, _ in outcomes]
