# SPDX-License-Identifier: Apache-2.0
"""The strong view of supervised training: crop, mirroring, timm's RandAugment, then random erasing."""

from collections.abc import Callable
from dataclasses import dataclass

import PIL.Image
import torch
from timm.data.auto_augment import rand_augment_transform
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from recipes_lib.config.views import CHANNELS, StrongView, kernel
from recipes_lib.randomness import normal, sample_keys, seeded_libraries, step_key, uniform
from recipes_lib.views import geometry
from recipes_lib.views.multicrop import MultiCrop, ViewBatch

ERASED_AREA, ERASED_RATIO = (0.02, 1 / 3), (0.3, 1 / 0.3)
"""Ranges of an erased rectangle's share of the image's area, and of its width over its height; timm's defaults."""


class StrongCrop:
    """Makes one view of each image as DeiT's recipe does.

    RandAugment is timm's own, applied to the cropped image; the rest is ours. The random numbers of a view derive from
    ``(seed, epoch, index)``, also inside timm.

    Source: Touvron et al., "Training data-efficient image transformers & distillation through attention", arXiv
    2012.12877, Table 9; Zhong et al., "Random Erasing Data Augmentation", arXiv 1708.04896.
    """

    def __init__(self, config: StrongView, seed: int) -> None:
        self.config, self.seed = config, seed
        self._crop = MultiCrop(config, seed)
        self._augment: Callable[[PIL.Image.Image], PIL.Image.Image] | None = None
        if config.rand_augment is not None:
            how = {"translate_const": int(config.image_size * 0.45)}  # pixels; timm's own share
            how["img_mean"] = tuple(round(255 * mean) for mean in CHANNELS["imagenet"][0])  # fills what comes into view
            how["interpolation"] = getattr(PIL.Image.Resampling, kernel(config.resize).upper())
            self._augment = rand_augment_transform(config.rand_augment, how)

    def crop_one(self, image: PIL.Image.Image | Tensor, index: int, epoch: int) -> list[Tensor]:
        """Crops, mirrors and augments one image of any size; a loader's worker calls it.

        ``image``: PIL image, or uint8 tensor [3, H, W]. Returns one view, uint8 [3, side, side].
        """
        (crop,) = self._crop.crop_one(image, index, epoch)
        if self._augment is None:
            return [crop]
        with seeded_libraries(step_key(self.seed, int(sample_keys(self.seed, epoch, torch.tensor(index))), "augment")):
            return [pil_to_tensor(self._augment(to_pil_image(crop)))]

    @torch.no_grad()
    def __call__(self, batch: ViewBatch) -> list[Tensor]:
        """Returns one normalised view of each image: a list of one float32 [B, 3, side, side].

        Raises: ``ValueError`` unless the batch has either images, or one crop per image.
        """
        if self._augment is not None and batch.images is not None and batch.crops is None:
            pairs = zip(batch.images.cpu(), batch.indices.tolist(), strict=True)
            crops = torch.stack([self.crop_one(image, index, batch.epoch)[0] for image, index in pairs])
            batch = _Cropped(batch.indices, batch.epoch, None, [crops.to(batch.images.device)])
        (view,) = self._crop(batch)
        keys = sample_keys(self.seed, batch.epoch, batch.indices.cpu())
        return [erase(view, keys, self.config.erase)]


def erase(images: Tensor, keys: Tensor, probability: float) -> Tensor:
    """Fills a random rectangle of each image with Gaussian noise, with the given probability.

    It is meant for normalised images: the noise has mean 0 and standard deviation 1. ``keys``, int64 [B] on the CPU,
    give the random numbers of each image.

    Shapes: [B, 3, H, W] -> the same.
    Source: timm's ``RandomErasing`` with mode ``pixel``, one rectangle per image.
    """
    draws = uniform(keys, "erase", geometry.BOX_DRAWS + 1)
    chosen = (draws[:, -1] < probability).nonzero()[:, 0]
    if len(chosen) == 0:
        return images
    height, width = images.shape[2:]
    boxes = geometry.boxes_from(
        draws[chosen, :-1], height=height, width=width, scale=ERASED_AREA, ratio=ERASED_RATIO
    ).to(images.device)
    top, left, tall, wide = (side[:, None, None] for side in boxes.unbind(1))
    row, column = torch.arange(height, device=images.device)[:, None], torch.arange(width, device=images.device)
    inside = (row >= top) & (row < top + tall) & (column >= left) & (column < left + wide)  # [n, H, W]
    noise = normal(keys[chosen].to(images.device), "erased pixels", images[0].numel()).view(-1, *images.shape[1:])
    erased = images.clone()
    chosen = chosen.to(images.device)
    erased[chosen] = torch.where(inside[:, None], noise, images[chosen])
    return erased


@dataclass(frozen=True)
class _Cropped:
    """What :class:`MultiCrop` needs of a batch whose images are cropped."""

    indices: Tensor
    epoch: int
    images: Tensor | None
    crops: list[Tensor] | None
