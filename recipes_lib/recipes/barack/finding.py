# SPDX-License-Identifier: Apache-2.0
"""The first step for images: trains a network in the run's folder ``groups``, and writes what it found there."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from recipes_lib import randomness
from recipes_lib.config import OptimConfig, TrainConfig
from recipes_lib.config.views import OneView
from recipes_lib.data import groups
from recipes_lib.data.images import ImageFiles
from recipes_lib.data.load import Images
from recipes_lib.data.loader import StepBatches
from recipes_lib.distributed import collectives
from recipes_lib.evaluation.features import read_chunks
from recipes_lib.models import backbones
from recipes_lib.pretraining.classify import Classifier
from recipes_lib.recipes.barack import arms, losses
from recipes_lib.recipes.barack.arms import Assignment, Points
from recipes_lib.recipes.barack.images import as_groups, attributes_of, names_of
from recipes_lib.recipes.barack.settings import IDENTIFYING, PREDICTING, FindConfig, ModelConfig
from recipes_lib.training import checkpoint, loop, stages
from recipes_lib.training.folder import RunFolder
from recipes_lib.views.multicrop import eval_view

FOUND = "found.safetensors"


@dataclass(frozen=True, kw_only=True)
class FindingConfig:
    """The config of the first step's run, in its folder's ``config.yaml``."""

    groups: FindConfig
    images: int
    """Number of training images."""
    model: ModelConfig
    views: OneView
    optim: OptimConfig
    train: TrainConfig


class GroupPredictor(Classifier):
    """Predicts the attribute of an image of known class: a head for each class on one backbone, or one head for all.

    It learns from batches whose labels are groups.
    """

    def __init__(self, config: FindingConfig) -> None:
        super().__init__(config, backbones.build(config.model, image_size=config.views.image_size))
        self.values = config.model.attributes
        self.heads = config.model.classes if config.groups.sees_class else 1
        self.head = nn.Linear(self.backbone.num_features, self.heads * self.values)

    def classify(self, images: Tensor) -> Tensor:
        """The logits of the attribute, by head.  [batch, 3, side, side] -> [batch, heads, attributes]"""
        return self.head(self.backbone(images)).view(len(images), self.heads, self.values)

    def forward(self, views: dict[str, Tensor]) -> dict[str, Tensor]:
        """The loss of one micro-batch, and the share of right attributes; ``labels`` are groups."""
        logits, labels = self.classify(views["images"]), views["labels"]
        own = losses.of_class(logits.detach(), labels // self.values)
        right = (own.argmax(dim=1) == labels % self.values).float().mean()
        return {"loss": losses.attribute_loss(logits, labels, self.values), "accuracy": right}


def find(config: Any, images: Images, given: loop.Training, run: RunFolder) -> tuple[Assignment, Points]:
    """The assignment of ``config.groups.arm``; all ranks call it.

    A first step is trained once: if the run was stopped later, its result is read. ``given`` is the second step's
    training, whose processes and workers the first one shares.

    Raises: ``DataError`` if a group has no labelled image; ``Diverged``; ``Interrupted``.
    """
    asked, model = config.groups, config.model
    attributes = attributes_of(images)
    true = groups.group_index(images.labels, attributes, model.attributes)
    kept = torch.zeros(len(images), dtype=torch.bool)
    if (true >= 0).any():
        kept = groups.keep_few(true, asked.share, asked.seed, by_group=asked.by_group)
    points = Points(images.labels, attributes, kept, model.classes, model.attributes)
    names = names_of(config.data, images.class_names)
    if asked.arm in (*PREDICTING, "subset"):
        groups.require_labels(true, kept, names)
    if asked.arm == "oracle":
        groups.require_labels(true, true >= 0, names)
    if asked.arm not in (*PREDICTING, *IDENTIFYING):
        return arms.without_first_step(points, asked, config.loss), points
    learned = as_groups(images, kept, model.attributes, names) if asked.arm in PREDICTING else images
    settings = _settings(config, len(images), len(learned))
    folder = run.path / "groups"
    if not stages.finished(folder, "groups", settings):
        stages.keep(run)
        go_on = f"recipes resume {run.path}"
        with stages.tell_how_to_go_on("Finding groups was interrupted; its steps are kept.", go_on):
            _train(settings, learned, images, given, folder)
    found = checkpoint.read_weights(folder / FOUND)["found"]
    if asked.arm in PREDICTING:
        return arms.from_predictions(found, points, asked, config.loss), points
    if asked.arm == "jtt":
        return arms.from_errors(found, asked.upweight), points
    return arms.from_features(found, points, asked.seed, config.loss), points


def _settings(config: Any, images: int, learned: int) -> FindingConfig:
    asked, train = config.groups, config.train
    size = collectives.world_size()
    batch = max(2 * size, min(train.batch_size, learned // size * size))
    length = {"steps": asked.steps, "epochs": asked.epochs, "accumulate": 1, "batch_size": batch}
    return FindingConfig(
        groups=asked,
        images=images,
        model=config.model,
        views=config.views,
        optim=config.optim,
        train=replace(train, **length, tensorboard=False),
    )


def _train(settings: FindingConfig, learned: Images, images: Images, given: loop.Training, folder: Path) -> None:
    place, workers = given.world, given.workers
    method = _network(settings).to(place.device)
    with RunFolder.create_or_continue(folder, "groups", settings) as own:
        batches = StepBatches(
            learned,
            seed=settings.train.seed,
            batch_size=settings.train.batch_size,
            rank=place.rank,
            world_size=place.size,
            crop=method.crop_one if isinstance(learned, ImageFiles) else None,
        )
        if settings.groups.arm in PREDICTING:
            batches.draw_by(groups.balanced_weights(learned.labels, settings.model.groups))
        how = {"train": settings.train, "optim_config": settings.optim, "world": place, "workers": workers}
        training = loop.training(method, batches, **how)
        loop.fit(training, own)

        def conclude() -> None:
            checkpoint.write_weights(folder / FOUND, {"found": _found(method, settings, images, workers)})
            checkpoint.write_weights(folder / "model.safetensors", method.state_dict())

        collectives.from_main(conclude)
        own.set_state("done", training.steps)


def _network(settings: FindingConfig) -> Classifier:
    """The untrained network of the first step; the global random state does not change."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(randomness.step_key(settings.train.seed, 0, "first step"))
        if settings.groups.arm in PREDICTING:
            return GroupPredictor(settings)
        return Classifier(settings, backbones.build(settings.model, image_size=settings.views.image_size))


@torch.no_grad()
def _found(method: Classifier, settings: FindingConfig, images: Images, workers: int) -> Tensor:
    """What the first step says of each training image, by arm.

    Predicting arms: the probabilities of the attributes [N, attributes]; ``jtt``: 1 where the classifier errs, else 0
    [N]; ``george``: its features [N, dim].
    """
    method.eval()
    views, device, parts, begin = settings.views, next(method.parameters()).device, [], 0
    for chunk in read_chunks(images, views.image_size, 256, workers, views.resize):
        looks = eval_view(chunk.to(device), views.image_size, views.normalize, views.resize)
        labels = images.labels[begin : begin + len(chunk)].to(device)
        begin += len(chunk)
        if settings.groups.arm == "george":
            rows = method.backbone(looks)
        elif settings.groups.arm == "jtt":
            rows = (method.classify(looks).argmax(dim=1) != labels).float()
        else:
            rows = losses.of_class(method.classify(looks), labels).float().softmax(dim=1)
        parts.append(rows.float().cpu())
    return torch.cat(parts)
