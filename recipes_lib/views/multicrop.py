# SPDX-License-Identifier: Apache-2.0
"""Multi-crop: several random views of every image of a batch, drawn per sample and computed for the batch at once.

The order of the operations is that of torchvision's usual pipeline: crop, mirror, (turn,) jitter, greyscale, blur,
solarise, (invert, shuffle channels, noise,) normalise.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from torch import Tensor

from recipes_lib.errors import Faults
from recipes_lib.randomness import sample_keys, uniform
from recipes_lib.views import colour, geometry
from recipes_lib.views.blur import gaussian_blur

# A part of a batch should fit the second-level cache of a core (about 1 MB) with its temporaries.
_CACHED_VALUES = 200_000


@dataclass(frozen=True, kw_only=True)
class ViewsConfig:
    """The views of an image and how they are altered. Defaults: the MSN paper's ImageNet recipe."""

    image_size: int = 224
    """Side of a global view, in pixels."""
    global_views: int = 1
    """Global views of the anchor; the target's view is one more."""
    global_scale: tuple[float, float] = (0.3, 1.0)
    """Range of a global crop's share of the image's area."""
    local_size: int = 96
    """Side of a local (focal) view, in pixels."""
    local_views: int = 10
    """Local views of the anchor. Such a small crop is the focal mask: it hides all but one block of the image."""
    local_scale: tuple[float, float] = (0.05, 0.3)
    """Range of a local crop's share of the image's area."""
    flip: float = 0.5
    """Probability of mirroring left and right."""
    jitter: float = 0.8
    """Probability of the four colour jitters, which come in random order."""
    brightness: float = 0.4
    """Factor drawn from 1 - this to 1 + this, as are the next two."""
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    """Turn of the hue, drawn from - this to + this, in full circles; at most 0.5."""
    grayscale: float = 0.2
    """Probability of losing all colour."""
    blur: float = 0.5
    """Probability of a Gaussian blur."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Range of the blur's standard deviation, in pixels of the view."""
    solarize: float = 0.0
    """Probability of inverting the bright half of the pixels."""
    rotate: float = 0.0
    """Largest turn to either side, in degrees; 0: none."""
    invert: float = 0.0
    """Probability of a negative."""
    shuffle_channels: float = 0.0
    """Probability of a random order of red, green and blue."""
    noise: float = 0.0
    """Standard deviation of the noise added to each value, of a range 0 to 1; 0: none."""
    normalize: Literal["imagenet", "image"] = "imagenet"
    """imagenet: by ImageNet's mean and deviation of each channel; image: each image to mean 0 and deviation 1."""

    def check(self, faults: Faults) -> None:
        """Notes every fault of this group in ``faults``."""
        for name in ("image_size", "local_size"):
            faults.need(getattr(self, name) >= 8, f"views.{name}", getattr(self, name), "of at least 8")
        faults.need(self.global_views >= 0, "views.global_views", self.global_views, "of at least 0")
        faults.need(self.local_views >= 0, "views.local_views", self.local_views, "of at least 0")
        if self.global_views == self.local_views == 0:
            faults.add(
                "views.global_views = 0 and views.local_views = 0 leave the anchor no view: set one of them to at least 1."
            )
        for name in ("global_scale", "local_scale"):
            low, high = getattr(self, name)
            faults.need(0 < low <= high <= 1, f"views.{name}", (low, high), "pair with 0 < first <= second <= 1")
        for name in ("flip", "jitter", "grayscale", "blur", "solarize", "invert", "shuffle_channels"):
            faults.need(0 <= getattr(self, name) <= 1, f"views.{name}", getattr(self, name), "in [0, 1]")
        for name in ("brightness", "contrast", "saturation", "noise"):
            faults.need(getattr(self, name) >= 0, f"views.{name}", getattr(self, name), "of at least 0")
        faults.need(0 <= self.hue <= 0.5, "views.hue", self.hue, "in [0, 0.5]", "Half a circle reaches every hue.")
        faults.need(0 <= self.rotate <= 180, "views.rotate", self.rotate, "in [0, 180] degrees")
        low, high = self.blur_sigma
        faults.need(0 < low <= high, "views.blur_sigma", (low, high), "pair with 0 < first <= second")


class ViewBatch(Protocol):
    """What :class:`MultiCrop` needs of a batch: the images, or their crops where workers have cut them."""

    indices: Tensor
    """int64 [B]: positions in the data set, from which every draw derives."""
    epoch: int
    images: Tensor | None
    """uint8 [B, 3, H, W]."""
    crops: list[Tensor] | None
    """uint8 [B, 3, side, side] for each view, as :meth:`MultiCrop.crop_one` cut them."""


@dataclass(frozen=True)
class View:
    """One of the views: the name that its draws go by, its side in pixels, its crops' range of areas."""

    name: str
    size: int
    scale: tuple[float, float]


@dataclass(frozen=True)
class Look:
    """What happens to the colours of each sample of one view; all on the CPU, where it decides what is computed."""

    order: Tensor
    """int64 [B, 4]: the jitters in turn, as :func:`colour.color_jitter` takes them."""
    factors: Tensor
    """float [B, 4]: brightness, contrast, saturation, hue."""
    grayscale: Tensor
    """bool [B]."""
    sigma: Tensor
    """float [B]: the blur's deviation in pixels; 0: none."""
    solarize: Tensor
    """bool [B]."""
    invert: Tensor
    """bool [B]."""
    channels: Tensor
    """int64 [B, 3]: the order of red, green and blue."""
    degrees: Tensor
    """float [B]: turn, counter-clockwise."""

    def rows(self, part: slice) -> "Look":
        """The looks of some samples."""
        return Look(**{name: values[part] for name, values in vars(self).items()})


def draw_look(config: ViewsConfig, keys: Tensor, view: str) -> Look:
    """The looks of samples with ``keys`` int64 [B] in the view of that name."""

    def happens(name: str, probability: float) -> Tensor:
        return uniform(keys, f"{view} {name}", 1)[:, 0] < probability

    strengths = torch.tensor([config.brightness, config.contrast, config.saturation, config.hue])
    spread = strengths * (2 * uniform(keys, f"{view} jitter factors", 4) - 1)
    factors = (spread + torch.tensor([1.0, 1.0, 1.0, 0.0])).clamp_(min=torch.tensor([0.0, 0.0, 0.0, -0.5]))
    order = uniform(keys, f"{view} jitter order", 4).argsort(dim=1, stable=True)
    idle = ~happens("jitter", config.jitter)[:, None] | (strengths == 0)[order]
    low, high = config.blur_sigma
    sigma = low + (high - low) * uniform(keys, f"{view} blur sigma", 1)[:, 0]
    shuffled = uniform(keys, f"{view} channel order", 3).argsort(dim=1, stable=True)
    return Look(
        order=order.masked_fill(idle, colour.NOTHING),
        factors=factors,
        grayscale=happens("grayscale", config.grayscale),
        sigma=sigma * happens("blur", config.blur),
        solarize=happens("solarize", config.solarize),
        invert=happens("invert", config.invert),
        channels=torch.where(happens("channels", config.shuffle_channels)[:, None], shuffled, torch.arange(3)),
        degrees=config.rotate * (2 * uniform(keys, f"{view} degrees", 1)[:, 0] - 1),
    )


def develop_(images: Tensor, look: Look) -> Tensor:
    """Gives float images [B, 3, H, W] in [0, 1] their looks, in place; only the samples concerned are computed."""
    _on_rows_(images, look.degrees != 0, lambda some, rows: geometry.rotate(some, look.degrees[rows]))
    colour.color_jitter_(images, look.factors, look.order)
    _on_rows_(images, look.grayscale, lambda some, rows: colour.luma(some).expand_as(some))
    _on_rows_(images, look.sigma > 0, lambda some, rows: gaussian_blur(some, look.sigma[rows]))
    _on_rows_(images, look.solarize, lambda some, rows: torch.where(some >= 0.5, 1 - some, some))
    _on_rows_(images, look.invert, lambda some, rows: 1 - some)
    moved = (look.channels != torch.arange(3)).any(dim=1)
    _on_rows_(images, moved, lambda some, rows: colour.shuffle_channels(some, look.channels[rows]))
    return images


def _on_rows_(images: Tensor, chosen: Tensor, change: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Replaces the rows where ``chosen`` bool [B] is set by ``change(those images, their numbers)``."""
    rows = chosen.nonzero()[:, 0]
    if len(rows) == len(images):
        images.copy_(change(images, rows))
    elif len(rows):
        there = rows.to(images.device)
        images.index_copy_(0, there, change(images.index_select(0, there), rows))


class MultiCrop:
    """The target's view, then ``global_views`` anchor views, then ``local_views`` small ones.

    A view's draws derive from ``(seed, epoch, index)`` and its name ("global view 1", "local view 3"): they are the same
    whatever the batch, the rank, the worker or the number of other views.
    """

    def __init__(self, config: ViewsConfig, seed: int) -> None:
        self.config = config
        self.seed = seed
        # "global view 0" is the target's
        self.views = [
            View(f"global view {v}", config.image_size, config.global_scale) for v in range(config.global_views + 1)
        ] + [View(f"local view {v}", config.local_size, config.local_scale) for v in range(config.local_views)]

    def crop_one(self, image: PIL.Image.Image | Tensor, index: int, epoch: int) -> list[Tensor]:
        """Cuts one image of any size: for a loader's worker, so that a batch can be stacked.

        ``image``: PIL image, or uint8 tensor [3, H, W]. Returns uint8 [3, side, side] for each view, cropped and
        mirrored; :meth:`__call__` does the rest on the stacked crops.
        """
        if isinstance(image, PIL.Image.Image):
            image = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
        keys = sample_keys(self.seed, epoch, torch.tensor([index]))
        crops = []
        for view in self.views:
            boxes, flip = self._places(view, keys, image.shape[1], image.shape[2])
            crops.append(geometry.crop_each(image[None], boxes, view.size, flip)[0])
        return crops

    @torch.no_grad()
    def __call__(self, batch: ViewBatch) -> list[Tensor]:
        """All views, normalised: float32 [B, 3, side, side] each, on the device of the images (or crops).

        Raises: ``ValueError`` unless the batch has either images, or a crop for each view.
        """
        if (batch.images is None) == (batch.crops is None):
            raise ValueError("a batch must have either images or crops, and not both")
        if batch.crops is not None and len(batch.crops) != len(self.views):
            raise ValueError(f"a batch of {len(batch.crops)} crops cannot make {len(self.views)} views")
        keys = sample_keys(self.seed, batch.epoch, batch.indices.cpu())
        return [self._view(number, keys, batch) for number in range(len(self.views))]

    def _places(self, view: View, keys: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Where each sample's crop lies, int64 [B, 4], and whether it is mirrored, bool [B]."""
        boxes = geometry.crop_boxes(keys, f"{view.name} crop", height=height, width=width, scale=view.scale)
        return boxes, uniform(keys, f"{view.name} flip", 1)[:, 0] < self.config.flip

    def _view(self, number: int, keys: Tensor, batch: ViewBatch) -> Tensor:
        """One view of all samples, a part of the batch at a time so that the part stays in the processor's cache."""
        view = self.views[number]
        source = batch.images if batch.crops is None else batch.crops[number]
        look = draw_look(self.config, keys, view.name)
        if batch.crops is None:
            boxes, flip = self._places(view, keys, source.shape[2], source.shape[3])
        result = torch.empty(len(source), 3, view.size, view.size, device=source.device)
        step = len(source) if source.is_cuda else max(1, _CACHED_VALUES // result[0].numel())
        for start in range(0, len(source), step):
            part = slice(start, start + step)
            if batch.crops is None:
                images = geometry.resized_crop(source[part], boxes[part], view.size, flip[part])
            else:
                images = geometry.to_float(source[part])
            develop_(images, look.rows(part))
            if self.config.noise:
                images = colour.add_noise(images, keys[part].to(images.device), f"{view.name} noise", self.config.noise)
            result[part] = _normalized(images, self.config.normalize)
        return result


def eval_view(images: Tensor, size: int, normalize: Literal["imagenet", "image"] = "imagenet") -> Tensor:
    """The view that features are computed from, without chance: uint8 [B, 3, H, W] -> float32 [B, 3, size, size].

    The shorter side is resized to ``size`` * 256 / 224 and the centre is cut out, as is usual for ImageNet; images that
    are too small for that are resized so that the shorter side is ``size``. Images of that size already stay as they are.
    """
    images = geometry.to_float(images)
    height, width = images.shape[2:]
    if (height, width) != (size, size):
        margin = round(size * 256 / 224)
        short = margin if min(height, width) >= margin else size
        sides = [max(short, round(side * short / min(height, width))) for side in (height, width)]
        images = F.interpolate(images, sides, mode="bilinear", antialias=True)
        top, left = (sides[0] - size) // 2, (sides[1] - size) // 2
        images = images[:, :, top : top + size, left : left + size]
    return _normalized(images, normalize)


def _normalized(images: Tensor, kind: Literal["imagenet", "image"]) -> Tensor:
    return colour.normalize(images) if kind == "imagenet" else colour.standardize(images)
