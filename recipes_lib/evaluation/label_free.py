# SPDX-License-Identifier: Apache-2.0
"""Runs the probes that need no labels, on the features of a network for training images and for views of them."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recipes_lib.config.views import Normalize, Resize, ViewsConfig
from recipes_lib.data.images import ImageFiles, ImageSet
from recipes_lib.evaluation import hypersphere, rotation, spectrum
from recipes_lib.evaluation.baselines import PIXEL_SIDE
from recipes_lib.evaluation.features import evaluating, read_chunks, some
from recipes_lib.views.multicrop import MultiCrop, eval_view

MOST_IMAGES = 4096
"""The number of training images of which features are taken; RankMe's paper takes 25,600. It must exceed the width."""
LIDAR_IMAGES, LIDAR_VIEWS = 1024, 10
"""The number of images that LiDAR compares, and of views of each. Its images must exceed the width too."""
ROTATED_IMAGES = 1024
"""The number of images that are turned for the rotation probe."""
OF_IMAGES: dict[str, Callable[[Tensor], float]] = {
    "rankme": spectrum.rankme,
    "alpha_req": spectrum.alpha_req,
    "uniformity": hypersphere.uniformity,
    "std": hypersphere.normalized_std,
}
"""The probes that need one feature vector per image."""
OF_VIEWS = ("lidar", "alignment")
"""The probes that compare augmented views of an image."""
OF_DIRECTIONS = ("uniformity", "alignment", "std", "rotation")
"""The probes that say something of raw pixels too. The rank of pixels is that of another space."""


@dataclass(frozen=True, kw_only=True)
class Looks:
    """How a network sees an image: the evaluation view, and the random views of training."""

    image_size: int
    normalize: Normalize
    resize: Resize
    views: ViewsConfig
    """The augmentation. One large view of it is cut at a time."""
    seed: int
    """Seed of the augmentation; it is that of evaluation, not of training."""
    workers: int = 0
    """Number of processes that open image files."""


class RawPixels(nn.Module):
    """The pixels that a network would see, at most 32 x 32 of them, minus their mean, in place of a backbone."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.zeros(()), requires_grad=False)  # the device of the images

    def forward(self, images: Tensor) -> Tensor:
        """The pixels as features.  [B, 3, side, side] -> [B, 3 * min(side, 32)^2]"""
        if images.shape[-1] > PIXEL_SIDE:
            images = F.interpolate(images, size=(PIXEL_SIDE, PIXEL_SIDE), mode="area")
        pixels = images.flatten(1)
        return pixels - pixels.mean(dim=1, keepdim=True)


def measure(backbone: nn.Module, images: ImageSet | ImageFiles, names: Sequence[str], looks: Looks) -> dict[str, float]:
    """The label-free probes ``names`` of the final features of a backbone, by name.

    A spectrum that is not defined, because all images have the same features, is left out.

    ``backbone`` maps images [B, 3, side, side] to features [B, D], in evaluation mode, and is afterwards in the mode in
    which it was before.

    Raises: ``ValueError`` for features that are not finite.
    """
    found: dict[str, float] = {}
    with evaluating(backbone):
        if set(names) & set(OF_IMAGES):
            features = _features(backbone, some(images, MOST_IMAGES), looks, _evaluation_view(looks))
            for name, probe in OF_IMAGES.items():
                if name in names:
                    with suppress(spectrum.NoSpectrum):
                        found[name] = probe(features)
        if set(names) & set(OF_VIEWS):
            views = LIDAR_VIEWS if "lidar" in names else 2
            chosen = some(images, LIDAR_IMAGES)
            features = torch.stack([_of_view(backbone, chosen, looks, number) for number in range(views)], dim=1)
            if "lidar" in names:
                with suppress(spectrum.NoSpectrum):
                    found["lidar"] = spectrum.lidar(features)
            if "alignment" in names:
                found["alignment"] = hypersphere.alignment(features[:, 0], features[:, 1])
        if "rotation" in names:
            see = _evaluation_view(looks)
            turned = _features(backbone, some(images, ROTATED_IMAGES), looks, lambda x: rotation.turned(see(x)))
            accuracy = rotation.rotation_accuracy(turned.unflatten(0, (-1, rotation.TURNS)), seed=looks.seed)
            found["rotation"] = accuracy
    return {name: found[name] for name in names if name in found}


def _evaluation_view(looks: Looks) -> Callable[[Tensor], Tensor]:
    return lambda images: eval_view(images, looks.image_size, looks.normalize, looks.resize)


def _features(
    backbone: nn.Module, images: ImageSet | ImageFiles, looks: Looks, see: Callable[[Tensor], Tensor]
) -> Tensor:
    """float32, on the CPU: the features of what ``see`` makes of each chunk of images."""
    chunks = read_chunks(images, looks.image_size, 256, looks.workers, looks.resize)
    return _through(backbone, (see(chunk) for chunk in chunks))


def _through(backbone: nn.Module, views: Iterable[Tensor]) -> Tensor:
    device = next(backbone.parameters()).device
    with torch.no_grad():
        return torch.cat([backbone(view.to(device)).float().cpu() for view in views])


def _of_view(backbone: nn.Module, images: ImageSet | ImageFiles, looks: Looks, number: int) -> Tensor:
    """The features [N, D] of one random view of each image; ``number`` takes the place of the epoch in its draws."""
    one = replace(looks.views, global_views=0, local_views=0)
    crop = MultiCrop(one, looks.seed)

    def views() -> Iterable[Tensor]:
        for indices in torch.arange(len(images)).split(256):
            chunk = images.select(indices)
            if isinstance(chunk, ImageSet):
                yield crop(_Views(indices, number, chunk.images, None))[0]
            else:
                cut = [crop.crop_one(images.open(index), index, number) for index in indices.tolist()]
                yield crop(_Views(indices, number, None, [torch.stack([views[0] for views in cut])]))[0]

    return _through(backbone, views())


@dataclass(frozen=True)
class _Views:
    """What :class:`MultiCrop` needs of a batch."""

    indices: Tensor
    epoch: int
    images: Tensor | None
    crops: list[Tensor] | None
