# SPDX-License-Identifier: Apache-2.0
"""Starts a T-CNN, or a convnet, from trained weights."""

from collections.abc import Callable
from pathlib import Path

from torch import nn

from recipes_lib import recipes
from recipes_lib.errors import ConfigError, RunError
from recipes_lib.models import interchange, tcnn
from recipes_lib.pretraining import engine
from recipes_lib.pretraining.classify import Classifier


def take_over(method: Classifier, place: Path, warn: Callable[[str], None]) -> None:
    """Loads the network in ``place`` into ``method``, in place: the backbone, and the head if it has one of as many classes.

    Parameters of recast layers that a convnet does not have keep their first values.

    ``place``: a run folder of any recipe that trained such a backbone, or a folder or file of weights as
    :func:`interchange.load` reads. ``warn`` tells what was left out, and an input that is normalised otherwise than here.

    Raises: ``ConfigError`` in one line if there is nothing to load, or another network.
    """
    told = f"model.init = {place}"
    try:
        backbone, head, normalize = _read(place)
    except RunError as error:
        raise ConfigError(f"{told} cannot be used. {error}") from None
    weights = backbone.state_dict()
    new = {name: value for name, value in tcnn.new_parameters(method.backbone).items() if name not in weights}
    try:
        interchange.fill(method.backbone, new | weights, "its weights")
    except RunError as error:
        plain = method.config.model.arch.removeprefix("tcnn_")
        raise ConfigError(
            f"{told} holds another network than model.arch = {method.config.model.arch} starts from, which is {plain} with stem "
            f"{method.config.model.stem}. {error}"
        ) from None
    own = method.config.views.normalize
    if normalize not in (own, None):
        warn(f"{told} was trained with views.normalize {normalize}, and this run has {own}.")
    if head is None or head.weight.shape != method.head.weight.shape:
        has = "no classifier" if head is None else f"a classifier of {head.out_features} classes"
        warn(f"{told} has {has}, so the linear head starts anew.")
    else:
        method.head.load_state_dict(head.state_dict())


def _read(place: Path) -> tuple[nn.Module, nn.Linear | None, str | None]:
    """The backbone in ``place``, its linear head, and how its input is normalised, as far as they are known."""
    if (place / "config.yaml").is_file():
        config, found = engine.reopen(recipes.that_trained(place), place)
        return found.backbone, found.head if isinstance(found, Classifier) else None, config.views.normalize
    return interchange.load(place), interchange.classifier(place), interchange.preprocessing(place)[0]
