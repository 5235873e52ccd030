# SPDX-License-Identifier: Apache-2.0
"""The labelled support images of a step: equally many of each of some classes, chosen by the step's number only.

Source: Assran et al., "Semi-Supervised Learning of Visual Features by Non-Parametrically Predicting View Assignments
with Support Samples", ICCV 2021, arXiv 2104.13963.
"""

import torch
from torch import Tensor

from recipes_lib import randomness
from recipes_lib.data.images import ImageFiles, ImageSet
from recipes_lib.data.loader import Batch, Crop
from recipes_lib.errors import DataError


class SupportBatches:
    """Draws the support of each micro-batch: ``images_per_class`` images of each of ``classes_per_batch`` classes.

    All numbers count over all ranks. The rows are interleaved: one image of each class, then a second one of each, in
    the same order of classes. Rank r takes the r-th of ``world_size`` equal parts of the rows, so all ranks together
    draw the same support as one process. If ``classes_per_batch`` is None, each support has all classes.

    Classes are visited in passes, in random order, and so are the images of a class: all of them are used before one is
    used again, so few or none of a support's images come again at the class's next visit. If a pass ends with fewer
    classes (or images) than a support needs, they are dropped, so no support has one of them twice. With
    ``replacement`` a class may have fewer images than a support needs: each image is used equally often, and some, in
    turn, once more.

    Raises: ``DataError`` if a class has too few images or the numbers do not fit.
    Differs: in the official code more images of a class's last visit come again, as if they were drawn anew at every
    visit: in a comparison with supports of 4 images per class 2.0 of them did, and 1.0 here. There each rank draws its
    own support, and a setting says whether ranks share classes. Here the numbers decide this, and the loss, which uses
    the rows of all ranks, does not depend on it.
    """

    def __init__(
        self,
        train: ImageSet | ImageFiles,
        *,
        seed: int,
        classes_per_batch: int | None,
        images_per_class: int,
        replacement: bool = False,
        rank: int = 0,
        world_size: int = 1,
        crop: Crop | None = None,
    ) -> None:
        self._train, self._seed, self._crop = train, seed, crop
        self._members = _members(train)
        self._classes = classes_per_batch or len(self._members)
        self._images, self._replacement = images_per_class, replacement
        self._check(train.class_names)
        self._rows = self._classes * images_per_class
        if self._rows % world_size:
            raise DataError(
                f"A support of {self._classes} classes x {images_per_class} images = {self._rows} rows does not divide "
                f"among {world_size} processes. Change data.support_classes or data.support_images."
            )
        share = self._rows // world_size
        self._own = torch.arange(rank * share, (rank + 1) * share)

    def _check(self, names: tuple[str, ...]) -> None:
        if self._classes > len(self._members):
            raise DataError(
                f"data.support_classes = {self._classes}, but there are {len(self._members)} classes. "
                f"Use at most {len(self._members)}."
            )
        for name, members in zip(names, self._members, strict=True):
            if not len(members):
                raise DataError(f"Class {name!r} has no labelled image, and the support needs one of each class.")
            if len(members) < self._images and not self._replacement:
                raise DataError(
                    f"Class {name!r} has {len(members)} labelled images, but the support takes {self._images} of each "
                    f"class. Use data.support_images of at most {len(members)}, or --data.replacement."
                )

    def batch(self, position: int) -> Batch:
        """This rank's rows of the support of micro-batch ``position``, counted from the start of the run.

        ``labels`` int64 [rows]: the class's number within the support, from 0. ``indices`` are the rows' numbers in the
        whole support and ``epoch`` is ``position``, so that two copies of an image get different views.

        Raises: ``DataError`` naming an image file that cannot be read.
        """
        chosen = self._chosen(position)  # [images, classes]
        own = chosen.flatten()[self._own]
        columns = self._own % self._classes
        if isinstance(self._train, ImageSet):
            return Batch(self._own, position, self._train.images[own], None, columns)
        rows = zip(self._own.tolist(), own.tolist(), strict=True)
        samples = [self._crop(self._train.open(index), row, position) for row, index in rows]
        return Batch(self._own, position, None, [torch.stack(view) for view in zip(*samples, strict=True)], columns)

    def _chosen(self, position: int) -> Tensor:
        """The images of a whole support: int64 [images_per_class, classes_per_batch], one class per column."""
        # a class is in at most one support of a pass, so the pass's number is the number of the class's visit
        visit, turn = divmod(position, len(self._members) // self._classes)
        order = torch.randperm(len(self._members), generator=randomness.generator(self._seed, visit, "support classes"))
        classes = order[turn * self._classes : (turn + 1) * self._classes]
        return torch.stack([self._of_class(label, visit) for label in classes.tolist()], dim=1)

    def _of_class(self, label: int, visit: int) -> Tensor:
        """The images of a class that are used at a visit: int64 [images_per_class]."""
        members = self._members[label]
        copies, rest = divmod(self._images, len(members))
        if rest:  # a pass over the images has as many visits as it can fill
            number, turn = divmod(visit, len(members) // rest)
            generator = randomness.generator(self._seed, number, f"support images of class {label}")
            order = torch.randperm(len(members), generator=generator)
            return torch.cat([members.repeat(copies), members[order[turn * rest : (turn + 1) * rest]]])
        return members.repeat(copies)


def _members(train: ImageSet | ImageFiles) -> list[Tensor]:
    """The indices (int64) of the labelled images of each class; raises ``DataError`` if the images have no labels."""
    if train.labels is None:
        raise DataError("The training images have no labels, and a support is made of labelled images.")
    return [(train.labels == label).nonzero()[:, 0] for label in range(len(train.class_names))]
