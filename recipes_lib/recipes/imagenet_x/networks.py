# SPDX-License-Identifier: Apache-2.0
"""Loads the models that :mod:`recipes_lib.recipes.imagenet_x.score` can score: timm's, torchvision's, this book's."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import timm
import torch.nn.functional as F
import torchvision
from PIL.Image import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from recipes_lib import durable, recipes
from recipes_lib.data.images import ImageFiles
from recipes_lib.distributed import collectives
from recipes_lib.errors import DataError
from recipes_lib.evaluation.features import extract
from recipes_lib.models import interchange
from recipes_lib.models.published import Unknown, fetched, unknown
from recipes_lib.pretraining import engine
from recipes_lib.training import checkpoint

Prepare = Callable[[Image], Tensor]


_OTHERWISE = "give a file: --score.weights FILE.safetensors"


def of_timm(name: str, weights: Path | None, classes: int) -> tuple[nn.Module, Prepare]:
    """timm's network with its published weights, or those of a file for ``classes`` classes, and its preprocessing.

    Raises: ``Unknown`` for an unknown name; ``RunError`` for weights that are missing or do not fit.
    """
    try:
        if weights is None:
            network = fetched(f"timm:{name}", lambda: timm.create_model(name, pretrained=True), otherwise=_OTHERWISE)
        else:
            network = timm.create_model(name, pretrained=False, num_classes=classes)
            interchange.fill(network, checkpoint.read_weights(weights), str(weights))
    except RuntimeError as error:
        if "Unknown model" not in str(error):
            raise
        raise Unknown(unknown("timm", name, timm.list_models())) from None
    return network, timm.data.create_transform(**timm.data.resolve_model_data_config(network), is_training=False)


def of_torchvision(name: str, weights: Path | None, classes: int) -> tuple[nn.Module, Prepare]:
    """torchvision's network with its default weights, or those of a file, and the preprocessing of the default weights.

    Raises: ``Unknown`` for an unknown name; ``RunError`` for weights that are missing or do not fit.
    """
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise Unknown(unknown("torchvision", name, known))
    published = torchvision.models.get_model_weights(name).DEFAULT
    if weights is None:
        network = fetched(
            f"torchvision:{name}",
            lambda: torchvision.models.get_model(name, weights=published),
            otherwise=_OTHERWISE,
        )
    else:
        network = torchvision.models.get_model(name, weights=None, num_classes=classes)
        interchange.fill(network, checkpoint.read_weights(weights), str(weights))
    return network, published.transforms()


def neighbours(path: Path, train: ImageFiles, bank: Path, workers: int) -> "Neighbours":
    """The k-NN classifier of a run folder's backbone among ``train``, whose features are stored in the file ``bank``.

    Raises: ``RunError`` if ``path`` is no run of a recipe that trains a backbone; ``DataError`` if ``bank`` has
    features of other images.
    """
    config, method = engine.reopen(recipes.that_trained(path), path)
    how = {"image_size": config.data.image_size, "normalize": config.views.normalize, "resize": config.views.resize}
    how["workers"] = workers
    if not bank.is_file():

        def write() -> None:
            found = extract(method.backbone, train, **how).final
            with durable.whole(bank) as partial:
                save_file({"features": found, "labels": train.labels}, partial)

        collectives.from_main(write)
    kept = checkpoint.read_weights(bank)
    if len(kept["features"]) != len(train):
        raise DataError(
            f"{bank} has features of {len(kept['features']):,} training images, not {len(train):,}. Remove it."
        )
    k = min(config.eval.neighbours, len(train))
    return Neighbours(method.backbone, kept["features"], kept["labels"], k, config.eval.neighbour_temperature, how)


class Neighbours:
    """The weighted k-NN classifier of :mod:`recipes_lib.evaluation.knn`, in which the nearest training images vote."""

    def __init__(
        self, backbone: nn.Module, features: Tensor, labels: Tensor, k: int, temperature: float, how: dict
    ) -> None:
        self.backbone, self.how = backbone, how
        self.device = next(backbone.parameters()).device
        self.features = F.normalize(features.to(self.device), dim=1)
        self.labels, self.k, self.temperature = labels.to(self.device), k, temperature

    def __call__(self, images: ImageFiles, batches: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """The predicted classes, int64 [n], and their shares of the votes, float32 [n], batch by batch."""
        for batch in batches:
            rows = extract(self.backbone, images.select(batch), **self.how).final.to(self.device)
            similarity, nearest = (F.normalize(rows, dim=1) @ self.features.T).topk(self.k, dim=1)  # [n, k]
            weights = ((similarity - 1) / self.temperature).exp()
            votes = rows.new_zeros(len(rows), len(images.class_names)).scatter_add_(1, self.labels[nearest], weights)
            share, answer = (votes / votes.sum(dim=1, keepdim=True)).max(dim=1)
            yield answer.cpu(), share.cpu()
