# SPDX-License-Identifier: Apache-2.0
"""The Pantry as a data set: pictures, classes and true factors; it is rendered once and then read from disk."""

import dataclasses
import hashlib

from torch import Tensor

from recipes_lib.data.cache import cached
from recipes_lib.data.images import ImageSet
from recipes_lib.data.pantry.factors import CLASSES, Factors
from recipes_lib.data.pantry.render import VERSION, masks, render
from recipes_lib.data.pantry.scenes import Scenes, Split, sample_factors


def dataset(count: int, *, size: int, seed: int, scenes: Scenes = "natural", split: Split = "train") -> ImageSet:
    """Makes the first ``count`` pictures of a split: images uint8 [count, 3, size, size], labels, and all factors.

    A larger count begins with the pictures of a smaller one. The splits train and test are drawn separately. Pictures
    are cached on disk (``cache.folder()``).

    Raises: ``ValueError`` for a count, size or name that is not allowed.
    """
    factors = sample_factors(count, seed, scenes, split=split)
    # the factors' digest changes with the scenes, VERSION with the renderer: both lead to new pictures
    arguments = {"factors": _digest(factors), "size": size, "version": VERSION}
    images = cached(lambda: {"images": render(factors, size)}, arguments)["images"]
    return ImageSet(images, factors.label, CLASSES, factors.to_dict())


def true_masks(images: ImageSet) -> Tensor:
    """What is seen at each pixel of images of the Pantry (:func:`masks`): int64 [N, side, side]; cached on disk.

    Raises: ``ValueError`` for images of another data set, whose factors are not the Pantry's.
    """
    if set(images.factors) != {field.name for field in dataclasses.fields(Factors)}:
        raise ValueError("these images have no masks: their factors are not those of the Pantry.")
    factors, size = Factors(**images.factors), images.images.shape[-1]
    arguments = {"masks of factors": _digest(factors), "size": size, "version": VERSION}
    return cached(lambda: {"masks": masks(factors, size)}, arguments)["masks"]


def _digest(factors: Factors) -> str:
    """The SHA-256 of all factors' names and values."""
    digest = hashlib.sha256()
    for name, values in sorted(factors.to_dict().items()):
        digest.update(name.encode() + values.contiguous().numpy().tobytes())
    return digest.hexdigest()
