# SPDX-License-Identifier: Apache-2.0
"""Measures what the natural variation chapter puts to the test: three studies, each with instances drawn by the seed.

- :func:`pretrained`: EfficientNet-Lite0, trained on ImageNet and frozen, on 24 classes of 3-D objects in twelve pairs of
  near twins; needs the extra ``objects``;
- :func:`trained`: a small network, trained from scratch on twelve classes of the Pantry in six pairs of near twins;
- :func:`shared`: whether networks that learned with labels and without rank the factors alike, on the Pantry.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from recipes_lib.factors import inference
from recipes_lib.recipes.natural_variation import recipe
from recipes_lib.recipes.natural_variation.recipe import (
    Config,
    DiversityConfig,
    LearnConfig,
    SourceConfig,
    TransferConfig,
)

LITE0, CONVNET = "lite0", "convnet"
WITHOUT_LABELS = ("cooked/msn", "cooked/pmsn")
"""Networks of this book that were trained without labels, on other pictures of the Pantry."""
_ON_THE_CPU = LearnConfig(regime="probe", network_size=64, threads=1, device="cpu")

PRETRAINED = Config(
    models=(LITE0,),
    data=SourceConfig(name="objects", image_size=64, pairs=12, train_instances=8, test_instances=8, values=3),
    learn=_ON_THE_CPU,
    diversity=DiversityConfig(shares=(0.25, 0.5, 1.0)),
    transfer=TransferConfig(draws=10, twins=True),
)
"""The study of a pretrained network; its seeds are set by :func:`pretrained`."""
TRAINED = Config(
    models=(CONVNET,),
    data=SourceConfig(name="pantry_twins", image_size=32, train_instances=20, test_instances=20, values=4),
    learn=replace(_ON_THE_CPU, regime="finetune", network_size=32, steps=150),
    diversity=DiversityConfig(shares=(0.25, 0.5, 1.0)),
    transfer=TransferConfig(draws=5, twins=True),
)
"""The study of a network that is trained from scratch."""
SHARED = Config(
    models=(*WITHOUT_LABELS, LITE0),
    data=SourceConfig(name="pantry", image_size=32, train_instances=12, test_instances=12, values=3),
    learn=_ON_THE_CPU,
    diversity=DiversityConfig(factors=()),
    transfer=TransferConfig(factors=(), draws=0),
)
"""The study of networks that learned with labels and without."""


def pretrained(seed: int) -> dict[str, Any]:
    """The metrics of :func:`metrics` for EfficientNet-Lite0 on 3-D objects. Raises: ``DataError`` without ``objects``."""
    return metrics(_report(PRETRAINED, seed), LITE0)


def trained(seed: int) -> dict[str, Any]:
    """The metrics of :func:`metrics` for a small network on the Pantry."""
    return metrics(_report(TRAINED, seed), CONVNET)


def shared(seed: int) -> dict[str, Any]:
    """The gaps of networks with labels and without, and the rank correlation between the two kinds.

    ``gaps``: model -> factor -> gap; ``correlation``: Spearman's rank correlation, over the five factors, of the mean gaps
    of the two kinds; ``chance``: its mean if factors are shuffled, which is 0.
    """
    models = _report(SHARED, seed)["models"]
    gaps = {name: {factor: cell["gap"] for factor, cell in row["gaps"].items()} for name, row in models.items()}
    without = np.mean([list(gaps[name].values()) for name in WITHOUT_LABELS], axis=0)
    correlation = inference.rank_correlation(without, np.array(list(gaps[LITE0].values())))
    return {"gaps": gaps, "correlation": correlation, "chance": 0.0}


def metrics(report: Mapping[str, Any], model: str) -> dict[str, Any]:
    """What claims read of a report: ``canonical`` and ``accuracy`` by factor, and of pose the other parts.

    ``share``: percent of the instances -> accuracy on varied poses, and ``canonical_at`` -> accuracy on canonical ones;
    ``gain``: what accuracy gains from 0 to 50 %, and from 50 to 100 %, of the instances, and ``none``: 0.
    ``transfer`` and ``twins``: their means over draws.
    """
    row = report["models"][model]
    shares = report["diversity"][model]["pose"]
    varied = {share: cell["varied"] for share, cell in shares.items()}
    parts = {
        name: {key: value for key, value in report[name][model]["pose"].items() if isinstance(value, float)}
        for name in ("transfer", "twins")
    }
    return {
        "canonical": row["canonical"],
        "accuracy": {factor: cell["accuracy"] for factor, cell in row["gaps"].items()},
        "worst_case": {factor: cell["worst_case"] for factor, cell in row["gaps"].items()},
        "share": varied,
        "canonical_at": {share: cell["canonical"] for share, cell in shares.items()},
        "gain": {"first_half": varied["50"] - varied["0"], "second_half": varied["100"] - varied["50"], "none": 0.0},
        **parts,
    }


def fingerprint() -> dict[str, Any]:
    """Gaps of a very small study on the Pantry; they change if the numerics change."""
    return recipe.fingerprint(TRAINED)


def fingerprint_pretrained() -> dict[str, Any]:
    """Gaps of a very small study of the pretrained network on 3-D objects; they change if the numerics change."""
    return recipe.fingerprint(PRETRAINED)


def _report(config: Config, seed: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    own = replace(config, data=replace(config.data, seed=seed), learn=replace(config.learn, seed=seed))
    with TemporaryDirectory() as place:
        return recipe.run(own, Path(place) / "run").report
