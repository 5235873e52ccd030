# SPDX-License-Identifier: Apache-2.0
"""Probes a network at every layer of its projector, for the chapter on the knobs."""

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from recipes_lib.config import override
from recipes_lib.data.images import ImageSet
from recipes_lib.errors import ConfigError
from recipes_lib.evaluation.features import extract
from recipes_lib.evaluation.knn import weighted_knn
from recipes_lib.models.heads import MLPHead
from recipes_lib.pretraining import engine
from recipes_lib.recipes.families import recipe as families
from recipes_lib.recipes.families.network import Siamese
from recipes_lib.recipes.families.settings import Config
from recipes_lib.recipes.knobs.claims import CHAPTER
from recipes_lib.training.folder import RunFolder


def layers(seed: int) -> dict[str, dict[str, float]]:
    """``knn``: the k-NN accuracy of the chapter's SimCLR at each layer, by the layer's name; see :func:`outputs`."""
    arm = CHAPTER.arms["simclr"]
    config = override(families.PRESETS[arm.preset], {**arm.changes, "eval.baselines": "none", "train.seed": seed})
    with TemporaryDirectory() as place:
        families.RECIPE.run(config, Path(place) / "run")
        return {"knn": accuracies(Path(place) / "run")}


def accuracies(path: Path) -> dict[str, float]:
    """The k-NN accuracy on the test images at each layer of a run of the families, by the layer's name.

    Raises: ``ConfigError`` as :func:`require_projector`.
    """
    config, method = engine.reopen(families.RECIPE, path)
    require_projector(config)
    splits = engine.load_data(families.RECIPE, config, RunFolder.open(path))
    encoder = method.encoder.eval()

    def at_each_layer(images: ImageSet) -> dict[str, Tensor]:
        how = {"normalize": config.views.normalize, "resize": config.views.resize}
        return outputs(
            encoder.projector, extract(encoder.backbone, images, image_size=config.views.image_size, **how).final
        )

    train, test = at_each_layer(splits.train), at_each_layer(splits.test)
    settings = {"k": config.eval.neighbours, "temperature": config.eval.neighbour_temperature}
    return {
        name: weighted_knn(train[name], splits.train.labels, test[name], splits.test.labels, **settings)
        for name in train
    }


@torch.no_grad()
def outputs(projector: MLPHead, features: Tensor) -> dict[str, Tensor]:
    """What a projector makes of features, layer by layer.

    ``features``: its input. ``hidden_1``, ``hidden_2``, ...: the output of each hidden layer after its activation.
    ``embedding``: its output, which the loss compares; absent if the projector has no layer.

    Shapes: ``features`` [N, D] -> each [N, its width].
    """
    found, rows, hidden = {"features": features}, features, 0
    for module in projector.layers:
        rows = module(rows)
        if isinstance(module, nn.ReLU | nn.GELU):
            hidden += 1
            found[f"hidden_{hidden}"] = rows
    return {**found, "embedding": rows} if len(projector.layers) else found


def require_projector(config: Config) -> None:
    """Raises ``ConfigError`` if the method has no projector behind its backbone."""
    have = [name for name, method in families.METHODS.items() if issubclass(method, Siamese)]
    if config.loss.objective not in have:
        raise ConfigError(
            f"loss.objective = {config.loss.objective} has no projector to probe: use one of {', '.join(have)}."
        )
