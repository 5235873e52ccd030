# SPDX-License-Identifier: Apache-2.0
"""What the families chapter measures beside its runs: the cost of a step, and whether a loss tells how good a run is."""

import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from scipy.stats import spearmanr
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from recipes_lib.config import override
from recipes_lib.data.load import Splits, load
from recipes_lib.data.loader import Batch
from recipes_lib.pretraining import engine
from recipes_lib.pretraining.recipe import Method
from recipes_lib.pretraining.scoring import DATA_SEED
from recipes_lib.recipes.families import recipe
from recipes_lib.recipes.families.settings import Config

REPEATS = 7
"""Number of timed steps of each method."""
RATES = (3e-4, 1e-3, 3e-3, 1e-2)
"""Learning rates of the runs whose losses are compared with their accuracies."""
WEIGHTS = {"lejepa": ("loss.sigreg_weight", (0.01, 0.05, 0.2)), "vicreg": ("loss.covariance_weight", (0.2, 1.0, 5.0))}
"""Method -> the weight that is varied beside the learning rate, and its values: the preset's and two around it."""
COMPARED_STEPS = 200
"""Steps of each of these runs."""


def cost(seed: int) -> dict[str, dict[str, float]]:
    """What a training step of each method's toy costs, divided by what SimCLR's costs.

    ``cost``: operations of matrix products and convolutions, forward and backward. ``seconds``: processor seconds of
    cutting views, forward and backward pass and teacher, the median over alternating steps on one thread.
    """
    torch.set_num_threads(1)
    splits = load(recipe.PRESETS["toy"].data, DATA_SEED)
    methods = {name: _method(recipe.PRESETS[f"{name}_toy"], splits, seed) for name in recipe.METHODS}
    operations, seconds = {}, {name: [] for name in methods}
    for name, method in methods.items():
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            _step(method, splits, seed, 0)
        operations[name] = counter.get_total_flops()
    for number in range(1, REPEATS + 1):  # alternating, so that a busy moment of the machine slows all
        for name, method in methods.items():
            start = time.process_time()
            _step(method, splits, seed, number)
            seconds[name].append(time.process_time() - start)
    medians = {name: median(times) for name, times in seconds.items()}
    return {
        "cost": {name: operations[name] / operations["simclr"] for name in methods},
        "seconds": {name: medians[name] / medians["simclr"] for name in methods},
    }


def _method(config: Config, splits: Splits, seed: int) -> Method:
    method = engine.build(recipe.RECIPE, override(config, {"train.seed": seed}), config.train.steps)
    recipe.prepare(method, splits.train)
    return method.train()


def _step(method: Method, splits: Splits, seed: int, number: int) -> None:
    batch = method.config.train.batch_size
    indices = torch.arange(number * batch, (number + 1) * batch)
    images = splits.train.images[indices]
    views = method.views(Batch(indices=indices, epoch=0, images=images, labels=None), number)
    method.zero_grad()
    method(views)["loss"].backward()
    method.after_step(number)
    del seed


def losses_and_accuracies(seed: int) -> dict[str, Any]:
    """Spearman's correlation between the held-out loss and the k-NN accuracy over twelve runs of a method.

    The runs of LeJEPA and of VICReg vary the learning rate and one weight of the loss. A correlation of -1 means that
    the run with the lowest loss has the best features. Losses of other weights are other losses, so LeJEPA's two terms
    are weighted as in the preset before they are compared (and VICReg's three).
    """
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for name, (field, values) in WEIGHTS.items():
        rows = []
        for rate in RATES:
            for value in values:
                changes = {"optim.lr": rate, field: value, "train.seed": seed, "train.steps": COMPARED_STEPS}
                changes |= {"eval.baselines": "none", "train.checkpoint_every": COMPARED_STEPS}
                rows.append(_outcome(override(recipe.PRESETS[f"{name}_toy"], changes)))
        found[name] = {
            "spearman": float(spearmanr([row[0] for row in rows], [row[1] for row in rows]).statistic),
            "losses": [row[0] for row in rows],
            "accuracies": [row[1] for row in rows],
        }
    return found


def _outcome(config: Config) -> tuple[float, float]:
    """Held-out loss and k-NN accuracy of one run."""
    with TemporaryDirectory() as place:
        report = recipe.RECIPE.run(config, Path(place) / "run").report
    return report["diagnostics"]["held_out_loss"], report["scores"]["knn"]["method"]
