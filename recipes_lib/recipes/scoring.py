# SPDX-License-Identifier: Apache-2.0
"""How good a pretrained backbone is: probes on its features, beside raw pixels, random weights and a supervised net."""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from types import ModuleType
from typing import Any

from torch import nn

from recipes_lib.data.images import ImageFiles
from recipes_lib.data.load import Splits
from recipes_lib.data.loader import StepBatches
from recipes_lib.evaluation import baselines, probes
from recipes_lib.evaluation.features import Features, extract
from recipes_lib.views.multicrop import MultiCrop

DATA_SEED = 0
"""Which images are drawn and held out does not change with ``train.seed``: runs of several seeds share a test set."""


def score(
    recipe: ModuleType,
    config: Any,
    method: nn.Module,
    splits: Splits,
    names: Sequence[str],
    build_untrained: Callable[[], nn.Module] | None,
    cooked: tuple[Any, nn.Module] | None = None,
) -> dict[str, Any]:
    """Probe scores of the trained method; with ``build_untrained``, also of random weights, pixels and a supervised net.

    ``build_untrained`` returns the method as it was before training, built anew at each call: the supervised baseline
    trains the network that it is given.

    ``cooked``, with its own config, is another trained network of this recipe that is probed on the same images.

    Returns ``scores`` (probe -> arm -> accuracy), ``spread`` (the same, standard deviation over low-shot splits), the
    recipe's ``diagnostics``, and ``factors`` (arm -> factor -> score) where they are among the probes. Fine-tuning is not
    among those run here, since all ranks take part in it.
    """
    names = [name for name in names if name != "finetune"]
    needs_labels = bool(names) or hasattr(recipe, "support")
    train = splits.train if "factors" in names else splits.labelled_train if needs_labels else splits.test
    how = _how(config)

    def features_of(backbone: nn.Module) -> tuple[Features, Features]:
        return tuple(extract(backbone, images, **how) for images in (train, splits.test))

    def of_method(trained: nn.Module, how: dict[str, Any]) -> tuple[Features, Features]:
        embed = trained.embed if hasattr(trained, "embed") else None
        return tuple(extract(trained.eval().backbone, images, embed=embed, **how) for images in (train, splits.test))

    arms = {"method": of_method(method, how)}
    if build_untrained:
        inverted = config.views.invert > 0
        pixels = [baselines.raw_pixels(images, ignore_sign=inverted, **how) for images in (train, splits.test)]
        arms |= _baseline_arms(config, build_untrained, splits, features_of) | {"raw_pixels": tuple(pixels)}
    if cooked:
        arms["cooked"] = of_method(cooked[1], _how(cooked[0]) | {"workers": config.data.workers})
    labelled = probes.labelled_indices(config.data.labelled, splits) if "lowshot" in names else None
    report: dict[str, Any] = {"scores": {}, "spread": {}}
    for arm, (train_features, test_features) in arms.items():
        result = probes.run_probes(
            replace(config.eval, probes=tuple(names)),
            train_features,
            train.labels,
            test_features,
            splits.test.labels,
            seed=DATA_SEED,
            labelled=labelled,
            device=next(method.parameters()).device,
        )
        for name, value in result.scores.items():
            report["scores"].setdefault(name, {})[arm] = value
        report["spread"][arm] = result.spread
        if "factors" in names:
            found = probes.read_factors(train_features, train, test_features, splits.test)
            report.setdefault("factors", {})[arm] = found
    report["diagnostics"] = recipe.diagnostics(method, arms["method"], Splits(train, splits.test))
    return report


def _how(config: Any) -> dict[str, Any]:
    """How a network of this config is shown images when its features are extracted."""
    views = config.views
    how = {"image_size": config.data.image_size, "normalize": views.normalize, "resize": views.resize}
    return how | {"workers": config.data.workers}


def _baseline_arms(
    config: Any, build_untrained: Callable[[], nn.Module], splits: Splits, features_of: Callable
) -> dict[str, tuple[Features, Features]]:
    """Features of the untrained backbone, and of an equal one that is trained with labels for as many steps."""
    arms = {"random_init": features_of(build_untrained().backbone)}
    supervised = build_untrained().backbone.requires_grad_(True)
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
