# SPDX-License-Identifier: Apache-2.0
"""The published strengths of the fifteen corruptions: ImageNet-C, Tiny ImageNet-C and CIFAR-10-C.

Source: Hendrycks and Dietterich, "Benchmarking neural network robustness to common corruptions and perturbations",
ICLR 2019, arXiv 1903.12261; the numbers are those of the authors' programs ``make_imagenet_c.py``,
``make_tinyimagenet_c.py`` and ``make_cifar_c.py`` in github.com/hendrycks/robustness.
"""

from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")
Five = tuple[T, T, T, T, T]
"""One value per severity, 1 to 5."""


@dataclass(frozen=True)
class Glass:
    """Glass blur: pixels are replaced by near ones between two Gaussian blurs."""

    sigma: float
    """Width of both blurs in pixels."""
    reach: int
    """A pixel takes the value of one that lies at most so many pixels away on each axis."""
    rounds: int
    """Number of passes over the image."""


@dataclass(frozen=True)
class Snow:
    """Snow: bright flakes that fall, over an image that is made whiter."""

    mean: float
    """Mean of the normal numbers from which flakes are made."""
    std: float
    """Their standard deviation."""
    zoom: float
    """Factor by which they are enlarged."""
    threshold: float
    """What is below becomes 0, so that flakes are apart."""
    radius: int
    """Radius of the flakes' motion blur in pixels."""
    sigma: float
    """Its width in pixels."""
    keep: float
    """Weight of the image; the rest of 1 is the weight of the whitened image."""


@dataclass(frozen=True)
class Published(Generic[T]):
    """All strengths of one published data set."""

    side: int
    """Side of its images in pixels."""
    gaussian_noise: Five[float]
    """Standard deviation of the noise, for values in [0, 1]."""
    shot_noise: Five[float]
    """Number of photons that a value of 1 stands for."""
    impulse_noise: Five[float]
    """Share of the values that become 0 or 1."""
    defocus_blur: Five[tuple[float, float]]
    """Radius of the disk, and width of the Gaussian that softens its edge, in pixels."""
    glass_blur: Five[Glass]
    motion_blur: Five[tuple[int, float]]
    """Radius and width of the one-sided Gaussian along the path, in pixels."""
    zoom_blur: Five[tuple[float, int]]
    """Step between the zoom factors, and their number; the first factor is 1."""
    snow: Five[Snow]
    frost: Five[tuple[float, float]]
    """Weights of the image and of the frost."""
    frost_scale: float
    """Factor by which the authors made their photographs of frost smaller."""
    fog: Five[tuple[float, float]]
    """Thickness, and the factor by which each finer scale of the fog is weaker."""
    brightness: Five[float]
    """What is added to the brightness, for values in [0, 1]."""
    contrast: Five[float]
    """Factor of each value's distance from its channel's mean."""
    elastic_transform: Five[tuple[float, float, float]]
    """Size and width of the displacements, and how far the corners of the affine map move, in pixels at ``side``."""
    pixelate: Five[float]
    """Factor by which the side shrinks."""
    jpeg_compression: Five[int]
    """Quality of the JPEG encoder."""


IMAGENET_C = Published(
    side=224,
    gaussian_noise=(0.08, 0.12, 0.18, 0.26, 0.38),
    shot_noise=(60, 25, 12, 5, 3),
    impulse_noise=(0.03, 0.06, 0.09, 0.17, 0.27),
    defocus_blur=((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    glass_blur=(Glass(0.7, 1, 2), Glass(0.9, 2, 1), Glass(1, 2, 3), Glass(1.1, 3, 2), Glass(1.5, 4, 2)),
    motion_blur=((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
    zoom_blur=((0.01, 12), (0.01, 16), (0.02, 11), (0.02, 13), (0.03, 11)),  # numpy's arange(1, 1.11, 0.01) has 1.11
    snow=(
        Snow(0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        Snow(0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        Snow(0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        Snow(0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        Snow(0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    ),
    frost=((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
    frost_scale=1,
    fog=((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
    brightness=(0.1, 0.2, 0.3, 0.4, 0.5),
    contrast=(0.4, 0.3, 0.2, 0.1, 0.05),
    elastic_transform=(  # the authors multiply by 244, which they say should have been 224
        (488, 170.8, 24.4),
        (488, 19.52, 48.8),
        (12.2, 2.44, 4.88),
        (17.08, 2.44, 4.88),
        (29.28, 2.44, 4.88),
    ),
    pixelate=(0.6, 0.5, 0.4, 0.3, 0.25),
    jpeg_compression=(25, 18, 15, 10, 7),
)
"""ImageNet-C, 224 pixels."""

TINY_IMAGENET_C = Published(
    side=64,
    gaussian_noise=(0.04, 0.08, 0.12, 0.15, 0.18),
    shot_noise=(250, 100, 50, 30, 15),
    impulse_noise=(0.01, 0.02, 0.05, 0.08, 0.14),
    defocus_blur=((0.5, 0.6), (1, 0.1), (1.5, 0.1), (2.5, 0.01), (3, 0.1)),
    glass_blur=(Glass(0.1, 1, 1), Glass(0.5, 1, 1), Glass(0.6, 1, 2), Glass(0.7, 2, 1), Glass(0.9, 2, 2)),
    motion_blur=((10, 1), (10, 1.5), (10, 2), (10, 2.5), (12, 3)),
    zoom_blur=((0.01, 7), (0.01, 12), (0.01, 16), (0.01, 21), (0.01, 26)),
    snow=(
        Snow(0.1, 0.2, 1, 0.6, 8, 3, 0.8),
        Snow(0.1, 0.2, 1, 0.5, 10, 4, 0.8),
        Snow(0.15, 0.3, 1.75, 0.55, 10, 4, 0.7),
        Snow(0.25, 0.3, 2.25, 0.6, 12, 6, 0.65),
        Snow(0.3, 0.3, 1.25, 0.65, 14, 12, 0.6),
    ),
    frost=((1, 0.3), (0.9, 0.4), (0.8, 0.45), (0.75, 0.5), (0.7, 0.55)),
    frost_scale=0.3,
    fog=((0.4, 3), (0.7, 3), (1, 2.5), (1.5, 2), (2, 1.75)),
    brightness=(0.1, 0.2, 0.3, 0.4, 0.5),
    contrast=(0.4, 0.3, 0.2, 0.1, 0.05),
    elastic_transform=((0, 0, 5.12), (3.2, 19.2, 3.84), (6.4, 5.12, 3.84), (6.4, 1.92, 1.92), (10.24, 1.92, 1.28)),
    pixelate=(0.9, 0.8, 0.7, 0.6, 0.5),
    jpeg_compression=(65, 58, 50, 40, 25),
)
"""Tiny ImageNet-C, 64 pixels."""

CIFAR10_C = Published(
    side=32,
    gaussian_noise=(0.04, 0.06, 0.08, 0.09, 0.1),
    shot_noise=(500, 250, 100, 75, 50),
    impulse_noise=(0.01, 0.02, 0.03, 0.05, 0.07),
    defocus_blur=((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
    glass_blur=(Glass(0.05, 1, 1), Glass(0.25, 1, 1), Glass(0.4, 1, 1), Glass(0.25, 1, 2), Glass(0.4, 1, 2)),
    motion_blur=((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
    zoom_blur=((0.01, 7), (0.01, 12), (0.01, 16), (0.01, 21), (0.01, 26)),
    snow=(
        Snow(0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        Snow(0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        Snow(0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        Snow(0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        Snow(0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ),
    frost=((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
    frost_scale=0.2,
    fog=((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
    brightness=(0.05, 0.1, 0.15, 0.2, 0.3),
    contrast=(0.75, 0.5, 0.4, 0.3, 0.15),
    elastic_transform=((0, 0, 2.56), (1.6, 6.4, 2.24), (2.56, 1.92, 1.92), (3.2, 1.28, 1.6), (3.2, 0.96, 0.96)),
    pixelate=(0.95, 0.9, 0.85, 0.75, 0.65),
    jpeg_compression=(80, 65, 58, 50, 40),
)
"""CIFAR-10-C, 32 pixels."""


def for_side(side: int) -> Published:
    """The strengths for images whose shorter side has ``side`` pixels: those published for the side that is nearest.

    Sides up to 45 pixels take CIFAR-10-C's, those up to 119 Tiny ImageNet-C's, all others ImageNet-C's: the limits are
    the geometric means of the published sides.
    """
    if side * side <= CIFAR10_C.side * TINY_IMAGENET_C.side:
        return CIFAR10_C
    return TINY_IMAGENET_C if side * side <= TINY_IMAGENET_C.side * IMAGENET_C.side else IMAGENET_C
