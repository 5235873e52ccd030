# SPDX-License-Identifier: Apache-2.0
"""Images of many objects, each in several poses: pairs of one object in two poses, and objects and poses that are new.

Every image is of one instance (an object with its own shape and colours), and its label is the instance. A run learns
from ``train``: half of its instances are seen in all poses, the *diverse* ones, and half in typical poses only.

>>> found = draw(PantryObjects(), PoseCounts(diverse=2, typical=2, unknown=3, poses=4), size=16, seed=0)
>>> len(found.train), len(found.new_poses), len(found.unknown)
(16, 8, 12)
"""

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from recipes_lib.data import objects3d, pantry
from recipes_lib.data.cache import cached
from recipes_lib.data.images import ImageSet
from recipes_lib.data.objects3d.render import VERSION as OBJECTS_VERSION
from recipes_lib.data.pantry.render import VERSION as PANTRY_VERSION
from recipes_lib.errors import DataError
from recipes_lib.randomness import sample_keys, uniform

VERSION = 1
"""Raise it if the poses of the same seed change: cached images are then made again."""
TYPICAL = 0.1
"""Typical poses deviate from the canonical one by at most this share of the range."""
_SPLIT = 1 << 20  # poses of one set have numbers below this, so that two sets never share a random number


@dataclass(frozen=True)
class PosedImages(ImageSet):
    """Images whose label is the instance that they show, each instance in at least two poses.

    ``factors["pose"]`` [N, 3] has azimuth, elevation and roll relative to the canonical pose, in degrees.

    Raises: ``ValueError`` without labels, or for an instance with one image, which forms no pair.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.labels is None:
            raise ValueError("posed images need labels: the number of the instance that each shows.")
        counts = torch.bincount(self.labels, minlength=len(self.class_names))
        if (counts == 1).any():
            lonely = int((counts == 1).nonzero()[0])
            raise ValueError(
                f"instance {self.class_names[lonely]} has one image, which forms no pair. Give at least 2."
            )

    def partners(self, indices: Tensor, *, seed: int, epoch: int) -> Tensor:
        """The positions of other images of the same instances, one for each of ``indices``, never the image itself.

        All others are equally likely, so both directions of a motion occur; a draw depends on (seed, epoch, index).

        Shapes: int64 [n] -> int64 [n].
        """
        order = self.labels.argsort(stable=True)
        counts = torch.bincount(self.labels, minlength=len(self.class_names))
        first = counts.cumsum(0) - counts
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order))  # the place of each image among those of all instances
        of = self.labels[indices % len(self)]
        others = counts[of] - 1
        step = 1 + (uniform(sample_keys(seed, epoch, indices), "partner", 1)[:, 0] * others).long().clamp_max(
            others - 1
        )
        within = place[indices % len(self)] - first[of]
        return order[first[of] + (within + step) % counts[of]]

    def select(self, indices: Tensor) -> "PosedImages":
        """The images at ``indices`` (int64 [n], in that order)."""
        return replace(
            self,
            images=self.images[indices],
            labels=self.labels[indices],
            factors={name: factor[indices] for name, factor in self.factors.items()},
            names=tuple(self.names[i] for i in indices.tolist()),
        )


class Objects(Protocol):
    """A source of objects that can be rendered in any pose."""

    @property
    def name(self) -> str:
        """Name and version of the source, for the cache."""
        ...

    @property
    def most(self) -> int | None:
        """The number of instances that there are; None: any number."""
        ...

    def render(self, instances: Tensor, poses: Tensor, size: int, seed: int) -> Tensor:
        """Images of instances (int64 [N]) turned by ``poses`` [N, 3] from the canonical pose: uint8 [N, 3, size, size]."""
        ...


@dataclass(frozen=True)
class PantryObjects:
    """Objects of the Pantry: class, shape, colours, material and pattern differ, all else is the same."""

    name: str = f"pantry {PANTRY_VERSION}"
    most: int | None = None

    def render(self, instances: Tensor, poses: Tensor, size: int, seed: int) -> Tensor:
        """As of :class:`Objects`; the instance's looks depend on (seed, instance)."""
        looks = pantry.sample_factors(int(instances.max()) + 1, seed, "controlled").select(instances)
        azimuth, elevation, roll = poses.unbind(dim=1)
        still = {"position": 0.0, "size": 0.7, "background": "worktop", "style": "photo", "occluder": 0, "objects": 1}
        light = {"light_azimuth": 60.0, "light_elevation": 45.0, "light_strength": 1.0, "light_colour": 1.0}
        grey = {"table_colour": 0.7, "wall_colour": 0.85}
        # the Pantry's camera stays above the table
        turned = {"azimuth": azimuth, "elevation": (35 + elevation).clamp(0, 85), "roll": roll}
        return pantry.render(pantry.fix(looks, **still, **light, **grey, **turned), size)


@dataclass(frozen=True)
class MeshObjects:
    """The thousand 3-D objects of :mod:`recipes_lib.data.objects3d`, each with a shape and a colour of its own."""

    name: str = f"objects3d {OBJECTS_VERSION}"
    most: int | None = objects3d.MESHES

    def render(self, instances: Tensor, poses: Tensor, size: int, seed: int) -> Tensor:
        """As of :class:`Objects`; ``seed`` draws which mesh an instance is. Raises: ``DataError`` without pybullet."""
        order = torch.randperm(objects3d.MESHES, generator=torch.Generator().manual_seed(seed))
        factors = objects3d.canonical(order[instances])
        azimuth, elevation, roll = poses.unbind(dim=1)
        turned = {
            "azimuth": factors.azimuth + azimuth,
            "elevation": factors.elevation + elevation,
            "roll": factors.roll + roll,
        }
        return objects3d.render(objects3d.fix(factors, **turned), size)


@dataclass(frozen=True, kw_only=True)
class PoseCounts:
    """How many instances of each kind there are, and how far they turn."""

    diverse: int
    """Number of training instances that are seen in all poses, at least 1."""
    typical: int
    """Number of training instances that are seen in typical poses only, at least 1."""
    unknown: int
    """Number of instances that are never seen in training, at least 2."""
    poses: int
    """Number of images of each instance in each set, at least 2; the first one of an instance has the canonical pose."""
    azimuth: float = 0.0
    """Largest turn about the upright axis, in either direction, in degrees, in [0, 180]."""
    elevation: float = 0.0
    """Largest tilt, in degrees, in [0, 180]."""
    roll: float = 180.0
    """Largest turn in the image plane, in degrees, in [0, 180]."""


@dataclass(frozen=True)
class PoseSets:
    """The sets of images that a run on poses learns from and is scored on."""

    train: PosedImages
    """The diverse instances, in order, then those in typical poses."""
    diverse: int
    """Number of diverse instances: labels below it are theirs."""
    new_poses: PosedImages
    """The training instances that had typical poses only, in poses that no training image has."""
    unknown: PosedImages
    """Instances that are in no other set, in all poses; its labels count from 0."""


def draw(objects: Objects, counts: PoseCounts, *, size: int, seed: int) -> PoseSets:
    """Renders the sets of images, or reads them from the cache.

    Raises: ``DataError`` if the source has fewer instances than are asked for; what ``objects`` raises.
    """
    known, every = counts.diverse + counts.typical, counts.diverse + counts.typical + counts.unknown
    if objects.most is not None and every > objects.most:
        raise DataError(
            f"{every} instances are asked for ({counts.diverse} diverse, {counts.typical} typical, {counts.unknown} "
            f"unknown), and there are {objects.most}. Ask for fewer."
        )
    narrow = torch.arange(known) >= counts.diverse
    train = _set(objects, counts, torch.arange(known), narrow, kind=0, size=size, seed=seed)
    tested = torch.arange(counts.diverse, known)
    new = _set(objects, counts, tested, torch.zeros(len(tested), dtype=torch.bool), kind=1, size=size, seed=seed)
    fresh = torch.arange(known, every)
    unknown = _set(objects, counts, fresh, torch.zeros(len(fresh), dtype=torch.bool), kind=2, size=size, seed=seed)
    names = train.class_names
    new = replace(new, class_names=names)
    return PoseSets(
        train,
        counts.diverse,
        new,
        replace(unknown, labels=unknown.labels - known, class_names=unknown.class_names[known:]),
    )


def _set(
    objects: Objects, counts: PoseCounts, instances: Tensor, narrow: Tensor, *, kind: int, size: int, seed: int
) -> PosedImages:
    """The images of ``instances``, those of ``narrow`` (bool [n]) ones in typical poses. Set 1 has no canonical pose."""
    instance = instances.repeat_interleave(counts.poses)
    number = torch.arange(counts.poses).repeat(len(instances))
    keys = sample_keys(seed, kind, instance * _SPLIT + number)
    share = torch.where(narrow.repeat_interleave(counts.poses), TYPICAL, 1.0)[:, None]
    ranges = torch.tensor([counts.azimuth, counts.elevation, counts.roll])
    poses = (2 * uniform(keys, "poses", 3) - 1) * ranges * share  # [n * poses, 3]
    if kind != 1:
        poses[number == 0] = 0
    facts = {
        "objects": objects.name,
        "size": size,
        "seed": seed,
        "version": VERSION,
        "counts": repr(counts),
        "kind": kind,
    }
    images = cached(lambda: {"images": objects.render(instance, poses, size, seed)}, facts)["images"]
    names = tuple(map(str, range(int(instances.max()) + 1)))
    return PosedImages(images, instance, names, {"pose": poses})
