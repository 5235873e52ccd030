# SPDX-License-Identifier: Apache-2.0
"""What the families chapter measures beside its runs: the cost of a training step of each method."""

import time
from statistics import median

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from recipes_lib.config import override
from recipes_lib.data.load import load
from recipes_lib.data.loader import Batch, StepBatches
from recipes_lib.pretraining import engine
from recipes_lib.pretraining.recipe import Method
from recipes_lib.pretraining.scoring import DATA_SEED
from recipes_lib.recipes.families import masked, recipe
from recipes_lib.recipes.families.settings import Config

REPEATS = 7
"""Number of timed steps of each method."""


def cost(seed: int) -> dict[str, dict[str, float]]:
    """What a training step of each method's toy costs, divided by what SimCLR's costs.

    ``cost``: operations of matrix products and convolutions, forward and backward. ``time``: processor seconds of
    views, forward and backward pass, and teacher, the median over alternating steps on one thread.
    """
    torch.set_num_threads(1)
    toy = recipe.PRESETS["toy"]
    batches = StepBatches(load(toy.data, DATA_SEED).train, seed=seed, batch_size=toy.train.batch_size)
    methods = {
        name: _method(override(recipe.PRESETS[f"{name}_toy"], {"train.seed": seed}), batches) for name in recipe.METHODS
    }
    operations, seconds = {}, {name: [] for name in methods}
    for name, method in methods.items():
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            _step(method, batches[0], 0)
        operations[name] = counter.get_total_flops()
    for number in range(1, REPEATS + 1):  # alternating, so that a busy moment of the machine slows all
        for name, method in methods.items():
            start = time.process_time()
            _step(method, batches[number], number)
            seconds[name].append(time.process_time() - start)
    medians = {name: median(times) for name, times in seconds.items()}
    return {
        "cost": {name: operations[name] / operations["simclr"] for name in methods},
        "time": {name: medians[name] / medians["simclr"] for name in methods},
    }


def _method(config: Config, batches: StepBatches) -> Method:
    method = engine.build(recipe.RECIPE, config, config.train.steps)
    if isinstance(method, masked.BEiT):
        method.fit_words(batches)
    return method.train()


def _step(method: Method, batch: Batch, number: int) -> None:
    method.zero_grad()
    method(method.views(batch, number))["loss"].backward()
    method.after_step(number)
