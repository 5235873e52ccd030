# SPDX-License-Identifier: Apache-2.0
"""What the chapter on evaluation measures: zoos of small networks, the traps, fine-tuning, and the dense probe."""

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from recipes_lib.config import override
from recipes_lib.data import pantry
from recipes_lib.data.images import ImageSet
from recipes_lib.data.load import Splits
from recipes_lib.data.splits import held_out
from recipes_lib.distributed.world import start
from recipes_lib.evaluation import dense, finetune, label_free
from recipes_lib.evaluation.knn import weighted_knn
from recipes_lib.evaluation.spectrum import rankme
from recipes_lib.objectives.masked import patchify
from recipes_lib.pretraining import engine
from recipes_lib.pretraining.recipe import Method
from recipes_lib.pretraining.scoring import DATA_SEED
from recipes_lib.recipes.evaluation import traps, zoo
from recipes_lib.recipes.evaluation.claims import (
    DENSE_STEPS,
    DENSE_TEST,
    DENSE_TRAIN,
    FINETUNED,
    FINETUNING,
    ON_TRANSFORMER,
    TRAP_STEPS,
)
from recipes_lib.recipes.evaluation.ranking import ACCURACIES, LABEL_FREE, beaten, correlations
from recipes_lib.recipes.families import recipe as families
from recipes_lib.recipes.families.settings import Config
from recipes_lib.views.multicrop import eval_view

SIDES = (16, 24, 32, 40, 48, 64)
"""Sides in pixels at which a network that was trained at 32 is evaluated."""
HELD_OUT = 0.2
"""The share of the training images that is held out for the choice of k-NN's settings."""


def simclr(seed: int) -> dict[str, Any]:
    """SimCLR's nine runs; see :func:`_within`."""
    return _within("simclr", seed)


def vicreg(seed: int) -> dict[str, Any]:
    """VICReg's nine runs; see :func:`_within`."""
    return _within("vicreg", seed)


def lejepa(seed: int) -> dict[str, Any]:
    """LeJEPA's nine runs; see :func:`_within`."""
    return _within("lejepa", seed)


def _within(method: str, seed: int) -> dict[str, Any]:
    """``rows``: what was measured of each run; ``spearman``: each metric's rank correlation with k-NN over the runs.

    ``none``: 0, the correlation where there is no relation.
    """
    torch.set_num_threads(1)
    rows = zoo.within(method, seed)
    return {"rows": rows, "spearman": correlations(rows, (*LABEL_FREE, "loss", *ACCURACIES)), "none": 0.0}


def across(seed: int) -> dict[str, Any]:
    """One run of each of ten methods, and the untrained network.

    ``rows`` and ``none`` as :func:`_within`; ``spearman`` over the ten trained networks alone, ``with_untrained`` with
    the untrained one; ``beaten`` and ``beaten_by_rotation``: metric -> the share of the trained networks that the untrained
    network and the network trained on rotations leave behind by this metric.
    """
    torch.set_num_threads(1)
    rows = zoo.across(seed)
    trained = {name: row for name, row in rows.items() if name not in ("untrained", "initial")}
    both = trained | {"untrained": rows["untrained"]}
    metrics = (*LABEL_FREE, *ACCURACIES)
    return {
        "rows": rows,
        "spearman": correlations(trained, metrics),
        "with_untrained": correlations(both, metrics),
        "beaten": {name: beaten(both, name, "untrained") for name in (*metrics, "knn")},
        "beaten_by_rotation": {name: beaten(trained, name, "rotation") for name in (*metrics, "knn")},
        "none": 0.0,
    }


def finetuning(seed: int) -> dict[str, Any]:
    """Accuracies of a few methods' networks, frozen (``knn``, ``linear``) and fine-tuned (``finetune``), in ``rows``.

    ``range``: the best less the worst of the trained networks, by each of the three.
    """
    torch.set_num_threads(1)
    rows: dict[str, dict[str, float]] = {}
    for name in FINETUNED:
        config = zoo.trained_config(name if name != "untrained" else "simclr", seed)
        method = zoo.train(config) if name != "untrained" else zoo.untrained(config)
        found = zoo.accuracies(config, method)
        rows[name] = {"knn": found["knn"], "linear": found["linear"], "finetune": _finetuned(config, method)}
    trained = [row for name, row in rows.items() if name != "untrained"]
    spans = {kind: [row[kind] for row in trained] for kind in ("knn", "linear", "finetune")}
    return {"rows": rows, "range": {kind: max(values) - min(values) for kind, values in spans.items()}}


def _finetuned(config: Config, method: Method) -> float:
    """The test accuracy after fine-tuning on all training images."""
    settings = override(config, FINETUNING)
    with TemporaryDirectory() as place:
        where = {"folder": Path(place) / "finetune", "place": start("cpu"), "go_on": ""}
        return finetune.finetune(method.backbone, None, zoo.data(settings), settings, **where)


def mistakes(seed: int) -> dict[str, Any]:
    """What mistakes in evaluation do to one SimCLR network; ``knn`` has k-NN accuracies on test images.

    ``knn.cosine``, ``knn.product`` and ``knn.distance``: features of length 1, and as they are (:func:`similarities`).
    ``knn.augmented``: training's augmentation in place of the evaluation view. ``knn.sides``: at other sides in pixels.
    ``initial`` and ``estimated``: ``knn`` and ``rankme`` of the untrained network with its first batch norm statistics,
    and with statistics of training images. ``noise`` and ``network``: label-free metrics. ``optimism``: size of the set
    that a setting is chosen on -> :func:`traps.optimism`; ``settings``: the number of settings.
    """
    torch.set_num_threads(1)
    config = override(zoo.trained_config("simclr", seed), {"train.steps": TRAP_STEPS})
    return {**traps_of(config, zoo.train(config), seed), **_statistics(config)}


def traps_of(config: Config, method: Method, seed: int) -> dict[str, Any]:
    """The part of :func:`mistakes` that is of a trained network."""
    splits, backbone = zoo.data(config), method.eval().backbone
    train, test = (found.final for found in zoo.features(config, backbone, splits))
    labels, wanted = splits.train.labels, splits.test.labels
    knn: dict[str, Any] = {
        name: float(traps.right(similarity, labels, wanted).double().mean())
        for name, similarity in traps.similarities(train, test).items()
    }
    one = replace(config.views, global_views=0, local_views=0)
    knn["augmented"] = _knn(splits, *(traps.see_augmented(backbone, part, one, seed) for part in _both(splits)))
    how = {"normalize": config.views.normalize, "resize": config.views.resize}
    knn["sides"] = {
        str(side): _knn(splits, *(traps.see_at(backbone, part, side, **how) for part in _both(splits)))
        for side in SIDES
    }
    few = train[: label_free.MOST_IMAGES]
    return {
        "knn": knn,
        "noise": traps.of_noise(*few.shape, seed),
        "network": {"rankme": rankme(few)},
        "optimism": optimism(train, labels, test, wanted, seed),
        "settings": len(traps.TREATMENTS) * len(traps.SETTINGS),
    }


def optimism(train: Tensor, labels: Tensor, test: Tensor, wanted: Tensor, seed: int) -> dict[str, dict[str, float]]:
    """:func:`traps.optimism` for each size, of k-NN's settings: the bank is the training images that are not held out."""
    aside = held_out(torch.arange(len(train)), HELD_OUT, seed)
    bank, names = train[~aside], labels[~aside]
    on_test, held = traps.answers(bank, names, test, wanted), traps.answers(bank, names, train[aside], labels[aside])
    sizes = [size for size in traps.SMALL_SETS if size < len(test) and size <= int(aside.sum())]
    return {str(size): traps.optimism(on_test, held, size=size, seed=seed) for size in sizes}


def _statistics(config: Config) -> dict[str, dict[str, float]]:
    splits, found = zoo.data(config), {}
    for name, method in (("initial", engine.build(families.RECIPE, config, 1)), ("estimated", zoo.untrained(config))):
        train, test = (part.final for part in zoo.features(config, method.backbone, splits))
        found[name] = {"knn": _knn(splits, train, test), "rankme": rankme(train[: label_free.MOST_IMAGES])}
    return found


def _both(splits: Splits) -> tuple[ImageSet, ImageSet]:
    return splits.train, splits.test


def _knn(splits: Splits, train: Tensor, test: Tensor) -> float:
    return weighted_knn(train, splits.train.labels, test, splits.test.labels)


def dense_probes(seed: int) -> dict[str, Any]:
    """One transformer trained in two ways, and untrained: is a thing's class in the token at its place?

    ``rows``: name -> ``knn`` (of the mean of the tokens, all images), ``token_accuracy`` and ``mean_iou`` of the dense
    probe. ``pixels``: the same probe on the pixels of each patch; ``place``: on the number of the patch alone.
    """
    torch.set_num_threads(1)
    rows: dict[str, dict[str, float]] = {}
    for name in ON_TRANSFORMER:
        config = transformer_config(name, seed)
        method = zoo.train(config) if config.train.steps > 1 else engine.build(families.RECIPE, config, 1)
        splits = zoo.data(config)
        train, test = (part.final for part in zoo.features(config, method.eval().backbone, splits))
        few = _few(splits)
        tokens = [dense.extract_tokens(method.backbone, part, **zoo.look(config)) for part in _both(few)]
        rows[name] = {"knn": _knn(splits, train, test), **dense_scores(few, *tokens, config)}
    rows["pixels"] = dense_scores(few, *(_patches(part, config) for part in _both(few)), config)
    places = [torch.eye(tokens[0].shape[1]).expand(len(part), -1, -1) for part in _both(few)]
    rows["place"] = dense_scores(few, *places, config)
    return {"rows": rows}


def transformer_config(name: str, seed: int) -> Config:
    """The config of one of the networks of the dense probe; one that is not trained has a single step."""
    method, changes = ON_TRANSFORMER[name]
    return override(zoo.trained_config(method, seed), {"train.steps": DENSE_STEPS[name], **changes})


def _few(splits: Splits) -> Splits:
    """The images of the dense probe, whose masks are rendered."""
    kept = [
        part.select(torch.arange(min(most, len(part))))
        for part, most in zip(_both(splits), (DENSE_TRAIN, DENSE_TEST), strict=True)
    ]
    return Splits(*kept)


def dense_scores(splits: Splits, train: Tensor, test: Tensor, config: Config) -> dict[str, float]:
    """The dense probe of tokens [N, T, D] of training and test images, on the true masks of these images."""
    grid = round(train.shape[1] ** 0.5)
    labels = [dense.token_labels(pantry.true_masks(part), grid) for part in _both(splits)]
    found = dense.dense_probe(train, labels[0], test, labels[1], seed=DATA_SEED)
    return {"token_accuracy": found.accuracy, "mean_iou": found.mean_iou}


def _patches(images: ImageSet, config: Config) -> Tensor:
    """The pixels of each patch.  N images -> [N, T, 3 * patch^2]"""
    views = config.views
    seen = eval_view(images.images, views.image_size, views.normalize, views.resize)
    return patchify(seen, config.model.patch_size)
