# SPDX-License-Identifier: Apache-2.0
"""How good a pretrained backbone is: probes on its features, beside raw pixels, random weights and a supervised network."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import nn

from recipes_lib.data.images import ImageFiles
from recipes_lib.data.load import Splits
from recipes_lib.data.loader import StepBatches
from recipes_lib.evaluation import baselines, probes
from recipes_lib.evaluation.features import Features, extract
from recipes_lib.views.multicrop import MultiCrop

if TYPE_CHECKING:
    from recipes_lib.pretraining.recipe import Method

DATA_SEED = 0
"""Which images are drawn and held out does not change with ``train.seed``: runs of several seeds share a test set."""


Scores = dict[str, Any]
"""``scores`` (probe -> arm -> score), ``spread`` (arm -> probe -> standard deviation over low-shot splits) and ``diagnostics``."""


@dataclass(frozen=True)
class Cooked:
    """Another trained network of the same recipe, with its own config: what ``recipes cook`` stored."""

    config: Any
    method: "Method"


@dataclass(frozen=True, kw_only=True)
class Scored:
    """What is scored: a trained method, the images, and what it is compared with."""

    config: Any
    method: "Method"
    splits: Splits
    probes: tuple[str, ...]
    """Fine-tuning is never among them, since all ranks take part in it."""
    untrained: Callable[[], "Method"] | None = None
    """Builds the method as it was before training, anew at each call, since the supervised baseline trains what it is given;
    ``None``: no baselines are asked for."""
    cooked: Cooked | None = None
    """A network that is probed on the same images."""
    needs_labels: bool = False
    """Whether diagnostics need features of the labelled training images, also where no probe does."""
    diagnostics: Callable[["Method", tuple[Features, Features] | None, Splits], dict[str, float]]


def score(scored: Scored) -> Scores:
    """Probe scores of the trained method; with ``untrained``, also of random weights, pixels and a supervised network.

    The report also has ``factors`` (arm -> factor -> score) where they are among the probes, and ``cooked``.
    """
    config, splits, names = scored.config, scored.splits, scored.probes
    needs_labels = bool(names) or scored.needs_labels
    train = splits.train if "factors" in names else splits.labelled_train if needs_labels else splits.test
    how = _how(config)

    def features_of(backbone: nn.Module) -> tuple[Features, Features]:
        return extract(backbone, train, **how), extract(backbone, splits.test, **how)

    def of_method(trained: "Method", how: dict[str, Any]) -> tuple[Features, Features]:
        backbone, how = trained.eval().backbone, {**how, "embed": trained.embed}
        return extract(backbone, train, **how), extract(backbone, splits.test, **how)

    arms = {"method": of_method(scored.method, how)}
    if scored.untrained:
        inverted = config.views.invert > 0
        pixels = [baselines.raw_pixels(images, ignore_sign=inverted, **how) for images in (train, splits.test)]
        arms |= _baseline_arms(config, scored.untrained, splits, features_of) | {"raw_pixels": (pixels[0], pixels[1])}
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
    report["diagnostics"] = scored.diagnostics(scored.method, arms["method"], Splits(train, splits.test))
    return report | ({"cooked": {"steps": cooked.config.train.steps}} if cooked else {})


def _how(config: Any) -> dict[str, Any]:
    """How a network of this config is shown images when its features are extracted."""
    views = config.views
    how = {"image_size": config.data.image_size, "normalize": views.normalize, "resize": views.resize}
    return how | {"workers": config.data.workers}


def _baseline_arms(
    config: Any, untrained: Callable[[], "Method"], splits: Splits, features_of: Callable
) -> dict[str, tuple[Features, Features]]:
    """Features of the untrained backbone, and of an equal one that is trained with labels for as many steps."""
    arms = {"random_init": features_of(untrained().backbone)}
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
    return arms | {"supervised": features_of(supervised)}
