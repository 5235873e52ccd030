# SPDX-License-Identifier: Apache-2.0
"""Three networks that differ in one thing each, and the numbers by which the opening chapter compares them."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from recipes_lib.config import override
from recipes_lib.data.images import ImageSet
from recipes_lib.data.load import load
from recipes_lib.data.loader import Batch, StepBatches
from recipes_lib.evaluation.hypersphere import normalized_std
from recipes_lib.pretraining import engine
from recipes_lib.pretraining.scoring import DATA_SEED
from recipes_lib.recipes.families import recipe as families
from recipes_lib.recipes.families.network import Siamese
from recipes_lib.recipes.families.settings import Config
from recipes_lib.training import stages
from recipes_lib.training.folder import RunFolder

NETWORKS: dict[str, Mapping[str, Any]] = {
    "simclr": {},
    "agreement": {"loss.negatives": False},
    # nearly the whole image in its own colours: the two views differ by a small crop and a mirror image
    "easy_views": {"views.global_scale": (0.8, 1.0), "views.jitter": 0.0, "views.grayscale": 0.0},
}
"""What differs from SimCLR's preset ``toy`` of the families."""


def config_of(name: str, config: Any) -> Config:
    """The config of one of ``NETWORKS``, of the size that the chapter's ``config`` asks for.

    Baselines are scored beside SimCLR alone, since they are the same for all networks.
    """
    sizes = {
        "data.train_size": config.data.train_size,
        "data.test_size": config.data.test_size,
        "train.steps": config.train.steps,
        "train.checkpoint_every": config.train.steps,
        "train.seed": config.train.seed,
        "eval.baselines": "all" if name == "simclr" else "none",
    }
    return override(families.PRESETS["toy"], {**sizes, **NETWORKS[name]})


def train(name: str, config: Any, folder: Path) -> dict[str, Any]:
    """Trains one of ``NETWORKS`` in ``folder``, unless it is a finished run of the same config; returns its report."""
    wanted = config_of(name, config)
    if not stages.finished(folder, families.RECIPE.name, wanted):
        families.RECIPE.run(wanted, folder)
    return RunFolder.open(folder).read_report()


def describe(folder: Path) -> dict[str, float]:
    """The numbers of a trained network on the test images: ``knn`` (accuracy), and those of :func:`look`."""
    config, method = engine.reopen(families.RECIPE, folder)
    knn = RunFolder.open(folder).read_report()["scores"]["knn"]["method"]
    return {"knn": knn, **look(method, load(config.data, DATA_SEED).test)}


@torch.no_grad()
def look(method: Siamese, images: ImageSet, batch_size: int = 128) -> dict[str, float]:
    """What a trained network says of two views of images, without training: means over all whole batches.

    ``agreement``: the mean cosine of an image's two views; ``spread``: see above, of the first views; ``loss``: the
    network's own loss.
    """
    method.eval()
    embeddings, losses = [], []
    for step, batch in enumerate(whole_batches(images, batch_size)):
        views = method.views(batch, step)
        embeddings.append(method.embeddings(views))
        losses.append(float(method(views)["loss"]))
    first, second = torch.cat(embeddings, dim=1)  # [images, dim] each
    return {
        "agreement": float(F.cosine_similarity(first, second).mean()),
        "spread": normalized_std(first),
        "loss": sum(losses) / len(losses),
    }


def whole_batches(images: ImageSet, batch_size: int) -> Iterator[Batch]:
    """The images in a fixed random order, in batches of equal size; the last few images are left out."""
    batches = StepBatches(images, seed=0, batch_size=min(batch_size, len(images)))
    yield from batches.stream(0, batches.steps_per_epoch, workers=0, device=torch.device("cpu"))
