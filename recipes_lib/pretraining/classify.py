# SPDX-License-Identifier: Apache-2.0
"""Supervised training of any backbone: a linear head, cross-entropy, and what DeiT's recipe adds to it."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from timm.data.mixup import Mixup, mixup_target
from torch import Tensor, nn

from recipes_lib.config.views import StrongView
from recipes_lib.data.loader import Batch
from recipes_lib.errors import Faults
from recipes_lib.pretraining.recipe import Method
from recipes_lib.randomness import seeded_libraries, step_key
from recipes_lib.views.multicrop import MultiCrop
from recipes_lib.views.strong import StrongCrop


@dataclass(frozen=True, kw_only=True)
class ClassLoss:
    """The cross-entropy of a classifier. Defaults: DeiT's."""

    label_smoothing: float = 0.1
    """Share of the target that is spread evenly over all classes, in [0, 1)."""
    mixup: float = 0.8
    """Parameter alpha of mixup, at least 0: an image and its target are averaged with those of another image, with a
    weight from Beta(alpha, alpha). 0: no mixup."""
    cutmix: float = 1.0
    """Parameter alpha of CutMix, at least 0: a rectangle of an image comes from another one. 0: no CutMix."""
    switch: float = 0.5
    """Probability of CutMix in a micro-batch, in [0, 1], if mixup is on as well."""

    @property
    def mixes(self) -> bool:
        """Whether images are mixed."""
        return self.mixup > 0 or self.cutmix > 0

    def check(self, faults: Faults) -> None:
        """Adds every fault of this group to ``faults``."""
        smoothing = self.label_smoothing
        faults.need(0 <= smoothing < 1, "loss.label_smoothing", smoothing, "in [0, 1)")
        for name in ("mixup", "cutmix"):
            faults.need(getattr(self, name) >= 0, f"loss.{name}", getattr(self, name), "of at least 0", "0 mixes none.")
        faults.need(0 <= self.switch <= 1, "loss.switch", self.switch, "in [0, 1]")


class Classifier(Method):
    """A backbone and a linear head, trained with cross-entropy.

    ``config`` has the groups ``views`` (:class:`StrongView` for DeiT's view; else plain crops), ``train`` and
    ``model.classes``.
    """

    def __init__(self, config: Any, backbone: Any) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.head = nn.Linear(backbone.num_features, config.model.classes)
        views, seed = config.views, config.train.seed
        self._crop: Any = StrongCrop(views, seed) if isinstance(views, StrongView) else MultiCrop(views, seed)
        self.crop_one = self._crop.crop_one

    def views(self, batch: Batch, step: int) -> dict[str, Any]:
        """Cuts one view of each image, float32 [batch, 3, side, side]; ``labels`` are the classes, int64 [batch]."""
        return {"images": self._crop(batch)[0], "labels": batch.labels}

    def classify(self, images: Tensor) -> Tensor:
        """The logits of images: [batch, 3, side, side] -> [batch, classes]."""
        return self.head(self.backbone(images))

    def logits(self, views: dict[str, Any]) -> Tensor:
        """The logits in training, [batch, classes]. ``views`` is the output of :meth:`views`."""
        return self.classify(views["images"])

    def forward(self, views: dict[str, Tensor]) -> dict[str, Tensor]:
        """The loss of one micro-batch, and its accuracy in [0, 1]. ``views`` is the output of :meth:`views`."""
        logits, labels = self.logits(views), views["labels"]
        right = (logits.detach().argmax(dim=1) == labels).float().mean()
        return {"loss": F.cross_entropy(logits.float(), labels), "accuracy": right}


class MixingClassifier(Classifier):
    """A :class:`Classifier` with label smoothing, mixup and CutMix, as DeiT trains; ``config.loss`` has their values.

    ``accuracy`` counts how often the largest logit is the class of the first image of a mixed pair.

    Images are mixed by timm's own function, one weight per step for all of a micro-batch: the first image with the last
    one, and so on. Of an odd number of images, the last one stays as it is. Partners are in the same micro-batch of the
    same process, so two processes pair other images than one process does.

    Source: Zhang et al., arXiv 1710.09412 (mixup); Yun et al., arXiv 1905.04899 (CutMix); Touvron et al., arXiv 2012.12877.
    """

    def __init__(self, config: Any, backbone: nn.Module) -> None:
        super().__init__(config, backbone)
        loss = config.loss
        self._mix = Mixup(
            mixup_alpha=loss.mixup,
            cutmix_alpha=loss.cutmix,
            switch_prob=loss.switch,
            label_smoothing=loss.label_smoothing,
            num_classes=config.model.classes,
        )

    def views(self, batch: Batch, step: int) -> dict[str, Any]:
        """As of :class:`Classifier`, with ``targets`` [batch, classes], whose rows sum to 1."""
        views = super().views(batch, step)
        if not self.config.loss.mixes:
            return views
        images, labels, loss = views["images"], views["labels"], self.config.loss
        even = len(labels) // 2 * 2  # timm mixes pairs
        targets = mixup_target(labels, self.config.model.classes, smoothing=loss.label_smoothing)
        with seeded_libraries(step_key(self.config.train.seed, step, "mixing")):
            mixed, mixed_targets = self._mix(images[:even], labels[:even])
        return views | {
            "images": torch.cat([mixed, images[even:]]),
            "targets": torch.cat([mixed_targets, targets[even:]]),
        }

    def forward(self, views: dict[str, Tensor]) -> dict[str, Tensor]:
        """The loss of one micro-batch, and its accuracy in [0, 1]. ``views`` is the output of :meth:`views`."""
        logits, labels = self.logits(views), views["labels"]
        targets, smoothing = views.get("targets", labels), self.config.loss.label_smoothing
        smoothing = 0.0 if self.config.loss.mixes else smoothing  # mixed targets are smooth already
        right = (logits.detach().argmax(dim=1) == labels).float().mean()
        return {"loss": F.cross_entropy(logits.float(), targets, label_smoothing=smoothing), "accuracy": right}
