# SPDX-License-Identifier: Apache-2.0
"""The training loop: one straight line from a batch to a checkpoint, the same for every method.

A method is an ``nn.Module`` with ``forward(views) -> dict`` (scalar ``loss`` and diagnostics), ``param_groups()``,
``clipped_parameters()`` and ``after_step(step)``. What a step does depends on the weights, the optimiser and the
step's number alone, so an interrupted run goes on bit for bit from its last checkpoint.
"""

import contextlib
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from recipes_lib import randomness
from recipes_lib.config import OptimConfig, TrainConfig
from recipes_lib.data.loader import Batch, StepBatches
from recipes_lib.distributed import collectives
from recipes_lib.distributed.world import World
from recipes_lib.errors import Diverged, Interrupted
from recipes_lib.models import interchange
from recipes_lib.optim import build as optim
from recipes_lib.training import checkpoint
from recipes_lib.training.folder import RunFolder
from recipes_lib.training.log import RunLog

Views = dict[str, object]
"""What a method's ``forward`` takes: tensors, and lists of tensors, by name."""


def fit(
    method: nn.Module,
    batches: StepBatches,
    make_views: Callable[[Batch, int], Views],
    *,
    folder: RunFolder,
    steps: int,
    train: TrainConfig,
    optim_config: OptimConfig,
    world: World,
    workers: int = 0,
) -> None:
    """Trains ``method`` for ``steps`` optimiser steps, going on from the folder's last good checkpoint if there is one.

    ``make_views(batch, step)`` turns the images of a micro-batch into what the method's ``forward`` takes.

    Raises: ``Diverged`` where the loss is not finite, ``Interrupted`` after SIGINT, SIGTERM or SIGUSR1; both leave
    a complete checkpoint to go on from.
    """
    optimizer = optim.build(optim_config, method.param_groups())
    start = _restore(method, optimizer, folder)
    schedule = optim.Schedule(config=optim_config, steps=steps, steps_per_epoch=batches.steps_per_epoch)
    model = _spread(method) if world.size > 1 else method
    method.train()
    stream = batches.stream(start, steps, workers=workers, device=world.device)
    # drop path draws from torch's global generator: seeded by the step, and given back as it was
    with (
        torch.random.fork_rng(devices=[]),
        stop_on_signal() as stopped,
        RunLog(folder, steps, start, tensorboard=train.tensorboard) as log,
    ):
        folder.set_state("running", start)
        for step in range(start, steps):
            schedule.apply(optimizer, step)
            torch.manual_seed(randomness.step_key(train.seed, step, "layers"))
            try:
                figures = _accumulate(model, stream, make_views, step, train)
            except FloatingPointError as error:  # a loss that met values it cannot use
                folder.set_state("failed", step)
                raise Diverged(_advice(step, str(error), optim_config, folder)) from None
            norm = nn.utils.clip_grad_norm_(method.clipped_parameters(), optim_config.clip or float("inf"))
            figures = _average({**figures, "grad_norm": norm})
            if not all(map(_finite, (figures["loss"], figures["grad_norm"]))):
                folder.set_state("failed", step)
                what = f"the loss is {figures['loss']:g}, its gradient's norm {figures['grad_norm']:g}."
                raise Diverged(_advice(step, what, optim_config, folder))
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            method.after_step(step)
            log.step(step, {**figures, "lr": optimizer.param_groups[0]["lr"]})
            stop = _any_rank(stopped.is_set(), world)
            if stop or (step + 1) % train.checkpoint_every == 0 or step + 1 == steps:
                _save(method, optimizer, folder, step + 1, train.keep_checkpoints)
            if stop and step + 1 < steps:
                folder.set_state("interrupted", step + 1)
                raise Interrupted(f"Interrupted after step {step + 1} of {steps}. Go on: recipes resume {folder.path}")


def _spread(method: nn.Module) -> nn.Module:
    """``method`` with its gradients averaged over ranks."""
    # of a 1x1 convolution's gradient alone: its two memory layouts are one and the same, the copy costs nothing
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    return DistributedDataParallel(method)


def _accumulate(
    model: nn.Module, stream: Iterator[Batch], make_views: Callable, step: int, train: TrainConfig
) -> dict[str, Tensor]:
    """Gradients of one optimiser step; returns the step's figures, averaged over its micro-batches."""
    totals: dict[str, Tensor] = {}
    for micro in range(train.accumulate):
        last = micro + 1 == train.accumulate
        hold = contextlib.nullcontext() if last or not hasattr(model, "no_sync") else model.no_sync()
        batch = next(stream)
        with hold:
            views = make_views(batch, step)
            with torch.autocast(batch.indices.device.type, torch.bfloat16, enabled=train.precision == "bf16"):
                out = model(views)
            (out["loss"] / train.accumulate).backward()
        for name, value in out.items():
            totals[name] = totals.get(name, 0) + value.detach() / train.accumulate
    return totals


def _average(figures: dict[str, Tensor]) -> dict[str, float]:
    """The figures as numbers, averaged over ranks: one transfer and one collective a step."""
    values = torch.stack([value.float() for value in figures.values()])
    return dict(zip(figures, collectives.all_reduce_mean(values).tolist(), strict=True))


def _finite(value: float) -> bool:
    return value == value and abs(value) != float("inf")


def _any_rank(flag: bool, world: World) -> bool:
    """True on all ranks as soon as it is on one: they must write the same checkpoint."""
    if world.size == 1:
        return flag
    return bool(collectives.all_reduce_sum(torch.tensor(float(flag), device=world.device)) > 0)


def _advice(step: int, what: str, config: OptimConfig, folder: RunFolder) -> str:
    good = checkpoint.newest_step(folder.checkpoints)
    kept = f"The last good checkpoint is of step {good}." if good else "No checkpoint was written yet."
    return (
        f"Training diverged at step {step}: {what} {kept} Try again in another --out with a lower --optim.lr "
        f"(now {config.lr:g}), a longer --optim.warmup-epochs (now {config.warmup_epochs:g}) or --optim.clip 1 "
        f"(now {config.clip})."
    )


def _restore(method: nn.Module, optimizer: torch.optim.Optimizer, folder: RunFolder) -> int:
    """Loads the newest checkpoint that is whole; the step to go on from."""
    saved = checkpoint.latest(folder.checkpoints, folder.warn)
    if saved is None:
        return 0
    interchange.fill(method, saved.model, f"the weights in {saved.path}")
    checkpoint.restore_optimizer(optimizer, dict(method.named_parameters()), saved)
    return saved.step


def _save(method: nn.Module, optimizer: torch.optim.Optimizer, folder: RunFolder, step: int, keep: int) -> None:
    def write() -> None:
        tensors, facts = checkpoint.flatten_optimizer(optimizer, dict(method.named_parameters()))
        checkpoint.save(folder.checkpoints, step, method.state_dict(), tensors, facts, keep)
        folder.set_state("running", step)

    collectives.from_main(write)  # a full disk stops all ranks, not one of them


@contextmanager
def stop_on_signal() -> Iterator[threading.Event]:
    """An event that SIGINT, SIGTERM (a scheduler's end) and SIGUSR1 (its early warning) set, in place of dying."""
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped  # only the main thread may handle signals
        return
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = {number: signal.signal(number, lambda *_: stopped.set()) for number in signals}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
