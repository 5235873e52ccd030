# SPDX-License-Identifier: Apache-2.0
"""Data of recipes that learn from few labels and many images: which images keep their label, and the supports.

A recipe takes :class:`FewLabels` as its ``data`` group, and gives the engine functions ``hide_labels`` and ``support``.
"""

from dataclasses import dataclass, replace

import torch

from recipes_lib import randomness
from recipes_lib.config import DataConfig
from recipes_lib.data import splits
from recipes_lib.data.images import UNLABELLED, ImageFiles, ImageSet
from recipes_lib.data.load import Splits
from recipes_lib.data.support import SupportBatches
from recipes_lib.errors import Faults
from recipes_lib.evaluation import probes
from recipes_lib.views.multicrop import MultiCrop, ViewsConfig


@dataclass(frozen=True, kw_only=True)
class FewLabels(DataConfig):
    """Which images the run uses, which of them keep their labels, and the support that is drawn from these.

    One of ``labels_per_class``, ``label_share`` and ``labelled`` (a file of names) chooses the images that keep their
    label. If none is given, all labels are kept. The method trains on all images, labelled or not.
    All numbers are summed over processes.
    """

    labels_per_class: int | None = None
    """Number of random images per class that keep their label, at least 1."""
    label_share: float | None = None
    """Share of each class's images that keep their label, in (0, 1]; at least one image per class keeps it."""
    label_seed: int | None = 0
    """Seed that draws the images that keep their label; None: ``train.seed`` is used."""
    support_classes: int | None = 960
    """Number of classes in a support; None: all. The paper uses 960 of 1,000;
    stay near that share of the classes, however few processes there are."""
    support_images: int = 7
    """Number of images per class in a support, at least 1."""
    support_views: int = 1
    """Number of views of each support image, at least 1."""
    replacement: bool = False
    """True: if a class has too few labelled images, a support may repeat an image, each time as another view."""

    def check(self, faults: Faults) -> None:
        """Adds every fault of this group to ``faults``."""
        super().check(faults)
        chosen = [name for name in ("labels_per_class", "label_share", "labelled") if getattr(self, name) is not None]
        if len(chosen) > 1:
            given = " and ".join(f"data.{name}" for name in chosen)
            faults.add(f"{given} both say which images keep their label: set all but one of them to None.")
        share = self.label_share
        faults.need(
            share is None or 0 < share <= 1, "data.label_share", share, "in (0, 1]", "0.01 is one in a hundred."
        )
        for name in ("labels_per_class", "support_classes", "support_images", "support_views"):
            value = getattr(self, name)
            faults.need(value is None or value >= 1, f"data.{name}", value, "of at least 1")


def hide_labels(data: FewLabels, images: Splits, seed: int) -> Splits:
    """The same images, but only those training images that ``data`` chooses keep their label.

    ``seed`` draws them if ``data.label_seed`` is ``None``.

    Raises: ``DataError`` in one line if labels are missing or too few, or the file of names does not fit.
    """
    train = images.train
    if train.labels is None:
        return images  # the support raises the error for this case
    seed = seed if data.label_seed is None else data.label_seed
    if data.labels_per_class is not None:
        chosen = splits.few_per_class(train.labels, data.labels_per_class, seed, "data.labels_per_class")
    elif data.label_share is not None:
        chosen = splits.fraction(train.labels, data.label_share, seed)
    elif data.labelled is not None:
        known = (train.labels != UNLABELLED).nonzero()[:, 0]
        chosen = known[probes.labelled_indices(data.labelled, images)]
    else:
        return images
    labels = torch.full_like(train.labels, UNLABELLED)
    labels[chosen] = train.labels[chosen]
    return replace(images, train=replace(train, labels=labels))


def support_crop(data: FewLabels, views: ViewsConfig, seed: int) -> MultiCrop:
    """The crop that cuts ``support_views`` global views of each support image, with random numbers of its own."""
    alone = replace(views, global_views=data.support_views - 1, local_views=0)
    return MultiCrop(alone, randomness.step_key(seed, 0, "support views"))


def support(
    data: FewLabels, views: ViewsConfig, train: ImageSet | ImageFiles, *, seed: int, rank: int, world_size: int
) -> SupportBatches:
    """The supports of a run. Raises: ``DataError`` if labelled images are too few, or the numbers do not fit."""
    return SupportBatches(
        train,
        seed=seed,
        classes_per_batch=data.support_classes,
        images_per_class=data.support_images,
        replacement=data.replacement,
        rank=rank,
        world_size=world_size,
        crop=support_crop(data, views, seed).crop_one,
    )
