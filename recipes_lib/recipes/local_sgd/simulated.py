# SPDX-License-Identifier: Apache-2.0
"""A training loop like :mod:`recipes_lib.training.loop` for workers that one process simulates.

Worker k of K takes the part of each batch that rank k of K processes would take, so both runs reach the same weights up
to rounding. A checkpoint holds the workers' mean in ``model.safetensors``, and every worker's weights and SlowMo's
state in ``workers.safetensors``, so a run that was stopped within a round continues bit for bit.
"""

import math
from contextlib import closing
from dataclasses import asdict

import torch
from torch import Tensor, nn

from recipes_lib.config import OptimConfig, SyncConfig
from recipes_lib.distributed.simulation import SimulatedTraffic, Workers
from recipes_lib.errors import Diverged, Interrupted
from recipes_lib.optim import build as optim
from recipes_lib.training import checkpoint, loop, rank_checkpoints
from recipes_lib.training.folder import RunFolder
from recipes_lib.training.log import RunLog

_FILE = "workers.safetensors"


def fit(given: loop.Training, folder: RunFolder, workers: int) -> SimulatedTraffic:
    """Trains like :func:`loop.fit`, but divides each batch among simulated ``workers``; the method ends as their mean.

    The method's ``after_step`` is not called, so a method that moves weights by another rule than the optimiser's
    cannot be simulated. Each line of ``metrics.jsonl`` has the workers' mean metrics, and their ``drift`` from their
    mean.

    Raises: ``Diverged`` and ``Interrupted`` as :func:`loop.fit`; ``ValueError`` for a batch norm in training mode.
    """
    method, steps, train, schedule = given.method, given.steps, given.settings, given.schedule
    method.train()
    group = _group(method, workers, given.sync, schedule.config)
    start = _restore(folder, group)
    with (
        loop.stop_on_signal() as stopped,
        closing(given.batches.stream(start, steps, workers=given.workers, device=given.world.device)) as stream,
        RunLog(folder, steps, start, tensorboard=train.tensorboard) as log,
    ):
        folder.set_state("running", start)
        for step in range(start, steps):
            schedule.apply(group.optimizer, step)
            views = method.views(next(stream), step)
            group.step(({name: view.unflatten(0, (workers, -1)) for name, view in views.items()},))
            last, due, stop = step + 1 == steps, (step + 1) % train.checkpoint_every == 0, stopped.is_set()
            if last:
                group.finish()
            metrics = {**group.figures, "grad_norm": group.grad_norm}
            metrics = {name: value.mean().item() for name, value in metrics.items()}
            if not all(map(math.isfinite, (metrics["loss"], metrics["grad_norm"]))):
                folder.set_state("failed")
                what = f"the loss is {metrics['loss']:g}, its gradient's norm {metrics['grad_norm']:g}."
                raise Diverged(loop.advice(step, what, schedule.config, folder))
            sent, lr = group.traffic.bytes_sent, group.optimizer.param_groups[0]["lr"]
            if given.monitor is not None:
                _become_mean(method, group)
            watched = given.measured(method, step)
            log.step(step, {**metrics, "lr": lr, "sync_bytes": sent, "drift": group.drift(), **watched})
            if last or due or stop:
                _save(folder, step + 1, train.keep_checkpoints, method, group)
            if stop and not last:
                folder.set_state("interrupted", step + 1)
                raise Interrupted(f"Interrupted after step {step + 1} of {steps}. Go on: recipes resume {folder.path}")
    _become_mean(method, group)
    return group.traffic


def _group(method: nn.Module, size: int, sync: SyncConfig, config: OptimConfig) -> Workers:
    places = {p: place for place, p in enumerate(p for p in method.parameters() if p.requires_grad)}

    def optimizer(stacked: list[Tensor]) -> torch.optim.Optimizer:
        groups = [{**part, "params": [stacked[places[p]] for p in part["params"]]} for part in method.param_groups()]
        return optim.build(config, groups)

    return Workers(method, lambda found: found, workers=size, sync=sync, optimizer=optimizer, clip=config.clip)


@torch.no_grad()
def _become_mean(method: nn.Module, group: Workers) -> None:
    parameters = dict(method.named_parameters())
    for name, mean in group.mean().items():
        parameters[name].copy_(mean)


def _save(folder: RunFolder, step: int, keep: int, method: nn.Module, group: Workers) -> None:
    _become_mean(method, group)
    tensors, facts = checkpoint.flatten_optimizer(group.optimizer, group.weights)
    facts["simulated"] = asdict(group.traffic)
    folder.require_whole()
    checkpoint.begin(folder.checkpoints, step)
    with checkpoint.disk_errors(folder.checkpoints, step):
        path = checkpoint.partial(folder.checkpoints, step) / _FILE
        record = checkpoint.write_file(path, group.state_dict())
    checkpoint.complete(folder.checkpoints, step, method.state_dict(), tensors, facts, keep, {_FILE: record})
    folder.set_state("running", step)


def _restore(folder: RunFolder, group: Workers) -> int:
    """Loads the newest complete checkpoint into the workers; returns the step to continue from, 0 if there is none."""
    step = rank_checkpoints.newest(folder)
    if step is None:
        return 0
    saved = checkpoint.read(folder.checkpoints, step)
    group.load_state_dict(checkpoint.read_weights(saved.path / _FILE))
    checkpoint.restore_optimizer(group.optimizer, group.weights, saved)
    group.traffic = SimulatedTraffic(**saved.facts["simulated"])
    group.done = saved.step
    return saved.step
