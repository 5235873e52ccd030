# SPDX-License-Identifier: Apache-2.0
"""Runs all the probes that a config asks for on the features of the training and test images."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from recipes_lib.config import LABEL_FREE_PROBES, EvalConfig
from recipes_lib.data import labelled as labelled_list
from recipes_lib.data import splits
from recipes_lib.data.images import UNLABELLED, ImageFiles, ImageSet
from recipes_lib.data.load import Splits
from recipes_lib.distributed import collectives
from recipes_lib.errors import DataError
from recipes_lib.evaluation import finetune, readout
from recipes_lib.evaluation.features import Features
from recipes_lib.evaluation.knn import weighted_knn
from recipes_lib.evaluation.linear import linear_probe
from recipes_lib.evaluation.lowshot import low_shot
from recipes_lib.evaluation.snn import nearest_neighbours
from recipes_lib.evaluation.trained_heads import best_head

MLP_WIDTH = 512
"""Units of the hidden layer of the probe ``mlp``."""


@dataclass(frozen=True)
class ProbeScores:
    """The scores of the probes; keys are the names in ``EvalConfig.probes``."""

    scores: dict[str, float]
    """Test accuracy, in [0, 1]."""
    spread: dict[str, float]
    """Standard deviation over the choices of labelled images; only ``lowshot`` has one."""


def require_labels(data: Splits, config: EvalConfig, labelled: Path | None = None) -> None:
    """Checks, before training, that the probes of ``config`` can be run on ``data`` after it.

    Raises: ``DataError`` in one line if labels (or true factors) are missing or too few, or the file ``labelled`` does
    not fit the images.
    """
    if "factors" in config.probes:
        _need_factors(data)
    if set(config.probes) <= {"factors"}:
        return
    train = data.labelled_train
    if data.test.labels is None:
        raise DataError(
            "The test images have no labels, and a probe needs them. Add them, or ask for no probe: --eval.probes with no name."
        )
    if "knn" in config.probes:
        _need_neighbours(config.neighbours, len(train))
    if "lowshot" in config.probes:
        chosen = labelled_indices(labelled, data)
        if chosen is None:
            chosen = splits.few_per_class(train.labels, config.labels_per_class, seed=0)
        few = train.labels[chosen].unique()
        if len(few) < 2 <= len(train.labels.unique()):
            raise DataError(f"The labelled images are all of class {few.item()}. Low-shot scores need two classes.")
    if "finetune" in config.probes:
        balanced = finetune.balanced_classes(config, train)
        finetune.global_batch(config.finetune_batch_size, len(train), collectives.world_size(), balanced)
    if len(classes := train.labels.unique()) < 2:
        name = train.class_names[classes.item()]
        raise DataError(
            f"The labelled training images are all of class {name!r}. Every score would be 1: probes need two classes."
        )


def labelled_indices(path: Path | None, data: Splits) -> Tensor | None:
    """The indices (int64) in ``data.labelled_train`` of the images that the file ``path`` lists; None without a file.

    Raises: ``DataError`` for a line that names no labelled image.
    """
    if path is None:
        return None
    train = data.train
    unlabelled = [str(train.names[index]) for index in (train.labels == UNLABELLED).nonzero()[:, 0].tolist()]
    return labelled_list.indices(
        path,
        [str(name) for name in data.labelled_train.names],
        root=train.root if isinstance(train, ImageFiles) else None,
        aside=data.aside | dict.fromkeys(unlabelled, "has no label"),
    )


def read_factors(train: Features, train_images: ImageSet, test: Features, test_images: ImageSet) -> dict[str, float]:
    """How well a linear map predicts each true factor from the features before the last norm, in [0, 1].

    ``train`` and ``test`` must hold the features of all images: the factors of unlabelled images are known too. The
    class counts as a factor if all images have labels.
    """
    sides = train_images, test_images
    open_labels = all(images.labels is not None and bool((images.labels != UNLABELLED).all()) for images in sides)
    known = [({"label": images.labels} if open_labels else {}) | images.factors for images in sides]
    return readout.factor_scores(train.before_norm, known[0], test.before_norm, known[1])


def run_probes(
    config: EvalConfig,
    train: Features,
    train_labels: Tensor | None,
    test: Features,
    test_labels: Tensor | None,
    *,
    seed: int,
    labelled: Tensor | None = None,
    device: torch.device | str = "cpu",
) -> ProbeScores:
    """Scores frozen features with the probes that need nothing but features and labels, as far as ``config`` asks.

    k-NN compares the final features; the linear, MLP and low-shot probes read those before the last norm. Soft nearest
    neighbours (``snn``) compare the embeddings if there are any, else the final features. ``factors``, ``corruptions``,
    ``finetune`` and the probes that need no labels are skipped here.

    ``labelled`` (int64, indices among the rows of ``train`` that have a label) are the images of the low-shot probe;
    None draws them, ``config.lowshot_splits`` times. ``seed`` draws them and orders the linear probe's batches. All
    probes but the low-shot probe run on ``device``.

    Shapes: labels int64 [len(train)] and [len(test)]; they may be None if no probe is asked for.

    Raises: ``DataError`` in one line if there are too few labels.
    """
    if not set(config.probes) - {"factors", "corruptions", "finetune", *LABEL_FREE_PROBES}:
        return ProbeScores({}, {})
    known = (train_labels != UNLABELLED).nonzero()[:, 0]
    if len(known) < len(train_labels):
        train, train_labels = train.select(known), train_labels[known]
    labels = {"train_labels": train_labels.to(device), "test_labels": test_labels.to(device)}
    scores, spread = {}, {}
    for probe in config.probes:
        match probe:
            case "knn":
                _need_neighbours(config.neighbours, len(train))
                scores[probe] = weighted_knn(
                    train.final.to(device),
                    test=test.final.to(device),
                    k=config.neighbours,
                    temperature=config.neighbour_temperature,
                    **labels,
                )
            case "linear":
                rows, test_rows = train.before_norm.to(device), test.before_norm.to(device)
                scores[probe] = linear_probe(rows, test=test_rows, seed=seed, **labels)
            case "linear_sweep" | "mlp":
                rows, test_rows = train.before_norm.to(device), test.before_norm.to(device)
                hidden = MLP_WIDTH if probe == "mlp" else 0
                scores[probe] = best_head(rows, test=test_rows, seed=seed, hidden=hidden, **labels).accuracy
            case "lowshot":
                choices = _draw_labelled(config, train_labels, seed) if labelled is None else [labelled]
                penalty = config.lowshot_penalty
                result = low_shot(train.before_norm, test=test.before_norm, choices=choices, penalty=penalty, **labels)
                scores[probe], spread[probe] = result.mean, result.std
            case "snn":
                rows, test_rows = (f.final if f.embedding is None else f.embedding for f in (train, test))
                scores[probe] = nearest_neighbours(rows.to(device), test=test_rows.to(device), **labels)
    return ProbeScores(scores, spread)


def _draw_labelled(config: EvalConfig, labels: Tensor, seed: int) -> list[Tensor]:
    first = seed * config.lowshot_splits  # different seeds get different choices
    seeds = range(first, first + config.lowshot_splits)
    return [splits.few_per_class(labels, config.labels_per_class, seed) for seed in seeds]


def _need_factors(data: Splits) -> None:
    if not all(isinstance(images, ImageSet) and images.factors for images in (data.train, data.test)):
        raise DataError(
            "The probe factors needs images whose true factors are known: --data.name pantry or digits. Use another probe."
        )
    if len(data.train) < readout.FEWEST:
        raise DataError(
            f"The probe factors needs {readout.FEWEST} training images, and there are {len(data.train)}. Use more images."
        )


def _need_neighbours(neighbours: int, available: int) -> None:
    if neighbours > available:
        raise DataError(
            f"eval.neighbours = {neighbours}, but there are {available} labelled training images. Use at most {available}."
        )
