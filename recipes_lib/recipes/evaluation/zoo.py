# SPDX-License-Identifier: Apache-2.0
"""Trains many small networks and measures each with every probe that is cheap enough, with labels and without."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import nn

from recipes_lib.config import override
from recipes_lib.data.load import Splits, load
from recipes_lib.evaluation import label_free, probes
from recipes_lib.evaluation.features import Features, extract
from recipes_lib.evaluation.label_free import Looks
from recipes_lib.evaluation.trained_heads import best_head
from recipes_lib.pretraining import engine
from recipes_lib.pretraining.recipe import Method
from recipes_lib.pretraining.scoring import DATA_SEED, random_init
from recipes_lib.recipes.evaluation.claims import ACROSS, RATES, STEPS, TEST_IMAGES, VARIED
from recipes_lib.recipes.evaluation.ranking import LABEL_FREE
from recipes_lib.recipes.families import recipe as families
from recipes_lib.recipes.families.diagnostics import held_out_loss
from recipes_lib.recipes.families.settings import Config
from recipes_lib.training import folder

LINEAR_EPOCHS, MLP_EPOCHS = 30, 10
"""Passes of the two trained heads over the features: fewer than the probes' own 100, to afford many networks."""
_SILENT = {"eval.probes": [], "eval.baselines": "none", "train.checkpoint_every": 10_000}


def within(method: str, seed: int) -> dict[str, dict[str, float]]:
    """Nine runs of a method, three learning rates with three values of one of its settings: name -> metric -> value.

    The loss of all of them is computed with the preset's own setting: with another one it is another function.
    """
    preset, found = families.PRESETS[f"{method}_toy"], {}
    field, values = VARIED[method]
    for rate in RATES:
        for value in values:
            config = trained_config(method, seed, {"optim.lr": rate, field: value})
            trained = train(config)
            trained.config = replace(config, loss=preset.loss)
            found[f"lr {rate:g}, {field.partition('.')[2]} {value:g}"] = measure(config, trained)
    return found


def across(seed: int) -> dict[str, dict[str, float]]:
    """One run of each of ten methods, and the network before training: name -> metric -> value.

    ``untrained`` has batch norms whose statistics were estimated on training images; those of ``initial`` are as they
    were when the network was made, mean 0 and variance 1.
    """
    found = {}
    for method in ACROSS:
        config = trained_config(method, seed)
        found[method] = measure(config, train(config))
    config = trained_config("simclr", seed)
    for name, made in (("untrained", untrained(config)), ("initial", engine.build(families.RECIPE, config, 1))):
        found[name] = measure(config, made)
    return found


def trained_config(method: str, seed: int, changes: Mapping[str, Any] | None = None) -> Config:
    """The config of a short run of a method, as its preset has it but for ``changes``."""
    short = {"train.seed": seed, "train.steps": STEPS, "data.test_size": TEST_IMAGES, **_SILENT}
    return override(families.PRESETS[f"{method}_toy"], {**short, **(changes or {})})


def train(config: Config, path: Path | None = None) -> Method:
    """The trained method of a run of the families in the folder ``path``, which is not repeated if it is done.

    Without a path the run folder is removed at the end.
    """
    if path is None:
        with TemporaryDirectory() as place:
            return train(config, Path(place) / "run")
    if not folder.finished(path):
        families.RECIPE.run(config, path)
    return engine.reopen(families.RECIPE, path)[1]


def untrained(config: Config) -> Method:
    """The method before training, with batch norm statistics estimated on training images."""
    return random_init(config, engine.build(families.RECIPE, config, 1), data(config).train)


def data(config: Config) -> Splits:
    """The images that a config names."""
    return load(config.data, DATA_SEED)


def look(config: Config) -> dict[str, Any]:
    """Arguments of feature extraction for a network with this config."""
    views = config.views
    return {"image_size": views.image_size, "normalize": views.normalize, "resize": views.resize}


def features(config: Config, backbone: nn.Module, splits: Splits) -> tuple[Features, Features]:
    """The features of training and test images."""
    return extract(backbone, splits.train, **look(config)), extract(backbone, splits.test, **look(config))


def measure(config: Config, method: Method) -> dict[str, float]:
    """Everything that is measured of a network, by name.

    The label-free metrics of features of training images; ``loss`` on test images with training's augmentation, if there
    is a batch of them; and :func:`accuracies`.
    """
    splits = data(config)
    views = Looks(**look(config), views=config.views, seed=DATA_SEED)
    found = label_free.measure(method.eval().backbone, splits.train, LABEL_FREE, views)
    if len(splits.test) >= config.train.batch_size:
        found["loss"] = held_out_loss(method, splits.test)
    return found | accuracies(config, method)


def accuracies(config: Config, method: Method) -> dict[str, float]:
    """Accuracies on test images: ``knn``, ``lowshot`` (five labelled images per class), ``linear`` and ``mlp``.

    The last two are heads with several learning rates, one of which is chosen on held-out training images.
    """
    splits = data(config)
    train, test = features(config, method.backbone, splits)
    labels = splits.train.labels, splits.test.labels
    asked = replace(config.eval, probes=("knn", "lowshot"))
    found = probes.run_probes(asked, train, labels[0], test, labels[1], seed=DATA_SEED).scores
    for name, hidden, epochs in (("linear", 0, LINEAR_EPOCHS), ("mlp", probes.MLP_WIDTH, MLP_EPOCHS)):
        sides = train.before_norm, labels[0], test.before_norm, labels[1]
        found[name] = best_head(*sides, seed=DATA_SEED, hidden=hidden, epochs=epochs).accuracy
    return found
