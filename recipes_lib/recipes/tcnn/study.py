# SPDX-License-Identifier: Apache-2.0
"""Trains convnets and T-CNNs that start from them, for the chapter's claims; see :mod:`recipes_lib.recipes.tcnn.claims`."""

from dataclasses import replace
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any

import torch

from recipes_lib.config import override
from recipes_lib.data.images import ImageSet
from recipes_lib.models.recast import recast
from recipes_lib.models.tcnn import RECAST
from recipes_lib.pretraining import class_scores, engine
from recipes_lib.pretraining.engine import Result
from recipes_lib.recipes.tcnn import recipe as tcnn
from recipes_lib.training.folder import RunFolder
from recipes_lib.views.multicrop import eval_view

CNN: dict[str, Any] = {
    "model.arch": "convnet_small",
    "model.gate": "linear",
    "model.gate_logit": 10.0,
    "model.locality_strength": None,
}
"""What makes a run of a T-CNN a run of its convnet."""
CNN_RATE = {"optim.lr": 0.02}
"""The convnet's own best learning rate when it is trained on: twice that of the T-CNN; see ``data/searches/tcnn.json``."""
DIGITS: dict[str, Any] = {"data.name": "digits", "data.train_size": 2000}
"""One digit in a random ink: what tells its class is close together."""
CORRUPTED: dict[str, Any] = {
    "eval.probes": ("accuracy", "corruptions"),
    "eval.corruption_severities": (1, 3, 5),
    "eval.corruption_images": 500,
}
STEPS = {"cnn": 400, "half": 200, "finetune": 250, "all": 650}
"""Optimiser steps: of the convnet, of a half-trained one, of fine-tuning, and of everything that is trained as long as both."""

GATES: dict[str, dict[str, Any]] = {
    "exact": {"gate": "linear"},
    "near": {"gate": "near", "gate_logit": 4.0},
    "open": {"gate": "near", "gate_logit": 1.0, "locality_strength": 1.0},
}
"""Starts of a recast layer: exactly the convolution; that of the preset ``finetune``; ConViT's."""
COMPARED = 200
"""Number of test images whose logits are compared before and after the conversion."""


def fine_tuning(seed: int) -> dict[str, dict[str, float]]:
    """A convnet, the same trained on as a convnet, and as a T-CNN: by arm, accuracies and what the gates did.

    ``base`` also has what :func:`conversion` says of each of :data:`GATES`. Each arm has:

    ``accuracy``: on test images; ``corruptions``: the mean over 15 corruptions; ``noise``: on images with Gaussian noise;
    ``rows``: on images whose every fourth row is black; and the diagnostics of the recipe.
    """
    with TemporaryDirectory() as place:
        found = _trained_on(Path(place), seed, {}, CORRUPTED)
        converted = {name: conversion(Path(place) / "base", **gate) for name, gate in GATES.items()}
        return found | {"base": found["base"] | converted}


def starts(seed: int) -> dict[str, dict[str, float]]:
    """A convnet, a hybrid from scratch, and a T-CNN from a half-trained convnet, all of as many steps: as :func:`fine_tuning`."""
    with TemporaryDirectory() as place:
        folder = Path(place)
        half = _run(folder / "half", "simmer", seed, {"train.steps": STEPS["half"]})
        rest = {"model.init": folder / "half", "train.steps": STEPS["all"] - STEPS["half"]}
        return {
            "half": half,
            "from_half": _run(folder / "from_half", "finetune", seed, rest),
            "hybrid": _run(folder / "hybrid", "toy", seed, {"train.steps": STEPS["all"]}),
            "cnn_all": _run(folder / "cnn_all", "simmer", seed, {"train.steps": STEPS["all"]}),
        }


def local_task(seed: int) -> dict[str, dict[str, float]]:
    """The arms of :func:`fine_tuning` on single digits, whose classes need no comparison."""
    with TemporaryDirectory() as place:
        return _trained_on(Path(place), seed, DIGITS, {})


def gate_starts(seed: int) -> dict[str, dict[str, float]]:
    """The T-CNN of :func:`fine_tuning` with other gates at the start: as :func:`fine_tuning`."""
    changes: dict[str, dict[str, Any]] = {
        "near_4": {},
        "near_10": {"model.gate_logit": 10.0},
        "near_16": {"model.gate_logit": 16.0},
        "linear": {"model.gate": "linear", "model.gate_logit": 10.0},
    }
    with TemporaryDirectory() as place:
        folder = Path(place)
        found = {"base": _run(folder / "base", "simmer", seed, {"train.steps": STEPS["cnn"]})}
        start = {"model.init": folder / "base", "train.steps": STEPS["finetune"]}
        return found | {name: _run(folder / name, "finetune", seed, start | own) for name, own in changes.items()}


def _trained_on(folder: Path, seed: int, data: dict[str, Any], scores: dict[str, Any]) -> dict[str, dict[str, float]]:
    """A convnet on ``data``, and from its weights a convnet and a T-CNN, which are scored by ``scores`` too."""
    base = _run(folder / "base", "simmer", seed, {"train.steps": STEPS["cnn"], **data})
    start = {"model.init": folder / "base", "train.steps": STEPS["finetune"], **data, **scores}
    cnn = _run(folder / "cnn", "finetune", seed, {**start, **CNN, **CNN_RATE})
    return {"base": base, "cnn": cnn, "tcnn": _run(folder / "tcnn", "finetune", seed, start)}


def _run(out: Path, preset: str, seed: int, changes: dict[str, Any]) -> dict[str, float]:
    """Trains a preset with ``changes`` in the folder ``out``, and returns its numbers."""
    fixed = {"eval.baselines": "none", "train.checkpoint_every": 10_000, "train.seed": seed}
    config = override(tcnn.PRESETS[preset], {**fixed, **changes})
    report = _train(config, out).report
    found = {name: arms["method"] for name, arms in report["scores"].items()} | report["diagnostics"]
    if "corruptions" in report:
        errors = report["corruptions"]["method"]["errors"]["gaussian_noise"].values()
        found["noise"] = 1 - mean(errors)
        found["rows"] = without_rows(out)
    return found


def _train(config: tcnn.Config, out: Path) -> Result:
    return tcnn.RECIPE.run(config, out)


def without_rows(out: Path, every: int = 4) -> float:
    """The accuracy of a run on its test images with every fourth row black."""
    config, method = engine.reopen(tcnn.RECIPE, out)
    test = engine.load_data(tcnn.RECIPE, config, RunFolder.open(out)).test
    if not isinstance(test, ImageSet):
        raise TypeError(f"{out} was trained on image files; rows are blanked in data sets that are drawn.")
    images = test.images.clone()
    images[:, :, ::every] = 0
    return class_scores.accuracy(method, config, replace(test, images=images))


def conversion(out: Path, **gate: Any) -> dict[str, float]:
    """How the answers of a run's convnet change when its last layers are recast with the options ``gate`` of :func:`recast`.

    ``change``: the largest change of a logit on test images, as a share of the largest logit; ``agreement``: the share of images
    with the same answer.
    """
    config, cnn = engine.reopen(tcnn.RECIPE, out)
    test = engine.load_data(tcnn.RECIPE, config, RunFolder.open(out)).test
    views = eval_view(test.images[:COMPARED], config.data.image_size, config.views.normalize, config.views.resize)
    with torch.random.fork_rng(devices=[]):  # queries and keys are drawn
        torch.manual_seed(config.train.seed)
        twin = recast(cnn.eval().backbone, RECAST["tcnn_convnet_small"], **gate)
    # with gradients, because without them local heads are computed by the convolution itself
    wanted, got = cnn.classify(views).detach(), cnn.head(twin(views)).detach()
    same = got.argmax(dim=1).eq(wanted.argmax(dim=1)).float().mean()
    return {"change": float((got - wanted).abs().max() / wanted.abs().max()), "agreement": float(same)}
