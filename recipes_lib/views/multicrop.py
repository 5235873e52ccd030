# SPDX-License-Identifier: Apache-2.0
"""Multi-crop: makes several random views of every image, drawn per sample and computed for the whole batch at once."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from torch import Tensor

from recipes_lib.config.views import Kernel, Normalize, Resize, ViewsConfig, kernel
from recipes_lib.randomness import sample_keys, uniform
from recipes_lib.views import colour, geometry
from recipes_lib.views.look import LOOK_DRAWS, Look, develop_, look_from

__all__ = ["MultiCrop", "Normalize", "Resize", "ViewBatch", "ViewsConfig", "eval_box", "eval_view"]

# Float values that are processed together: 300,000 x 4 bytes = 1.2 MB, about the second-level cache of a core.
_CACHED_VALUES = 300_000


class ViewBatch(Protocol):
    """The fields of a batch that :class:`MultiCrop` needs: the images, or the crops that workers have made of them."""

    @property
    def indices(self) -> Tensor:
        """int64 [B]: positions in the data set, from which all random numbers of a sample derive."""

    @property
    def epoch(self) -> int:
        """Epoch, from 0, from which the random numbers derive too."""

    @property
    def images(self) -> Tensor | None:
        """uint8 [B, 3, H, W]; None if there are crops."""

    @property
    def crops(self) -> list[Tensor] | None:
        """uint8 [B, 3, side, side] for each view, made by :meth:`MultiCrop.crop_one`; None if there are images."""


@dataclass(frozen=True)
class Kind:
    """The views of one size."""

    name: str
    """The name from which, with the view's number within the kind, the random numbers derive."""
    count: int
    """Number of views per image."""
    size: int
    """Side of the views in pixels."""
    scale: tuple[float, float]
    """Range of a crop's share of the image's area."""


class MultiCrop:
    """Makes the target view, then ``global_views`` anchor views, then ``local_views`` small anchor views.

    The random numbers of a view derive from ``(seed, epoch, index)``, its kind and its number. They do not depend on
    the batch, the rank, the worker or the number of other views.
    """

    def __init__(
        self, config: ViewsConfig, seed: int, *, second: ViewsConfig | None = None, local: ViewsConfig | None = None
    ) -> None:
        """``second`` and ``local``: colours and blur of the second global view and of the local views, if not the same.

        Sizes, crops, mirroring, noise and normalisation are always those of ``config``.
        """
        self.config = config
        self.second = second or config
        self.local = local or config
        self.seed = seed
        self.kinds = (
            Kind("global", config.global_views + 1, config.image_size, config.global_scale),
            Kind("local", config.local_views, config.local_size, config.local_scale),
        )

    def crop_one(self, image: PIL.Image.Image | Tensor, index: int, epoch: int) -> list[Tensor]:
        """Crops one image of any size for all views; a loader's worker calls it, so that a batch can be stacked.

        ``image``: PIL image, or uint8 tensor [3, H, W]. Returns uint8 [3, side, side] for each view, cropped and
        mirrored; :meth:`__call__` does the rest on the stacked crops.
        """
        if isinstance(image, PIL.Image.Image):
            image = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
        keys = sample_keys(self.seed, epoch, torch.tensor([index]))
        crops = []
        for kind in self.kinds:
            boxes, flip = self._places(kind, keys, image.shape[1], image.shape[2])
            views = image.new_empty(kind.count, 3, kind.size, kind.size)
            crops += geometry.crop_each(
                [image] * kind.count, boxes[:, 0], flip[:, 0], views, kernel(self.config.resize)
            )
        return crops

    @torch.no_grad()
    def __call__(self, batch: ViewBatch) -> list[Tensor]:
        """Returns all views, normalised: float32 [B, 3, side, side] each, on the device of the images (or crops).

        Raises: ``ValueError`` unless the batch has either images, or one crop per view.
        """
        if (batch.images is None) == (batch.crops is None):
            raise ValueError("a batch must have either images or crops, and not both")
        count = sum(kind.count for kind in self.kinds)
        if batch.crops is not None and len(batch.crops) != count:
            raise ValueError(f"a batch of {len(batch.crops)} crops cannot make {count} views")
        keys = sample_keys(self.seed, batch.epoch, batch.indices.cpu())
        views: list[Tensor] = []
        for kind in self.kinds:
            looks = self._draws(kind, "look", keys, LOOK_DRAWS)
            equalize, threshold = (self._draws(kind, name, keys, 1) for name in ("equalize", "solarize threshold"))
            if batch.images is not None:
                boxes, flip = self._places(kind, keys, *batch.images.shape[2:])
            for number in range(kind.count):
                if batch.images is not None:
                    cut = partial(
                        _cut, batch.images, boxes[number], flip[number], kind.size, kernel(self.config.resize)
                    )
                else:
                    cut = partial(_picked, batch.crops[len(views)])
                colours = self.local if kind.name == "local" else self.second if number == 1 else self.config
                look = look_from(colours, looks[number], equalize[number], threshold[number])
                views.append(self._view(kind, number, keys, look, cut))
        return views

    def _draws(self, kind: Kind, purpose: str, keys: Tensor, count: int) -> Tensor:
        """Draws ``count`` uniform numbers per view and sample of a kind, which do not depend on the number of views.

        Shapes: ``keys`` int64 [B] -> [views, B, count].
        """
        draws = uniform(keys, f"{kind.name} view {purpose}", kind.count * count)
        return draws.view(len(keys), kind.count, count).transpose(0, 1)

    def _places(self, kind: Kind, keys: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Draws the box of each crop, int64 [views, B, 4], and whether it is mirrored, bool [views, B]."""
        draws = self._draws(kind, "place", keys, geometry.BOX_DRAWS + 1)
        boxes = geometry.boxes_from(draws[..., :-1], height=height, width=width, scale=kind.scale)
        return boxes, draws[..., -1] < self.config.flip

    def _view(self, kind: Kind, number: int, keys: Tensor, look: Look, cut: Callable[[Tensor], Tensor]) -> Tensor:
        """Computes one view of all samples [B, 3, size, size]; ``cut`` maps sample numbers to their crops."""
        parts = _parts(look, 3 * kind.size**2)
        done: list[Tensor] = []
        for rows, part in zip(parts, look.split(parts), strict=True):
            images = develop_(cut(rows), part)
            if self.config.noise:
                noise = f"{kind.name} view {number} noise"
                images = colour.add_noise(images, keys[rows].to(images.device), noise, self.config.noise)
            done.append(_normalized_(images, self.config.normalize))
        back = torch.cat(parts).argsort().to(done[0].device)  # the parts reorder samples; this restores their order
        return torch.cat(done).index_select(0, back)


def _parts(look: Look, values: int) -> list[Tensor]:
    """Splits the sample numbers into parts (int64) that fit the cache, at ``values`` numbers per sample.

    All samples of a part rotate their hue, the costliest jitter, at the same place of their order, or none does.
    """
    turned = look.order == colour.HUE
    idle = (look.order == colour.NOTHING).all(dim=1)
    # 0 to 3: place of the hue in the order; 4: other jitter only; 5: no jitter
    place = torch.where(turned.any(dim=1), turned.int().argmax(dim=1), 4 + idle.int())
    step = max(1, _CACHED_VALUES // values)
    return [part for rank in range(6) for part in (place == rank).nonzero()[:, 0].split(step) if len(part)]


def _cut(images: Tensor, boxes: Tensor, flip: Tensor, size: int, mode: Kernel, rows: Tensor) -> Tensor:
    # index_select: indexing bytes by a tensor takes twenty times as long
    chosen = images.index_select(0, rows.to(images.device))
    return geometry.resized_crop(chosen, boxes[rows], size, flip[rows], mode)


def _picked(crops: Tensor, rows: Tensor) -> Tensor:
    return geometry.to_float(crops.index_select(0, rows.to(crops.device)))


def eval_box(height: int, width: int, size: int, resize: Resize = "bilinear") -> tuple[int, int, int, int]:
    """How an image is resized and cropped for evaluation: its new height and width, and the top and left of the crop.

    The shorter side becomes ``size`` * 256 / 224, or ``size`` itself for ``bicubic`` and for an image that is too
    small. An image of ``size`` x ``size`` is not resized. The crop is the central square of side ``size``. The longer
    side is rounded down, and the corner of the square to the nearest pixel (halves to even), as torchvision's
    ``Resize`` and ``CenterCrop`` do.

    Differs: torchvision's usual pair enlarges small images to ``size`` * 256 / 224 too, and crops their borders.
    """
    if (height, width) == (size, size):
        return height, width, 0, 0
    margin, shortest = round(size * 256 / 224), min(height, width)
    short = margin if resize != "bicubic" and shortest >= margin else size
    new = [short * side // shortest for side in (height, width)]
    return *new, *(round((side - size) / 2) for side in new)


def eval_view(images: Tensor, size: int, normalize: Normalize = "imagenet", resize: Resize = "bilinear") -> Tensor:
    """The view for evaluation, without randomness: resized and cropped by :func:`eval_box`, then normalised.

    Shapes: uint8 (0 to 255) or float (0 to 1) [B, 3, H, W] -> float32 [B, 3, size, size].
    """
    images = geometry.to_float(images) if images.dtype == torch.uint8 else images.clone()
    height, width, top, left = eval_box(*images.shape[2:], size, resize)
    if images.shape[2:] != (height, width):
        images = F.interpolate(images, (height, width), mode=kernel(resize), antialias=True)
        images = (
            images.clamp_(0, 1) if kernel(resize) == "bicubic" else images
        )  # bicubic interpolation may leave [0, 1]
    return _normalized_(images[:, :, top : top + size, left : left + size].contiguous(), normalize)


def _normalized_(images: Tensor, kind: Normalize) -> Tensor:
    """Normalises float images [B, 3, H, W] as ``kind`` asks; it may overwrite ``images``."""
    match kind:
        case "imagenet" | "openai" | "cifar10":
            return colour.normalize_(images, *colour.CHANNELS[kind])
        case "image":
            return colour.standardize(images)
        case "grey":
            return colour.standardize(colour.grayscale(images))
