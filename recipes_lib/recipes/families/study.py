# SPDX-License-Identifier: Apache-2.0
"""What the families chapter measures beside its runs: the cost of a step, and whether a loss tells how good a run is."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from scipy.stats import spearmanr
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from recipes_lib.config import override
from recipes_lib.data.load import load
from recipes_lib.data.loader import Batch, StepBatches
from recipes_lib.pretraining import engine
from recipes_lib.pretraining.recipe import Method
from recipes_lib.pretraining.scoring import DATA_SEED
from recipes_lib.recipes.families import masked, recipe
from recipes_lib.recipes.families.diagnostics import held_out_loss
from recipes_lib.recipes.families.settings import Config

REPEATS = 7
"""Number of timed steps of each method."""
RATES = (1e-3, 3e-3, 1e-2)
"""Learning rates of the runs whose losses are compared with their accuracies."""
WEIGHTS = {"lejepa": ("loss.sigreg_weight", (0.01, 0.05, 0.2)), "vicreg": ("loss.covariance_weight", (0.2, 1.0, 5.0))}
"""Method -> the weight that is varied beside the learning rate, and its values: the preset's, and a lower and a higher one."""
COMPARED_STEPS = 150
"""Number of steps of each of these runs."""


def cost(seed: int) -> dict[str, dict[str, float]]:
    """What a training step of each method's toy costs, divided by what SimCLR's costs.

    ``cost``: operations of matrix products and convolutions, forward and backward. ``seconds``: processor seconds of
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
        "seconds": {name: medians[name] / medians["simclr"] for name in methods},
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


def losses_and_accuracies(seed: int) -> dict[str, Any]:
    """Spearman's correlation of the loss on test images and the k-NN accuracy, over nine runs of LeJEPA and of VICReg.

    The runs of a method vary the learning rate and one weight of the loss. A correlation of -1 means that runs with lower
    losses have better features. With other weights a loss is another function, so all losses are computed with the
    preset's weights. ``none``: 0, the correlation where there is no relation.
    """
    torch.set_num_threads(1)
    found: dict[str, Any] = {"none": 0.0}
    for name in WEIGHTS:
        rows = list(_outcomes(name, seed))
        losses, accuracies = ([row[place] for row in rows] for place in (0, 1))
        correlation = float(spearmanr(losses, accuracies).statistic)
        found[name] = {"spearman": correlation, "losses": losses, "accuracies": accuracies}
    return found


def _outcomes(name: str, seed: int) -> Iterator[tuple[float, float]]:
    """Loss on test images and k-NN accuracy of each run of a method."""
    preset, (field, values) = recipe.PRESETS[f"{name}_toy"], WEIGHTS[name]
    test = load(preset.data, DATA_SEED).test
    short = {"train.seed": seed, "train.steps": COMPARED_STEPS, "eval.baselines": "none"}
    for rate in RATES:
        for value in values:
            config = override(preset, {**short, "optim.lr": rate, field: value})
            with TemporaryDirectory() as place:
                result = recipe.RECIPE.run(config, Path(place) / "run")
                method = engine.reopen(recipe.RECIPE, result.folder)[1]
            method.config = replace(config, loss=preset.loss)
            yield held_out_loss(method, test), result.report["scores"]["knn"]["method"]
