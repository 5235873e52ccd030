# SPDX-License-Identifier: Apache-2.0
"""BARACK: group robustness when only few training points have a group label.

Sohoni, Sanjabi, Ballas, Grover, Nie, Firooz, Ré, "BARACK: Partially Supervised Group Robustness With Guarantees", ICML
2022 workshop on Spurious Correlations, Invariance and Stability, arXiv 2201.00072. Chapter: ``notebooks/barack.py``.

1. A network that is right on average can fail on a small group, such as waterbirds on land.
2. Group DRO trains on the worst group, but needs the group of every training point.
3. BARACK learns to predict groups from the few points with a group label.
4. Then it runs group DRO, with the predicted groups where the true ones are not known.

The public parts of the paper say no more than this: predictor, networks and schedules are ours. ``groups.arm`` chooses
the method or one of the baselines.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recipes_lib.config import PROBES, ClassProbe, LabelFreeProbe, OptimConfig, SyncConfig, TrainConfig
from recipes_lib.config.views import OneView
from recipes_lib.data import groups
from recipes_lib.data.images import UNLABELLED
from recipes_lib.data.load import Images, Splits
from recipes_lib.data.loader import Batch
from recipes_lib.distributed.sync import Traffic
from recipes_lib.errors import ConfigError, Faults
from recipes_lib.evaluation import group_scores
from recipes_lib.evaluation.features import Features, read_chunks
from recipes_lib.evaluation.group_scores import GroupAccuracy
from recipes_lib.models import backbones
from recipes_lib.objectives import group_dro
from recipes_lib.pretraining import class_scores, scoring
from recipes_lib.pretraining.class_scores import ClassEval
from recipes_lib.pretraining.classify import Classifier
from recipes_lib.pretraining.recipe import Recipe
from recipes_lib.pretraining.scoring import Scored, Scores
from recipes_lib.recipes.barack import finding, images, losses
from recipes_lib.recipes.barack.arms import Assignment, Points
from recipes_lib.recipes.barack.settings import ROBUST, FindConfig, GroupData, ModelConfig, RobustConfig
from recipes_lib.training import loop
from recipes_lib.training.folder import RunFolder
from recipes_lib.views.multicrop import eval_view


@dataclass(frozen=True, kw_only=True)
class GroupEval(ClassEval):
    """The accuracy of the worst group, and the scores that every classifier has."""

    probes: tuple[Literal["worst_group", "accuracy", ClassProbe, LabelFreeProbe], ...] = ("worst_group", "accuracy")
    """The probes to score with. worst_group: the smallest accuracy of a true group of test images; accuracy: the share of
    all test images that the trained classifier gets right."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """BARACK's config; the defaults are Waterbirds with a ResNet-50, trained as the sample command of group DRO's code."""

    data: GroupData = field(default_factory=GroupData)
    views: OneView = field(default_factory=lambda: OneView(global_scale=(0.7, 1.0)))
    model: ModelConfig = field(default_factory=ModelConfig)
    groups: FindConfig = field(default_factory=lambda: FindConfig(steps=None, epochs=300.0))
    loss: RobustConfig = field(default_factory=RobustConfig)
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(
            name="sgd",
            nesterov=False,
            lr=1e-3,
            lr_start=1e-3,
            lr_final=1e-3,
            warmup_epochs=0.0,
            weight_decay=1e-4,
            weight_decay_final=1e-4,
            stretch=1.0,
            first_count=0,
            clip=None,
        )
    )
    sync: SyncConfig = field(default_factory=SyncConfig)
    train: TrainConfig = field(default_factory=lambda: TrainConfig(epochs=300.0, batch_size=128))
    eval: GroupEval = field(default_factory=GroupEval)

    def validate(self) -> None:
        """Raises ``ConfigError`` with a line for each fault."""
        faults = Faults()
        parts = (
            self.data,
            self.views,
            self.model,
            self.groups,
            self.loss,
            self.optim,
            self.sync,
            self.train,
            self.eval,
        )
        for group in parts:
            group.check(faults)
        sides = {"data.image_size": self.data.image_size, "views.image_size": self.views.image_size}
        self.model.check_sides(faults, sides)
        sampled = self.loss.sampling == "balanced" or self.groups.arm not in ROBUST
        if self.model.groups > self.train.batch_size and not sampled:
            faults.add(
                f"train.batch_size = {self.train.batch_size} is below the number of groups, {self.model.groups}: most batches "
                "would lack most groups. Use a larger batch, or --loss.sampling balanced."
            )
        faults.raise_any()


class GroupClassifier(Classifier):
    """The second step: a backbone and a linear head, trained by group DRO, or as the arm says."""

    def __init__(self, config: Config, steps: int) -> None:
        super().__init__(config, backbones.build(config.model, image_size=config.views.image_size))
        self.register_buffer("q", group_dro.uniform_weights(config.model.groups))
        self.twin: nn.ModuleDict | None = None
        if config.groups.arm == "lff":
            backbone = backbones.build(config.model, image_size=config.views.image_size)
            head = nn.Linear(backbone.num_features, config.model.classes)
            self.twin = nn.ModuleDict({"backbone": backbone, "head": head})
        self.assignment, self.points = Assignment(), None
        self.adjustment: Tensor | None = None
        self._checked = False

    def use(self, assignment: Assignment, points: Points, device: torch.device) -> None:
        """Gives the method the groups of the training images; groups without an image get the weight 0."""
        sizes = assignment.sizes(self.config.model.groups)
        used = sizes > 0
        if used.any():
            self.q.copy_(used.float() / used.sum())
        table = assignment.groups
        self.assignment = replace(assignment, groups=None if table is None else table.to(device))
        self.points = points
        found = losses.adjustment_of(self.config.loss.adjustment, sizes)
        self.adjustment = None if found is None else found.to(device)

    def views(self, batch: Batch, step: int) -> dict[str, Any]:
        """As of :class:`Classifier`; with ``groups``, int64 [batch] or probabilities [batch, groups], for group DRO.

        Before :meth:`use`, an image is of its class's first attribute.

        Raises: ``ConfigError`` if the weights of a checkpoint are no distribution over the groups.
        """
        found = super().views(batch, step)
        if self.config.groups.arm not in ROBUST:
            return found
        if not self._checked:
            self._check()
        table = self.assignment.groups
        if table is None:
            return found | {"groups": batch.labels * self.config.model.attributes}
        return found | {"groups": table[batch.indices % len(table)]}

    def _check(self) -> None:
        try:
            group_dro.check_weights(self.q, self.config.model.groups)
        except ValueError as error:
            raise ConfigError(f"The checkpoint cannot be used: {error}") from None
        self._checked = True

    def forward(self, views: dict[str, Tensor]) -> dict[str, Tensor]:
        """The loss of one micro-batch and its accuracy; of group DRO also the largest weight, ``q_max``."""
        labels = views["labels"]
        logits = self.classify(views["images"]).float()
        found = {"accuracy": (logits.detach().argmax(dim=1) == labels).float().mean()}
        if self.twin is not None:
            biased = self.twin["head"](self.twin["backbone"](views["images"])).float()
            own, easy = losses.failure_losses(logits, biased, labels, self.config.loss.focus)
            return {"loss": own + easy, **found, "twin": easy.detach()}
        if "groups" not in views:
            return {"loss": F.cross_entropy(logits, labels), **found}
        each = F.cross_entropy(logits, labels, reduction="none")
        step = losses.robust_step(each, views["groups"], self.q, eta=self.config.loss.eta, adjustment=self.adjustment)
        with torch.no_grad():
            self.q.copy_(step.q)
        return {"loss": step.loss, **found, "q_max": step.q.max()}


def load(config: Config, warn: Callable[[str], None]) -> Splits:
    """Loads training and test images with classes and attributes. Raises: ``DataError``."""
    return images.load(config.data, config.model, warn)


def fit(given: loop.Training, folder: RunFolder) -> Traffic:
    """Both steps: finds the groups in the sub-folder ``groups``, then trains the classifier.

    Raises: as :func:`finding.find` and :func:`loop.fit`.
    """
    method, batches = given.method, given.batches
    assignment, points = finding.find(method.config, batches.dataset, given, folder)
    method.use(assignment, points, given.world.device)
    batches.draw_by(assignment.weights)
    return loop.fit(given, folder)


def score(scored: Scored) -> Scores:
    """Scores by ``worst_group`` the trained classifier, and the untrained one if baselines are asked for.

    ``groups`` has the accuracy and the number of test images of each group, and ``average`` weighted as training images
    are. All other probes are those of :func:`class_scores.score`.
    """
    others = tuple(name for name in scored.probes if name != "worst_group")
    report = class_scores.score(replace(scored, probes=others))
    if "worst_group" not in scored.probes:
        return report
    arms = {"method": scored.method.eval()}
    if scored.untrained:
        arms["random_init"] = scoring.random_init(scored.config, scored.untrained(), scored.splits.train)
    found = {arm: accuracy(each, scored.config, scored.splits.test) for arm, each in arms.items()}
    report["scores"] = {"worst_group": {arm: each.worst for arm, each in found.items()}} | report["scores"]
    report["groups"] = _by_group(found["method"], scored.config, scored.splits.train)
    return report


def _by_group(found: GroupAccuracy, config: Config, train: Images) -> dict[str, Any]:
    true = groups.group_index(train.labels, images.attributes_of(train), config.model.attributes)
    sizes = torch.bincount(true[true != UNLABELLED], minlength=config.model.groups)
    rows = zip(
        images.names_of(config.data, train.class_names),
        found.accuracy.tolist(),
        found.sizes.tolist(),
        sizes.tolist(),
        strict=True,
    )
    table = {name: {"accuracy": a if n else None, "test": n, "train": m} for name, a, n, m in rows}
    return {"average": found.weighted_by(sizes), **table}


@torch.no_grad()
def accuracy(method: GroupClassifier, config: Config, test: Images) -> GroupAccuracy:
    """The accuracy of each true group of images, without augmentation."""
    method.eval()
    device, views = next(method.parameters()).device, config.views
    chunks = read_chunks(test, config.data.image_size, 256, config.data.workers, views.resize)
    looks = (eval_view(chunk.to(device), config.data.image_size, views.normalize, views.resize) for chunk in chunks)
    found = torch.cat([method.classify(look).argmax(dim=1).cpu() for look in looks])  # [N]
    true = groups.group_index(test.labels, images.attributes_of(test), config.model.attributes)
    return group_scores.group_accuracy(found == test.labels, true, config.model.groups)


def diagnostics(
    method: GroupClassifier, features: tuple[Features, Features] | None, splits: Splits
) -> dict[str, float]:
    """The quality of predicted groups, on training images without a group label, and the final weights of the groups.

    ``recall_worst`` and ``precision_worst``: the smallest of a group. A run that is only evaluated has none of them.
    """
    found, points = method.assignment.groups, method.points
    numbers = {f"q_{group}": value for group, value in enumerate(method.q.tolist())}
    if method.config.groups.arm not in ROBUST:
        numbers = {}
    if found is None or points is None:
        return numbers
    hard = (found.argmax(dim=1) if found.dim() == 2 else found).cpu()
    quality = group_scores.group_quality(torch.where(points.kept, UNLABELLED, hard), points.groups, points.count)
    if not quality.counts.any():  # no group was predicted, or the true ones are not known
        return numbers
    return numbers | {
        "recall_worst": float(quality.recall.nan_to_num(0).min()),
        "precision_worst": float(quality.precision.nan_to_num(0).min()),
    }


# Bottles and jars at 32 pixels, 95 % of them on the background of their class, with 5 % of the group labels.
_TOY = Config(
    data=GroupData(name="pantry", image_size=32, train_size=2000, test_size=1000, fits=0.95),
    views=OneView(image_size=32, global_scale=(0.8, 1.0)),
    model=ModelConfig(arch="convnet"),
    groups=FindConfig(share=0.05, steps=60),
    optim=replace(Config().optim, lr=0.03, lr_start=0.03, lr_final=0.0, weight_decay=0.02, weight_decay_final=0.02),
    train=TrainConfig(epochs=None, steps=200, batch_size=64, threads=1, device="cpu", checkpoint_every=100),
    eval=GroupEval(baselines="all"),
)

_WATERBIRDS = Config()
_CELEBA = replace(
    _WATERBIRDS,
    data=GroupData(name="celeba"),
    groups=FindConfig(steps=None, epochs=50.0),
    optim=replace(_WATERBIRDS.optim, lr=1e-4, lr_start=1e-4, lr_final=1e-4),
    train=replace(_WATERBIRDS.train, epochs=50.0),
)


def _jtt(config: Config, *, epochs: float, upweight: float, lr: float, decay: float) -> Config:
    """JTT with the first network trained for ``epochs``, at one learning rate and weight decay in both steps."""
    optim = replace(config.optim, lr=lr, lr_start=lr, lr_final=lr, weight_decay=decay, weight_decay_final=decay)
    find = FindConfig(arm="jtt", steps=None, epochs=epochs, upweight=upweight)
    return replace(config, groups=find, optim=optim)


# BARACK's own tables, networks and schedules could not be read. These are the sample commands of the public code of
# group DRO (batch 128, balanced groups, no adjustment; weights from ImageNet are loaded there) and of JTT.
# Differs: our backbones start from random weights.
_PAPER = {
    "waterbirds_erm": replace(_WATERBIRDS, groups=replace(_WATERBIRDS.groups, arm="erm")),
    "waterbirds_jtt": _jtt(_WATERBIRDS, epochs=60.0, upweight=100.0, lr=1e-5, decay=1.0),
    "waterbirds_oracle": replace(_WATERBIRDS, groups=replace(_WATERBIRDS.groups, arm="oracle")),
    "waterbirds": _WATERBIRDS,
    "celeba_jtt": _jtt(_CELEBA, epochs=1.0, upweight=50.0, lr=1e-5, decay=0.1),
    "celeba_oracle": replace(_CELEBA, groups=replace(_CELEBA.groups, arm="oracle")),
    "celeba": _CELEBA,
}

PRESETS: dict[str, Config] = {
    "toy": _TOY,
    # More images and steps.
    "simmer": replace(
        _TOY,
        data=replace(_TOY.data, train_size=6000, test_size=2000),
        groups=FindConfig(share=0.05, steps=300),
        train=replace(_TOY.train, steps=1500, checkpoint_every=500),
    ),
    # Two artists' drawings of animals and food, in a folder of one's own: --data.root FOLDER.
    "laptop": replace(
        _TOY,
        data=GroupData(name="emoji", image_size=32, fits=0.95),
        groups=FindConfig(share=0.33, steps=200),
        train=replace(_TOY.train, steps=1000, threads=None, device="auto", checkpoint_every=200),
    ),
    **_PAPER,
}

RECIPE = Recipe(
    name="barack",
    config=Config,
    presets=PRESETS,
    method=GroupClassifier,
    load=load,
    fit=fit,
    score=score,
    probes=("worst_group", "accuracy", *PROBES),
    diagnostics=diagnostics,
)
