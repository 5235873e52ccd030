# SPDX-License-Identifier: Apache-2.0
"""Compares one step on two processes with the same step on one: the loss, and the gradient of every weight.

A collective without gradient inside a loss, or batch statistics per device, make a run on several devices another method
than the run on one. Neither shows in the loss curve. Both show here.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from recipes_lib import randomness
from recipes_lib.data.images import ImageSet
from recipes_lib.data.loader import StepBatches
from recipes_lib.distributed import collectives
from recipes_lib.distributed.local import run_ranks
from recipes_lib.errors import RunError, UserError
from recipes_lib.evaluation import diagnosis
from recipes_lib.evaluation.diagnosis import Finding, unknown
from recipes_lib.pretraining import engine
from recipes_lib.training.folder import RunFolder

if TYPE_CHECKING:
    from recipes_lib.pretraining.recipe import Recipe

NAME = "two_processes"
MOST_SECONDS = 600.0
"""How long the two processes may take: they import torch anew, which takes minutes on a machine that has much else to do."""
MOST_IMAGES = 256
"""Largest number of images of the step; a run with a smaller micro-batch takes its own."""


def compare(find: Callable[[], "Recipe"], path: Path) -> Finding:
    """The finding on the first step of the run in ``path``; arguments are those of :func:`differences`."""
    try:
        return diagnosis.two_processes(*differences(find, path))
    except RunError as error:
        return unknown(NAME, str(error))


def differences(find: Callable[[], "Recipe"], path: Path) -> tuple[float, float]:
    """Computes the first step of the run in ``path`` on one process and on two, from its initial weights.

    Returns how much the loss of two differs from that of one, and how much the gradient does, both relative.
    ``find`` returns the recipe. It is sent to the processes, so it must be picklable, such as
    ``functools.partial(recipes.of_run, path)``.

    Raises: ``RunError`` if one or two processes cannot compute the step.
    """
    try:
        alone = first_step(find, path)
    except (UserError, ValueError, RuntimeError) as error:
        raise RunError(f"the step cannot be computed: {str(error).splitlines()[0]}") from None
    try:
        both = run_ranks(first_step, 2, find, path, max_seconds=MOST_SECONDS)
    except (RuntimeError, TimeoutError) as error:
        raise RunError(f"two processes cannot compute the step: {str(error).strip().splitlines()[-1]}") from None
    (loss, gradient), (loss_of_two, gradient_of_two) = alone, both[0]
    size = float(gradient.norm())
    apart = float((gradient_of_two - gradient).norm()) / size if size else float(gradient_of_two.norm())
    return abs(loss_of_two - loss) / max(abs(loss), 1e-12), apart


def first_step(find: Callable[[], "Recipe"], path: Path) -> tuple[float, Tensor]:
    """The loss of the run's first step and its gradient as one vector, both averaged over the ranks of this run.

    The weights are the initial ones. Parts that draw random numbers, such as dropout, are switched off.
    """
    recipe, run = find(), RunFolder.open(path)
    config = engine.read_config(recipe, run)
    splits = engine.load_data(recipe, config, run)
    method = engine.build(recipe, config, steps=1).train()
    _switch_off_draws(method)
    rank, ranks = collectives.rank(), collectives.world_size()
    batches = StepBatches(
        splits.train,
        seed=config.train.seed,
        batch_size=min(config.train.batch_size // config.train.accumulate, MOST_IMAGES),
        crop=None if isinstance(splits.train, ImageSet) else method.crop_one,
        encode=method.encode_texts,
        classes_per_batch=config.data.classes_per_batch,
        repeats=config.data.repeats,
        rank=rank,
        world_size=ranks,
    )
    if recipe.support is not None:
        batches.support = recipe.support(config, splits.train, rank=rank, world_size=ranks)
    randomness.seed_torch(randomness.step_key(config.train.seed, 0, "layers"), torch.device("cpu"))
    batch = next(iter(batches.stream(0, 1, workers=0, device=torch.device("cpu"))))
    loss = method(method.views(batch, 0))["loss"]
    loss.backward()
    weights = [weight for weight in method.parameters() if weight.requires_grad]
    parts = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in weights]
    averaged: list[Any] = [loss.detach().float().reshape(1), torch.cat([part.flatten().float() for part in parts])]
    collectives.average_in_place(averaged)
    return float(averaged[0]), averaged[1]


def _switch_off_draws(method: nn.Module) -> None:
    """Sets parts that hold neither weights nor statistics to evaluation mode: among these are dropout and drop path."""
    for part in method.modules():
        if not [*part.parameters(), *part.buffers(), *part.children()]:
            part.eval()
