# SPDX-License-Identifier: Apache-2.0
"""The training loop, from a batch to a checkpoint, which is the same for every method.

A method is an ``nn.Module`` with ``forward(views) -> dict`` (scalar ``loss`` and diagnostics), ``param_groups()``,
``clipped_parameters()`` and ``after_step(step)``. A step depends only on the weights, the optimiser's state and the
step's number, so an interrupted run continues bit for bit from its last checkpoint.
"""

import math
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from recipes_lib import randomness
from recipes_lib.config import OptimConfig, SyncConfig, TrainConfig
from recipes_lib.data.loader import Batch, StepBatches
from recipes_lib.distributed import batch_norm, collectives, fsdp, slowmo
from recipes_lib.distributed.sync import Strategy, Traffic
from recipes_lib.distributed.watch import Watch
from recipes_lib.distributed.world import World
from recipes_lib.errors import STOP_SIGNALS, Diverged, Interrupted
from recipes_lib.optim import build as optim
from recipes_lib.training import checkpoint, rank_checkpoints
from recipes_lib.training.folder import RunFolder
from recipes_lib.training.log import RunLog
from recipes_lib.training.timing import Timing

_DDP = SyncConfig()


@dataclass(frozen=True, kw_only=True)
class Training:
    """The arguments of the training loop: the method, its data, its optimiser, and the length of the run."""

    method: nn.Module
    """Has ``views(batch, step)``, ``forward``, ``param_groups()``, ``clipped_parameters()`` and ``after_step(step)``."""
    batches: StepBatches
    steps: int
    """Number of optimiser steps of the whole run."""
    optimizer: torch.optim.Optimizer
    schedule: optim.Schedule
    sync: SyncConfig
    strategy: Strategy
    """The strategy built from ``sync``, which keeps the processes' weights equal."""
    settings: TrainConfig
    """Precision, micro-batches, seed, checkpoints and the time-out."""
    world: World
    workers: int = 0
    """Number of processes of this rank that load batches."""
    monitor: Callable[[Any], dict[str, float]] | None = None
    """Measures the method after some of the steps, without changing it; its numbers join the step's metrics."""
    monitor_every: int = 100
    """Number of steps between two measurements; the first and the last step are always measured."""

    def measured(self, method: nn.Module, step: int) -> dict[str, float]:
        """The numbers of ``monitor`` after ``step``, on rank 0; empty where none are due."""
        due = step in (0, self.steps - 1) or (step + 1) % self.monitor_every == 0
        return self.monitor(method) if self.monitor is not None and due and collectives.is_main() else {}


def training(
    method: nn.Module,
    batches: StepBatches,
    *,
    train: TrainConfig,
    optim_config: OptimConfig,
    world: World,
    workers: int = 0,
    sync: SyncConfig = _DDP,
) -> Training:
    """Builds the optimiser, schedule and strategy from the configs, and returns all arguments of :func:`fit`."""
    steps = train.total_steps(batches.steps_per_epoch)
    return Training(
        method=method,
        batches=batches,
        steps=steps,
        optimizer=optim.build(optim_config, method.param_groups()),
        schedule=optim.Schedule(config=optim_config, steps=steps, steps_per_epoch=batches.steps_per_epoch),
        sync=sync,
        strategy=slowmo.build(sync),
        settings=train,
        world=world,
        workers=workers,
    )


def fit(given: Training, folder: RunFolder) -> Traffic:
    """Trains for ``given.steps`` optimiser steps, starting from the folder's last good checkpoint if there is one.

    Returns the traffic: how many bytes the ranks sent. If ranks average only every few steps, they also log metrics,
    notice a divergence and answer signals only at these steps.

    If a process makes no progress for ``train.timeout`` seconds, all processes end; see
    :class:`~recipes_lib.distributed.watch.Watch`.

    Raises: ``Diverged`` if the loss or the gradient's norm is not finite; ``Interrupted`` after one of
    ``STOP_SIGNALS``. Both leave the last complete checkpoint.
    """
    batches, steps, train, world = given.batches, given.steps, given.settings, given.world
    optimizer, schedule, strategy = given.optimizer, given.schedule, given.strategy
    _warn_of_one_process(given.sync, world, folder)
    model = strategy.wrap(given.method, optimizer)
    method = strategy.trained
    start = rank_checkpoints.restore(folder, method, optimizer, strategy)
    clipped = method.clipped_parameters()
    method.train()
    untold: list[dict[str, Tensor | float]] = []
    # drop path draws from torch's global generator: it is seeded at each step here, and restored at the end
    with (
        torch.random.fork_rng(devices=[]),
        stop_on_signal() as stopped,
        closing(batches.stream(start, steps, workers=given.workers, device=world.device)) as stream,
        RunLog(folder, steps, start, tensorboard=train.tensorboard) as log,
        Watch(train.timeout, folder.stop_without_main) as watch,
    ):
        timing = Timing(folder.path)
        folder.set_state("running", start)
        for step in range(start, steps):
            schedule.apply(optimizer, step)
            randomness.seed_torch(randomness.step_key(train.seed, step, "layers"), world.device)
            try:
                metrics = _accumulate(model, strategy, stream, method.views, step, train, watch, timing)
            except FloatingPointError as error:  # raised by a loss for values that it cannot use
                folder.set_state("failed")
                raise Diverged(advice(step, str(error), schedule.config, folder, method)) from None
            norm = fsdp.clip_grad_norm(clipped, schedule.config.clip or float("inf"))
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            strategy.after_step(step)
            last, due = step + 1 == steps, (step + 1) % train.checkpoint_every == 0
            if last:
                strategy.finish(step)
            method.after_step(step)
            sent = {"sync_bytes": strategy.traffic.bytes_sent} if world.size > 1 else {}
            with timing.of("watch"):
                watched = given.measured(method, step)
            rate = {"lr": optimizer.param_groups[0]["lr"]}
            untold.append({**metrics, "grad_norm": norm, **rate, **sent, **watched})
            timing.step()
            if not (last or due or strategy.meets(step)):
                continue
            _tell(untold, step, log, schedule.config, folder, method)
            stop = _any_rank(stopped.is_set(), world)
            if stop or last or due:
                alike = last or strategy.alike(step)
                rank_checkpoints.save(
                    folder, step + 1, train.keep_checkpoints, method, optimizer, strategy, alike=alike
                )
                timing.write(step)
            if stop and not last:
                folder.set_state("interrupted", step + 1)
                raise Interrupted(f"Interrupted after step {step + 1} of {steps}. Go on: recipes resume {folder.path}")
    strategy.unwrap()
    return strategy.traffic


def _warn_of_one_process(config: SyncConfig, world: World, folder: RunFolder) -> None:
    if config.name != "ddp" and world.size == 1:
        folder.warn(
            f"sync.name is {config.name} and this is the only process: it averages with itself. Start several: "
            "torchrun --nproc-per-node 2 -m recipes_lib run ..."
        )


def _tell(
    untold: list[dict], step: int, log: RunLog, config: OptimConfig, folder: RunFolder, method: nn.Module
) -> None:
    """Logs the metrics in ``untold``, of the last steps up to ``step``, averaged over ranks, and empties the list.

    Raises: ``Diverged`` at the first of these steps whose loss or gradient norm is not finite.
    """
    rows = _average([{name: value for name, value in row.items() if isinstance(value, Tensor)} for row in untold])
    for number, (own, row) in enumerate(zip(untold, rows, strict=True), start=step + 1 - len(untold)):
        if not all(map(math.isfinite, (row["loss"], row["grad_norm"]))):
            folder.set_state("failed")
            what = f"the loss is {row['loss']:g}, its gradient's norm {row['grad_norm']:g}."
            raise Diverged(advice(number, what, config, folder, method))
        log.step(number, {**own, **row})
    untold.clear()


def _accumulate(
    model: nn.Module,
    strategy: Strategy,
    stream: Iterator[Batch],
    make_views: Callable,
    step: int,
    train: TrainConfig,
    watch: Watch,
    timing: Timing,
) -> dict[str, Tensor]:
    """Accumulates the gradients of one optimiser step; returns its metrics, averaged over its micro-batches."""
    totals: dict[str, Tensor] = {}
    for micro in range(train.accumulate):
        watch.at(step, "reading its images")
        with timing.of("data"):
            batch = next(stream)
        watch.at(step, "computing")
        with strategy.hold(step, last=micro + 1 == train.accumulate):
            views = make_views(batch, step)
            with (
                torch.autocast(batch.indices.device.type, torch.bfloat16)
                if train.precision == "bf16"
                else nullcontext()
            ):
                out = model(views)
            (out["loss"] / train.accumulate if train.accumulate > 1 else out["loss"]).backward()
        for name, value in out.items():
            share = value.detach() / train.accumulate  # a copy, in case the step changes the tensor of a metric
            totals[name] = totals[name] + share if micro else share
    return totals


def _average(rows: list[dict[str, Tensor]]) -> list[dict[str, float]]:
    """Metrics as numbers, averaged over ranks, with one transfer from the device and one collective for all."""
    values = torch.stack([torch.stack([value.float() for value in row.values()]) for row in rows])
    return [dict(zip(rows[0], row, strict=True)) for row in collectives.all_reduce_mean(values).tolist()]


def _any_rank(flag: bool, world: World) -> bool:
    """True on all ranks if ``flag`` is true on any rank, because all ranks must write the same checkpoint."""
    if world.size == 1:
        return flag
    return bool(collectives.all_reduce_sum(torch.tensor(float(flag), device=world.device)) > 0)


def advice(step: int, what: str, config: OptimConfig, folder: RunFolder, method: nn.Module | None = None) -> str:
    """The error line for a run that diverged at ``step``: what happened, and what to try.

    It names the cause if ``method`` has a batch norm whose inputs have no variance.
    """
    good = checkpoint.newest_step(folder.checkpoints)
    kept = f"The last good checkpoint is of step {good}." if good else "No checkpoint was written yet."
    told = f"Training diverged at step {step}: {what} {kept}"
    if method is not None and (names := batch_norm.without_variance(method)):
        return (
            f"{told} The batch norm {names[0]} has met the same values in every image of every batch so far, and divides "
            "rounding noise by its own size: a lower rate does not help. Look for what makes all features equal (images "
            "that are all alike, a layer whose weights are zero)."
        )
    return (
        f"{told} Try again in another --out with a lower --optim.lr "
        f"(now {config.lr:g}), a longer --optim.warmup-epochs (now {config.warmup_epochs:g}) or --optim.clip 1 "
        f"(now {config.clip})."
    )


@contextmanager
def stop_on_signal() -> Iterator[threading.Event]:
    """An event that is set by each of ``STOP_SIGNALS``, which then do not end the process."""
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped  # only the main thread may handle signals
        return
    before = {number: signal.signal(number, lambda *_: stopped.set()) for number in STOP_SIGNALS}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
