# SPDX-License-Identifier: Apache-2.0
"""Scores a pretrained backbone by probes, beside raw pixels, random weights and a supervised network."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from recipes_lib.data.images import ImageFiles
from recipes_lib.data.load import Images, Splits
from recipes_lib.data.loader import StepBatches
from recipes_lib.evaluation import baselines, corruptions, label_free, probes
from recipes_lib.evaluation.corruptions import Predict
from recipes_lib.evaluation.features import Features, extract
from recipes_lib.evaluation.label_free import Looks
from recipes_lib.views.multicrop import MultiCrop

if TYPE_CHECKING:
    from recipes_lib.pretraining.recipe import Method

DATA_SEED = 0
"""Seed of the images that are drawn and held out; it is not ``train.seed``, so runs of all seeds share a test set."""


Scores = dict[str, Any]
"""A dict with ``scores`` (probe -> arm -> score), ``spread`` (arm -> probe -> standard deviation over low-shot splits)
and ``diagnostics`` (name -> number). An arm is one of the networks compared, such as ``method`` or ``random_init``."""


@dataclass(frozen=True)
class Cooked:
    """The network that ``recipes cook`` stored for the same recipe, with its own config."""

    config: Any
    method: "Method"


@dataclass(frozen=True, kw_only=True)
class Scored:
    """The input of scoring: a trained method, the images, and the networks that it is compared with."""

    config: Any
    method: "Method"
    splits: Splits
    probes: tuple[str, ...]
    """Names of the probes. Fine-tuning is never among them, because all ranks have to take part in it."""
    untrained: Callable[[], "Method"] | None = None
    """Builds a new untrained method at each call, because the supervised baseline trains the one it gets.
    ``None``: no baselines are scored."""
    cooked: Cooked | None = None
    """A stored network that is scored on the same images; ``None``: there is none."""
    needs_labels: bool = False
    """Whether diagnostics need features of the labelled training images even if no probe does."""
    diagnostics: Callable[["Method", tuple[Features, Features] | None, Splits], dict[str, float]]
    """Numbers to report beside the scores; see ``Recipe.diagnostics``."""


def score(scored: Scored) -> Scores:
    """Scores the trained method; with ``untrained``, also random weights, raw pixels and a supervised network.

    The result also has ``factors`` (arm -> factor -> score) and ``corruptions`` (arm -> errors) if these probes are
    asked for, and ``cooked`` (the steps that the stored network was trained for) if there is one.
    """
    config, splits, names = scored.config, scored.splits, scored.probes
    needs_labels = bool(names) or scored.needs_labels
    train = splits.train if "factors" in names else splits.labelled_train if needs_labels else splits.test
    how = _how(config)

    def of_method(trained: "Method", how: dict[str, Any]) -> tuple[Features, Features]:
        backbone, how = trained.eval().backbone, {**how, "embed": trained.embed}
        return extract(backbone, train, **how), extract(backbone, splits.test, **how)

    arms, networks = {"method": of_method(scored.method, how)}, {"method": scored.method.backbone}
    if scored.untrained:
        networks |= (others := _baseline_networks(config, scored.untrained, splits))
        arms |= {
            arm: (extract(network, train, **how), extract(network, splits.test, **how))
            for arm, network in others.items()
        }
        inverted = config.views.invert > 0
        pixels = [baselines.raw_pixels(images, ignore_sign=inverted, **how) for images in (train, splits.test)]
        arms["raw_pixels"] = (pixels[0], pixels[1])
    if cooked := scored.cooked:
        arms["cooked"] = of_method(cooked.method, _how(cooked.config) | {"workers": config.data.workers})
    labelled = probes.labelled_indices(config.data.labelled, splits) if "lowshot" in names else None
    report: Scores = {"scores": {}, "spread": {}}
    for arm, (train_features, test_features) in arms.items():
        result = probes.run_probes(
            replace(config.eval, probes=names),
            train_features,
            train.labels,
            test_features,
            splits.test.labels,
            seed=DATA_SEED,
            labelled=labelled,
            device=next(scored.method.parameters()).device,
        )
        for name, value in result.scores.items():
            report["scores"].setdefault(name, {})[arm] = value
        report["spread"][arm] = result.spread
        if "factors" in names:
            found = probes.read_factors(train_features, train, test_features, splits.test)
            report.setdefault("factors", {})[arm] = found
    if "corruptions" in names:
        classifiers = {
            arm: corruptions.frozen_classifier(network, arms[arm][0], train.labels, splits.test.labels, DATA_SEED)
            for arm, network in networks.items()
        }
        add_corruptions(report, config, classifiers, splits.test, next(scored.method.parameters()).device)
    report["diagnostics"] = scored.diagnostics(scored.method, arms["method"], Splits(train, splits.test))
    return report | ({"cooked": {"steps": cooked.config.train.steps}} if cooked else {})


def add_corruptions(
    report: Scores, config: Any, predictors: Mapping[str, Predict], images: Images, device: torch.device
) -> None:
    """Adds to a report the errors of each of ``predictors`` (arm -> classifier) on corrupted test images.

    ``report["corruptions"]`` gets arm -> errors; ``report["scores"]["corruptions"]`` gets the mean accuracy on
    corrupted images, so that this probe's score is read as all others are. AlexNet's errors are a unit only of images
    of ImageNet's 1,000 classes at 224 pixels, and only then are ``mce`` and ``relative_mce`` there.
    """
    wanted = config.eval
    asked = corruptions.Asked(
        corruptions=wanted.corruptions,
        severities=wanted.corruption_severities,
        images=wanted.corruption_images,
        root=wanted.corruption_root,
        seed=DATA_SEED,
        device=device,
        **_how(config),
    )
    found = corruptions.measure(predictors, images, asked)
    facts = {"images": min(len(images), asked.images), "published": asked.root is not None}
    in_units = corruptions.comparable_with_alexnet(images, asked)
    report["corruptions"] = {arm: facts | each.as_dict(in_units=in_units) for arm, each in found.items()}
    report["scores"]["corruptions"] = {arm: 1 - each.mean for arm, each in found.items()}


def without_labels(
    config: Any, method: "Method", untrained: "Method", train: Images, names: Sequence[str]
) -> dict[str, dict[str, float]]:
    """The label-free probes ``names``, each of the method, of an untrained network and, where it makes sense, of pixels.

    The untrained network is always beside the trained one, because these numbers mean nothing alone: an untrained
    network often has the higher rank.
    """
    looks = Looks(**_how(config), views=config.views, seed=DATA_SEED)
    arms = {"method": method.eval().backbone, "random_init": random_init(config, untrained, train).backbone}
    found = {arm: label_free.measure(backbone, train, names, looks) for arm, backbone in arms.items()}
    of_pixels = [name for name in names if name in label_free.OF_DIRECTIONS]
    found["raw_pixels"] = label_free.measure(label_free.RawPixels(), train, of_pixels, looks)
    return {name: {arm: values[name] for arm, values in found.items() if name in values} for name in names}


def random_init(config: Any, untrained: "Method", train: Images) -> "Method":
    """The method ``untrained``, whose batch norms get statistics of training images, in evaluation mode."""
    baselines.estimate_statistics(untrained.backbone, train, **_how(config))
    return untrained.eval()


def _how(config: Any) -> dict[str, Any]:
    """Arguments of feature extraction for a network with this config: image size, normalisation, resizing, workers."""
    views = config.views
    how = {"image_size": config.data.image_size, "normalize": views.normalize, "resize": views.resize}
    return how | {"workers": config.data.workers}


def _baseline_networks(config: Any, untrained: Callable[[], "Method"], splits: Splits) -> dict[str, nn.Module]:
    """An untrained backbone, and the same backbone trained with labels for as many steps."""
    networks = {"random_init": random_init(config, untrained(), splits.train).backbone}
    supervised = untrained().backbone.requires_grad_(True)
    device = next(supervised.parameters()).device
    train = splits.labelled_train
    crop = MultiCrop(replace(config.views, global_views=0, local_views=0), config.train.seed)  # the target's view alone
    batches = StepBatches(
        train,
        seed=config.train.seed,
        batch_size=min(config.train.batch_size, len(train)),
        crop=crop.crop_one if isinstance(train, ImageFiles) else None,
    )
    steps = config.train.total_steps(batches.steps_per_epoch)
    with closing(batches.stream(0, steps, workers=config.data.workers, device=device)) as stream:
        baselines.supervised(
            supervised,
            ((crop(batch)[0], batch.labels) for batch in stream),
            width=supervised.num_features,
            classes=len(train.class_names),
            steps=steps,
            seed=config.train.seed,
        )
    return networks | {"supervised": supervised}
