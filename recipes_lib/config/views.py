# SPDX-License-Identifier: Apache-2.0
"""The ``views`` group of a recipe's config. This module imports no torch."""

from dataclasses import dataclass
from typing import Literal

from recipes_lib.errors import Faults

Normalize = Literal["imagenet", "openai", "cifar10", "image", "grey"]
Resize = Literal["bilinear", "bicubic"]
CHANNELS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "openai": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
}
"""Mean and standard deviation of red, green and blue, by the data set that they were measured on (openai: CLIP's)."""


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
    """Probability of inverting the bright values."""
    solarize_threshold: tuple[float, float] = (0.5, 0.5)
    """Range of the brightness, from 0 to 1, that values are inverted from; each view draws its own."""
    equalize: float = 0.0
    """Probability of spreading each channel's levels evenly over 0 to 255."""
    rotate: float = 0.0
    """Largest turn to either side, in degrees; 0: none."""
    invert: float = 0.0
    """Probability of a negative."""
    shuffle_channels: float = 0.0
    """Probability of a random order of red, green and blue."""
    noise: float = 0.0
    """Standard deviation of the noise added to each value, of a range 0 to 1; 0: none."""
    normalize: Normalize = "imagenet"
    """imagenet, openai, cifar10: by the mean and deviation of each channel of ImageNet, of CLIP's images or of CIFAR-10;
    image: each image to mean 0 and deviation 1; grey: the same after its colours are dropped, at evaluation too."""
    resize: Resize = "bilinear"
    """bilinear: at evaluation with the usual margin of 256 to 224 pixels, which is cut off; bicubic: without a margin, as
    open_clip does. Both with antialiasing."""

    def check(self, faults: Faults) -> None:
        """Notes every fault of this group in ``faults``."""
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
        """Notes in ``faults`` that no view is left to compare with the target's."""
        if self.global_views == self.local_views == 0:
            faults.add(
                "views.global_views = 0 and views.local_views = 0 leave the anchor no view: set one of them to at least 1."
            )
