# SPDX-License-Identifier: Apache-2.0
"""What recipes do that learn from a few labels and many images: choose the images that keep theirs, draw supports.

A recipe takes :class:`FewLabels` as its ``data`` group and has functions ``hide_labels`` and ``support``, which
the engine calls.
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
    """Which images, which of them keep their labels, and the support drawn from these.

    Labels come from one of ``labels_per_class``, ``label_share`` and ``labelled`` (a file of names); where none is
    given, every label there is counts. All images are trained on, the labelled ones too. Numbers count over all
    processes.
    """

    labels_per_class: int | None = None
    """So many random images of each class keep their label."""
    label_share: float | None = None
    """This share of each class keeps its label, in (0, 1]; at least one image of each."""
    label_seed: int | None = 0
    """Draws which images these are; none: ``train.seed`` does."""
    support_classes: int | None = 960
    """Classes in a support; none: all of them. Keep it near the paper's 960 of 1,000 on however few processes."""
    support_images: int = 7
    """Images of each of its classes."""
    support_views: int = 1
    """Views of each support image."""
    replacement: bool = False
    """Let a support have the same image more than once, each time as another view, where a class has too few."""

    def check(self, faults: Faults) -> None:
        """Notes every fault of this group in ``faults``."""
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
    """The same images, of which in training only those that ``data`` chooses have a label.

    ``seed`` chooses them where ``data.label_seed`` is none.

    Raises: ``DataError`` in one line where labels are absent or too few, or the file of names does not fit.
    """
    train = images.train
    if train.labels is None:
        return images  # the support has the word for it
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
    """Cuts the ``support_views`` large views of a support's images, by draws that no other view shares."""
    alone = replace(views, global_views=data.support_views - 1, local_views=0)
    return MultiCrop(alone, randomness.step_key(seed, 0, "support views"))


def support(
    data: FewLabels, views: ViewsConfig, train: ImageSet | ImageFiles, *, seed: int, rank: int, world_size: int
) -> SupportBatches:
    """The supports of a run. Raises: ``DataError`` where the labelled images are too few, or the numbers do not fit."""
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
