# SPDX-License-Identifier: Apache-2.0
"""BARACK's config groups: data with groups, the first step that finds groups, and the second that uses them."""

from dataclasses import dataclass
from typing import Literal, get_args

from recipes_lib.config import DataConfig
from recipes_lib.errors import Faults
from recipes_lib.models import backbones

ArmName = Literal["barack", "erm", "jtt", "lff", "george", "balanced", "subset", "oracle", "shuffled"]
ARMS: tuple[ArmName, ...] = get_args(ArmName)
PREDICTING = ("barack", "balanced", "shuffled")
"""Arms that predict the missing group labels."""
IDENTIFYING = ("jtt", "george")
"""Arms whose first step trains a classifier, from whose errors or features groups are made."""
ROBUST = ("barack", "shuffled", "george", "subset", "oracle")
"""Arms whose second step is group DRO."""
_BASE_OPTIONS = {"labelled": None, "tail": 0.0, "classes_per_batch": None, "repeats": 1, "share": 1.0, "holdout": 0.0}


@dataclass(frozen=True, kw_only=True)
class GroupData(DataConfig):
    """Images with a class and an attribute, which make groups."""

    name: Literal["pantry", "emoji", "waterbirds", "celeba"] = "waterbirds"
    """pantry: bottles and jars on wood or tiles, drawn by the library; emoji: drawings of animals and of food, by one of
    two artists, in a folder with ``emoji32.npz`` and ``captions.csv``; waterbirds: birds on land or water, or any data in
    its layout; celeba: blond or other hair, of women and men. The last two are read from ``root``."""
    fits: float = 0.95
    """``pantry`` and ``emoji`` only. Share of the training images, in (0.5, 1), whose attribute is that of their class:
    bottles on wood, jars on tiles. Among test images it is one half."""
    scored: Literal["test", "val"] = "test"
    """``waterbirds`` and ``celeba`` only. The part that is scored; val is for choosing hyper-parameters."""

    def check(self, faults: Faults) -> None:
        """Adds every fault of this group to ``faults``."""
        super().check(faults)
        faults.need(0.5 < self.fits < 1, "data.fits", self.fits, "in (0.5, 1)", "1 leaves a group without a point.")
        drawn = self.name in ("pantry", "emoji")
        faults.need(not drawn or self.scored == "test", "data.scored", self.scored, f"of test with {self.name}")
        for name, only in _BASE_OPTIONS.items():
            value = getattr(self, name)
            faults.need(value == only, f"data.{name}", value, f"of {only}", "It would change the sizes of groups.")
        faults.need(self.on_damage == "stop", "data.on_damage", self.on_damage, "of stop")


@dataclass(frozen=True, kw_only=True)
class ModelConfig(backbones.BackboneConfig):
    """The network of both steps; each step starts from new weights."""

    classes: int = 2
    """Number of classes, at least 2."""
    attributes: int = 2
    """Number of values of the attribute, at least 2."""

    @property
    def groups(self) -> int:
        """The number of groups, classes times attributes."""
        return self.classes * self.attributes

    def check(self, faults: Faults) -> None:
        """Adds every fault of this group to ``faults``."""
        super().check(faults)
        faults.need(self.classes >= 2, "model.classes", self.classes, "of at least 2")
        hint = "One value makes one group per class, whose worst loss needs no attribute."
        faults.need(self.attributes >= 2, "model.attributes", self.attributes, "of at least 2", hint)


@dataclass(frozen=True, kw_only=True)
class FindConfig:
    """The first step: which group labels there are, and how the others are found."""

    arm: ArmName = "barack"
    """barack: predicted groups, then group DRO. balanced: predicted groups, then each group equally often.
    Without group labels: erm (nothing), jtt (errors of a first network count more), lff (points on which a second
    network errs count more), george (clusters of a first network's features are the groups).
    subset: group DRO on the points with a group label alone. oracle: group DRO with all group labels.
    shuffled: barack with the predicted groups of each class in random order, the control."""
    share: float = 0.05
    """Share of the training points that keep their group label, in (0, 1]."""
    by_group: bool = True
    """True: the share of each group, and at least one point of it. False: points at random, of which a group may have
    none; such a run is refused."""
    seed: int = 0
    """Seed of which points keep their group label."""
    sees_class: bool = True
    """Whether the predictor has a head for each class, as the class of every training point is known; else one head."""
    soft: bool = False
    """``barack`` only. False: a point is of its most probable group; True: of each group with its probability."""
    flips: float = 0.0
    """Share of the predicted groups, in [0, 1), that are replaced by another group of the class, drawn at random."""
    steps: int | None = 300
    """Number of optimiser steps of the first step; give this or ``epochs``."""
    epochs: float | None = None
    """Number of passes over the points that the first step learns from; used where ``steps`` is None."""
    upweight: float = 20.0
    """``jtt`` only. How many times as often the first network's errors are drawn, at least 1."""

    def check(self, faults: Faults) -> None:
        """Adds every fault of this group to ``faults``."""
        faults.need(0 < self.share <= 1, "groups.share", self.share, "in (0, 1]", "The paper has 0.01 to 0.33.")
        if self.share == 1 and self.arm in PREDICTING:
            faults.add(
                f"groups.share = {self.share} leaves no group to predict: use --groups.arm oracle, plain group DRO."
            )
        faults.need(0 <= self.seed < 2**63, "groups.seed", self.seed, "of at least 0 and below 2**63", most=2**63 - 1)
        faults.need(not self.soft or self.arm == "barack", "groups.soft", self.soft, f"of False with arm {self.arm}")
        faults.need(0 <= self.flips < 1, "groups.flips", self.flips, "in [0, 1)")
        plain = self.flips == 0 or (self.arm in PREDICTING and not self.soft)
        faults.need(plain, "groups.flips", self.flips, "of 0 with this arm", "Only hard predicted groups are flipped.")
        if self.steps is None:
            faults.need((self.epochs or 0) > 0, "groups.epochs", self.epochs, "above 0, or give groups.steps")
        else:
            faults.need(self.steps >= 1, "groups.steps", self.steps, "of at least 1")
        faults.need(self.upweight >= 1, "groups.upweight", self.upweight, "of at least 1")


@dataclass(frozen=True, kw_only=True)
class RobustConfig:
    """The second step: group DRO's weights and LfF's second loss."""

    eta: float = 0.01
    """Step size of the groups' weights, at least 0; 0 keeps them equal. The official code's default."""
    adjustment: float = 0.0
    """C of C / sqrt(n_g), which is added to a group's loss in the update of its weight, at least 0."""
    sampling: Literal["balanced", "uniform"] = "balanced"
    """Group DRO only. balanced: each group is drawn equally often; uniform: each point."""
    focus: float = 0.7
    """``lff`` only. Exponent of the generalised cross-entropy of the second network, in (0, 1]: how much it prefers what
    it gets right already. The official code's value."""

    def check(self, faults: Faults) -> None:
        """Adds every fault of this group to ``faults``."""
        faults.need(self.eta >= 0, "loss.eta", self.eta, "of at least 0", "0.01 is usual.")
        faults.need(self.adjustment >= 0, "loss.adjustment", self.adjustment, "of at least 0", "0 adjusts nothing.")
        faults.need(0 < self.focus <= 1, "loss.focus", self.focus, "in (0, 1]", "LfF uses 0.7.")
