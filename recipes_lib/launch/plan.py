# SPDX-License-Identifier: Apache-2.0
"""Computes what a training run will cost before it is started, without data, a GPU or other processes; writes nothing.

:func:`plan` builds the recipe's own method and views from fake tensors (:mod:`recipes_lib.launch.fake_tensors`), runs
one rank's micro-batch forward and backward, and counts. ``Plan.assumptions`` lists what it cannot know and assumes.
"""

import dataclasses
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from recipes_lib import recipes
from recipes_lib.config import DRAWN
from recipes_lib.errors import ConfigError, Faults
from recipes_lib.launch import costs, data_sizes, fake_tensors, hardware, trace
from recipes_lib.launch.advice import assumptions, warnings
from recipes_lib.pretraining.recipe import Recipe


@dataclass(frozen=True)
class Part:
    """The number of parameters of a child module of the method, and the number of those that are trained."""

    parameters: int
    trained: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The cost of a run. Sizes are in bytes, costs in floating-point operations (FLOP), times in hours."""

    recipe: str
    preset: str | None
    gpu: str
    world: int
    """World size: number of GPUs, each with one process."""
    parameters: int
    """Number of parameters of all parts, teachers included."""
    trained_parameters: int
    parts: dict[str, Part]
    """Numbers of parameters by child module of the method."""
    batch_size: int
    """Images per step, summed over ranks and micro-batches."""
    micro_batch: int
    """Images per rank in one forward pass; supports are not counted."""
    steps: int
    images_seen: int
    """Images in all steps, ``steps`` x ``batch_size``."""
    flops_per_image: float
    """FLOP per image, forward and backward; a multiplication and an addition count as two."""
    flops_per_step: int
    """FLOP per step, summed over ranks."""
    flops_total: int
    low_bit_share: float
    """Share of the FLOP, in [0, 1], in layers that ``model.linear`` converts."""
    memory: dict[str, int]
    """Bytes on one GPU: weights, gradients, optimizer, exchange, activations, inputs, and their sum, total."""
    gpu_memory: float
    """Bytes of memory of the GPU."""
    wire_bytes_per_step: float
    """Bytes sent by each rank per step, averaged over the run."""
    wire_bytes_total: float
    """Bytes sent by each rank in the run."""
    averagings: int
    """Number of averagings in the run."""
    gpu_hours: float
    """Hours summed over GPUs, at the assumed utilisation."""
    hours: float
    """Wall-clock hours, at the assumed utilisation."""
    checkpoint_bytes: int
    checkpoints_kept: int
    assumptions: dict[str, str | float]
    warnings: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """The plan as plain values, for ``recipes plan --json``."""
        return dataclasses.asdict(self)


def plan(
    recipe_name: str,
    config: Any,
    *,
    world: int = 8,
    gpu: str = "h100",
    utilisation: float = 0.35,
    images: int | None = None,
    preset: str | None = None,
) -> Plan:
    """The cost of training recipe ``recipe_name`` with ``config`` on ``world`` GPUs.

    ``utilisation``: the assumed share of the GPU's peak rate, in (0, 1]. ``images``: number of training images, needed
    only if it is not known for the data set. ``preset``: name of the preset, which is copied into the plan.

    Raises: ``ConfigError`` in whole lines for a recipe that trains no backbone, a config that a run would refuse, or an
    unknown number of images that is needed.
    """
    recipe = _that_trains(recipe_name)
    simulated = recipe.simulated_workers(config)
    _check(config, world, utilisation, images, simulated)
    kind = hardware.find(gpu)
    rate = kind.rate(config.train.precision)
    rows, classes = _support(recipe, config, world)
    steps = _steps(config, images)

    method, converted = _build(recipe, config, steps)
    train = config.train
    micro = train.batch_size // (world * train.accumulate)
    views = fake_tensors.views(recipe, method, config, micro, rows, classes)
    found = trace.measure(method, views, precision=train.precision, world=world, converted=converted)
    state = costs.optimizer_state(config.optim)
    memory = costs.memory(method, config, world, state, simulated)
    memory |= {"activations": found.activations, "inputs": found.inputs}
    memory["total"] = sum(memory.values())
    sent = costs.wire(method, config, world, steps, state, found.blocks)
    step_flops = found.flops * world * train.accumulate
    seconds = steps * step_flops / (rate * utilisation)
    return Plan(
        recipe=recipe_name,
        preset=preset,
        gpu=gpu,
        world=world,
        parameters=sum(weight.numel() for weight in method.parameters()),
        trained_parameters=sum(weight.numel() for weight in costs.trained(method)),
        parts=_parts(method),
        batch_size=train.batch_size,
        micro_batch=micro,
        steps=steps,
        images_seen=steps * train.batch_size,
        flops_per_image=step_flops / train.batch_size,
        flops_per_step=step_flops,
        flops_total=steps * step_flops,
        low_bit_share=found.converted_flops / found.flops,
        memory=memory,
        gpu_memory=kind.memory,
        wire_bytes_per_step=sent.bytes / steps,
        wire_bytes_total=sent.bytes,
        averagings=sent.rounds,
        gpu_hours=seconds / 3600,
        hours=seconds / 3600 / world,
        checkpoint_bytes=costs.checkpoint(method, config.sync, train, world, state, simulated),
        checkpoints_kept=train.keep_checkpoints,
        assumptions=assumptions(config, world, kind, utilisation, simulated),
        warnings=warnings(config, world, kind, memory, simulated),
    )


def usual_gpus(recipe_name: str, config: Any) -> int:
    """The default number of GPUs per machine: 8, or 1 if one process simulates the workers."""
    return 1 if _that_trains(recipe_name).simulated_workers(config) else 8


def _that_trains(name: str) -> Recipe:
    """The recipe of this name. Raises: ``ConfigError`` if it trains no backbone."""
    recipe = recipes.named(name)
    if isinstance(recipe, Recipe):
        return recipe
    able = [other for other in recipes.MENU if isinstance(recipes.named(other), Recipe)]
    raise ConfigError(
        f"Recipe {name} trains no backbone, so there is no training to plan. `recipes run {name} --preset toy` times itself "
        f"(`seconds` in report.json). Recipes with a plan: {', '.join(able)}."
    )


def _check(config: Any, world: int, utilisation: float, images: int | None, simulated: int) -> None:
    """Raises ``ConfigError`` with one line per fault of the config or of the other arguments of :func:`plan`."""
    faults = Faults()
    faults.need(world >= 1, "world", world, "of at least 1")
    faults.need(0 < utilisation <= 1, "utilisation", utilisation, "in (0, 1]", "0.35 is 35 % of the GPU's peak.")
    faults.need(images is None or images >= 1, "images", images, "of at least 1")
    faults.raise_any()
    _without_data(config).validate()
    train = config.train
    if simulated and world > 1:
        faults.add(
            f"sync.workers = {simulated} simulates workers in one process, and this plan has {world}. Use --gpus 1, or "
            "--sync.workers 0, where each process is a worker."
        )
    elif train.batch_size % (world * train.accumulate):
        faults.add(
            f"train.batch_size = {train.batch_size} does not divide among {world} GPUs x {train.accumulate} micro-batches. Use "
            f"a multiple of {world * train.accumulate}."
        )
    if config.sync.name == "fsdp" and config.optim.name not in ("adamw", "sgd"):
        faults.add(
            f"sync.name fsdp cuts each weight into shares, and optim.name {config.optim.name} measures whole ones. Use "
            "--optim.name adamw or sgd, or --sync.name ddp."
        )
    faults.raise_any()


def _without_data(config: Any) -> Any:
    """The config with a placeholder for its data's folder and without probes, since a plan needs no data."""
    found = replace(config, eval=replace(config.eval, probes=()))
    if config.data.root is None and config.data.name not in DRAWN:
        found = replace(found, data=replace(config.data, root=Path("data")))
    return found


def _support(recipe: Recipe, config: Any, world: int) -> tuple[int, int]:
    """The number of support rows per rank and micro-batch, and of their classes; 2 and 2 if there is no support."""
    if recipe.support is None:
        return 2, 2
    data = config.data
    count = data.support_classes or data_sizes.classes(data)
    if count * data.support_images % world:
        raise ConfigError(
            f"A support of {count} classes x {data.support_images} images does not divide among {world} GPUs. Change "
            "data.support_classes or data.support_images, or the number of GPUs."
        )
    return count * data.support_images // world, count


def _steps(config: Any, images: int | None) -> int:
    train = config.train
    if train.steps is not None:
        return train.steps
    count = data_sizes.images(config.data, images, f"train.epochs = {train.epochs:g} counts in them")
    if count < train.batch_size:
        raise ConfigError(
            f"There are {count:,} training images, fewer than one batch (train.batch_size = {train.batch_size}). Use a batch "
            f"of at most {count}, or more images."
        )
    return train.total_steps(count // train.batch_size)


def _build(recipe: Recipe, config: Any, steps: int) -> tuple[nn.Module, frozenset[str]]:
    """The method with full-precision linear layers, and the names of the layers that ``model.linear`` would convert."""
    method = fake_tensors.build(recipe, replace(config, model=replace(config.model, linear="full")), steps)
    if config.model.linear == "full":
        return method, frozenset()
    before = {name: type(layer) for name, layer in method.named_modules()}
    after = fake_tensors.build(recipe, config, steps).named_modules()
    return method, frozenset(name for name, layer in after if type(layer) is not before[name])


def _parts(method: nn.Module) -> dict[str, Part]:
    groups = {name: list(child.parameters()) for name, child in method.named_children()}
    groups |= {name: [weight] for name, weight in method.named_parameters(recurse=False)}
    return {
        name: Part(sum(w.numel() for w in weights), sum(w.numel() for w in weights if w.requires_grad))
        for name, weights in groups.items()
        if weights
    }
