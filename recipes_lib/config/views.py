# SPDX-License-Identifier: Apache-2.0
"""The config group ``views``: how views are cut from an image and augmented. This module imports no torch."""

import re
from dataclasses import dataclass
from typing import Literal

from recipes_lib.errors import Faults

Normalize = Literal["imagenet", "openai", "cifar10", "image", "grey"]
Resize = Literal["bilinear", "bicubic", "bicubic_margin"]
Kernel = Literal["bilinear", "bicubic"]
CHANNELS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "openai": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
}
"""Mean and standard deviation of the red, green and blue channels per data set (openai: CLIP's training images)."""


def kernel(resize: Resize) -> Kernel:
    """The interpolation of a way to resize."""
    return "bilinear" if resize == "bilinear" else "bicubic"


@dataclass(frozen=True, kw_only=True)
class ViewsConfig:
    """The views of an image and their augmentation. Defaults: the MSN paper's ImageNet recipe."""

    image_size: int = 224
    """Side of a global view, in pixels, at least 8."""
    global_views: int = 1
    """Number of global anchor views. The target's view comes in addition."""
    global_scale: tuple[float, float] = (0.3, 1.0)
    """Smallest and largest area of a global crop, as a share of the image's area."""
    local_size: int = 96
    """Side of a local (focal) view, in pixels, at least 8."""
    local_views: int = 10
    """Number of local anchor views. Such a small crop is MSN's focal mask: it hides all but one block of the image."""
    local_scale: tuple[float, float] = (0.05, 0.3)
    """Smallest and largest area of a local crop, as a share of the image's area."""
    flip: float = 0.5
    """Probability of mirroring a view left to right."""
    jitter: float = 0.8
    """Probability of colour jitter: changes of brightness, contrast, saturation and hue, in random order."""
    brightness: float = 0.4
    """Strength of the brightness jitter, at least 0: the factor is drawn between 1 - strength and 1 + strength."""
    contrast: float = 0.4
    """Strength of the contrast jitter, at least 0: the factor is drawn between 1 - strength and 1 + strength."""
    saturation: float = 0.4
    """Strength of the saturation jitter, at least 0: the factor is drawn between 1 - strength and 1 + strength."""
    hue: float = 0.1
    """Largest rotation of the hue in either direction, in full circles, in [0, 0.5]."""
    grayscale: float = 0.2
    """Probability of turning a view grey."""
    blur: float = 0.5
    """Probability of a Gaussian blur."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Smallest and largest standard deviation of the blur, in pixels of the view."""
    solarize: float = 0.0
    """Probability of solarizing a view, which inverts all values above a threshold."""
    solarize_threshold: tuple[float, float] = (0.5, 0.5)
    """Smallest and largest threshold of solarizing, from 0 (black) to 1; each view draws its own."""
    equalize: float = 0.0
    """Probability of equalizing the histogram of each channel, which spreads its values evenly over 0 to 255."""
    rotate: float = 0.0
    """Largest rotation in either direction, in degrees, in [0, 180]; 0: no rotation."""
    invert: float = 0.0
    """Probability of inverting all values of a view, as in a photographic negative."""
    shuffle_channels: float = 0.0
    """Probability of putting the red, green and blue channels in random order."""
    noise: float = 0.0
    """Standard deviation of the noise added to each value, where values range from 0 to 1; 0: no noise."""
    normalize: Normalize = "imagenet"
    """How values are normalised.
    imagenet, openai, cifar10: by each channel's mean and standard deviation over that data set (openai: CLIP's).
    image: each image to mean 0 and standard deviation 1.
    grey: the same after the image is turned grey, at evaluation too."""
    resize: Resize = "bilinear"
    """bilinear: evaluation resizes with a margin (256 for 224 pixels), then crops the centre.
    bicubic: no margin, as in open_clip. bicubic_margin: bicubic with the margin, as in DeiT. All are antialiased."""

    def check(self, faults: Faults) -> None:
        """Adds every fault of this group to ``faults``."""
        for name in ("image_size", "local_size"):
            faults.need(getattr(self, name) >= 8, f"views.{name}", getattr(self, name), "of at least 8")
        faults.need(self.global_views >= 0, "views.global_views", self.global_views, "of at least 0")
        faults.need(self.local_views >= 0, "views.local_views", self.local_views, "of at least 0")
        self.check_anchors(faults)
        for name in ("global_scale", "local_scale"):
            low, high = getattr(self, name)
            faults.need(0 < low <= high <= 1, f"views.{name}", (low, high), "pair with 0 < first <= second <= 1")
        for name in ("flip", "jitter", "grayscale", "blur", "solarize", "equalize", "invert", "shuffle_channels"):
            faults.need(0 <= getattr(self, name) <= 1, f"views.{name}", getattr(self, name), "in [0, 1]")
        for name in ("brightness", "contrast", "saturation", "noise"):
            faults.need(getattr(self, name) >= 0, f"views.{name}", getattr(self, name), "of at least 0")
        faults.need(0 <= self.hue <= 0.5, "views.hue", self.hue, "in [0, 0.5]", "Half a circle reaches every hue.")
        faults.need(0 <= self.rotate <= 180, "views.rotate", self.rotate, "in [0, 180] degrees")
        low, high = self.solarize_threshold
        allowed = "pair with 0 <= first <= second <= 1"
        faults.need(0 <= low <= high <= 1, "views.solarize_threshold", (low, high), allowed)
        low, high = self.blur_sigma
        faults.need(0 < low <= high, "views.blur_sigma", (low, high), "pair with 0 < first <= second")

    def check_anchors(self, faults: Faults) -> None:
        """Adds a fault to ``faults`` if there is no anchor view to compare with the target's."""
        if self.global_views == self.local_views == 0:
            faults.add(
                "views.global_views = 0 and views.local_views = 0 leave the anchor no view: set one of them to at least 1."
            )


@dataclass(frozen=True, kw_only=True)
class OneView(ViewsConfig):
    """The one view of each image that a classifier learns from. Defaults: crop and mirroring, usual for ImageNet."""

    global_views: int = 0
    """Always 0: the only view of an image is the one that is classified."""
    global_scale: tuple[float, float] = (0.08, 1.0)
    """Smallest and largest area of the crop, as a share of the image's area."""
    local_views: int = 0
    """Always 0: see ``global_views``."""
    jitter: float = 0.0
    """Probability of colour jitter: changes of brightness, contrast, saturation and hue, in random order."""
    grayscale: float = 0.0
    """Probability of turning a view grey."""
    blur: float = 0.0
    """Probability of a Gaussian blur."""

    def check_anchors(self, faults: Faults) -> None:
        """Adds a fault to ``faults`` if the config asks for a second view, which the classifier would not use."""
        for name in ("global_views", "local_views"):
            faults.need(getattr(self, name) == 0, f"views.{name}", getattr(self, name), "of 0: one view is classified")


@dataclass(frozen=True, kw_only=True)
class StrongView(OneView):
    """The one view of DeiT's recipe: crop, mirroring, RandAugment and random erasing. Defaults: DeiT's on ImageNet."""

    resize: Resize = "bicubic_margin"
    """See above."""
    rand_augment: str | None = "rand-m9-mstd0.5-inc1"
    """timm's name of the RandAugment: m is the magnitude (0 to 10), mstd its standard deviation, n the number of
    operations per image (2 if it is not given); inc1 makes all operations stronger with m. None: no RandAugment."""
    erase: float = 0.25
    """Probability of erasing a random rectangle of a view, which is filled with noise."""

    def check(self, faults: Faults) -> None:
        """Adds every fault of this group to ``faults``."""
        super().check(faults)
        faults.need(0 <= self.erase <= 1, "views.erase", self.erase, "in [0, 1]")
        named = self.rand_augment
        if named is not None and not re.fullmatch(r"rand(-(m|n|mstd|inc|w|p|t)\d+(\.\d+)?)*", named):
            faults.add(
                f"views.rand_augment = {named} is no RandAugment of timm. Write it like rand-m9-mstd0.5-inc1, or leave it out with None."
            )
