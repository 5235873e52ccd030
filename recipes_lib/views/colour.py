# SPDX-License-Identifier: Apache-2.0
"""Operations on a view's pixel values, per sample: colour jitter, greyscale, solarisation, noise and normalisation.

Each function takes float images [B, 3, H, W] in [0, 1] with one parameter per sample and returns a new tensor of the
same shape. It agrees with torchvision's function of the same name at the same parameters, where there is one. Functions
whose names end in ``_`` work in place.
"""

import torch
import torchvision.transforms.v2.functional as TF
from torch import Tensor

from recipes_lib.config.views import CHANNELS
from recipes_lib.randomness import normal

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
"""The codes of the four jitter operations in an ``order``; torchvision uses the same numbers."""
NOTHING = -1
"""The code of no operation: it leaves a sample unchanged."""

IMAGENET_MEAN, IMAGENET_STD = CHANNELS["imagenet"]


def color_jitter(images: Tensor, factors: Tensor, order: Tensor) -> Tensor:
    """Adjusts brightness, contrast, saturation and hue, in a separate order for each sample.

    Brightness is a factor (>= 0) of each value, clipped to [0, 1]; contrast blends with the image's mean grey and saturation with
    the greyscale image (0: nothing else is left, 1: the image itself); hue turns that of HSV by a share of the full circle, in
    [-0.5, 0.5].

    Shapes: ``images`` float [B, 3, H, W]; ``factors`` float [B, 4], by code; ``order`` int64 [B, n]: which of the four codes
    (or ``NOTHING``) comes first, second, ...
    """
    return color_jitter_(images.clone(), factors, order)


def color_jitter_(images: Tensor, factors: Tensor, order: Tensor) -> Tensor:
    """:func:`color_jitter` in place; fastest if all samples have the hue at the same place in the order."""
    factors, order = factors.tolist(), order.tolist()
    for codes in zip(*order, strict=True):  # the code of every sample at one place of the order
        turned = [i for i, code in enumerate(codes) if code == HUE]
        shifts = [factors[i][HUE] for i in turned]
        if len(turned) == len(codes):
            _turn_hue_(images, shifts)
            continue
        if turned:
            rows = torch.tensor(turned, device=images.device)
            images.index_copy_(0, rows, _turn_hue_(images.index_select(0, rows), shifts))
        _blend_(
            images,
            [1.0 if code in (HUE, NOTHING) else row[code] for row, code in zip(factors, codes, strict=True)],
            codes,
        )
    return images


def _blend_(images: Tensor, factors: list[float], codes: tuple[int, ...]) -> None:
    """Adjusts brightness, contrast or saturation of each sample, in place; samples with another code have factor 1.

    All three are clip(factor * image + (1 - factor) * other), where other is black, the mean grey, or the grey image.
    """
    kinds = set(codes) - {HUE, NOTHING}
    if not kinds:
        return
    factor = _column(factors, images)
    if kinds == {BRIGHTNESS}:
        images.mul_(factor).clamp_max_(1)
        return
    other = luma(images)  # [B, 1, H, W]
    if SATURATION not in kinds:
        mean = _only(CONTRAST, other.mean(dim=(2, 3), keepdim=True), codes)
        images.mul_(factor).add_(mean.mul_(1 - factor)).clamp_(0, 1)
        return
    if kinds != {SATURATION}:
        mean = _only(CONTRAST, other.mean(dim=(2, 3), keepdim=True), codes)
        other = _only(SATURATION, other, codes).add_(mean)
    torch.lerp(other, images, factor, out=images).clamp_(0, 1)


def _only(kind: int, values: Tensor, codes: tuple[int, ...]) -> Tensor:
    """Sets to 0, in place, the rows of ``values`` whose code is not ``kind``."""
    return values.mul_(_column([float(code == kind) for code in codes], values))


def _column(values: list[float], images: Tensor) -> Tensor:
    """Turns B numbers into a tensor [B, 1, 1, 1] on the images' device and in their dtype."""
    return torch.tensor(values, dtype=images.dtype, device=images.device).view(-1, 1, 1, 1)


def luma(images: Tensor) -> Tensor:
    """The grey value of each pixel by ITU-R BT.601.  float [B, 3, H, W] -> [B, 1, H, W]"""
    red, green, blue = images.split(1, dim=1)
    return (red * 0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114)


def _turn_hue_(images: Tensor, shifts: list[float]) -> Tensor:
    """Rotates the HSV hue by arithmetic alone, in place: comparisons and ``where`` cost ten times as much on a CPU.

    Hue is a position on a hexagon of circumference 6, with red at 0, green at 2 and blue at -2. On each side of the
    hexagon one channel is the largest and one the least, and
    hue = sign(green - blue) * (largest - 2 least + green + blue - red) / chroma, where chroma = largest - least.
    """
    red, green, blue = images.split(1, dim=1)  # [B, 1, H, W] each
    least = torch.minimum(red, green)
    torch.minimum(least, blue, out=least)
    chroma = torch.maximum(red, green)
    torch.maximum(chroma, blue, out=chroma).sub_(least)
    hue = (chroma - least).add_(green).add_(blue).sub_(red)
    # in full circles; grey pixels have chroma 0 and no hue, and 1e-12 keeps the division finite
    hue.div_(torch.add(images.new_tensor(1e-12), chroma, alpha=6))
    hue.copysign_(green - blue).add_(_column([1 + shift for shift in shifts], images)).frac_()  # 0 to 1, red at 0

    # A channel is the least plus chroma times a function of hue: 1 within 1/6 of the channel's own hue, 0 beyond 2/6.
    below, above = least - chroma, least.add_(chroma, alpha=2)
    torch.addcmul(below, (hue - 1 / 2).abs_().clamp_(1 / 6, 2 / 6), chroma, value=6, out=red)
    torch.addcmul(above, (hue - 1 / 3).abs_().clamp_(1 / 6, 2 / 6), chroma, value=-6, out=green)
    torch.addcmul(above, hue.sub_(2 / 3).abs_().clamp_(1 / 6, 2 / 6), chroma, value=-6, out=blue)
    return images


def grayscale(images: Tensor) -> Tensor:
    """The greyscale version of each image, with three equal channels."""
    return luma(images).expand_as(images)


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """Inverts all values that are at least the image's ``threshold`` [B]."""
    return torch.where(images >= threshold.to(images).view(-1, 1, 1, 1), 1 - images, images)


def equalize(images: Tensor) -> Tensor:
    """Equalises the histogram of each channel of each image: its 256 levels become about equally frequent."""
    return TF.equalize(images)  # torchvision's function takes a batch and treats each channel separately


def invert(images: Tensor) -> Tensor:
    """The negative of each image, 1 - image."""
    return 1 - images


def shuffle_channels(images: Tensor, order: Tensor) -> Tensor:
    """Reorders the channels: channel ``order[b, c]`` of image b becomes its channel c; ``order`` int64 [B, 3]."""
    return images.gather(1, order.to(images.device)[:, :, None, None].expand_as(images))


def add_noise(images: Tensor, keys: Tensor, purpose: str, std: float) -> Tensor:
    """Adds normal noise of standard deviation ``std`` to each value and clips it to [0, 1]; ``keys`` int64 [B]."""
    noise = normal(keys, purpose, images[0].numel()).to(images).view_as(images)
    return noise.mul_(std).add_(images).clamp_(0, 1)


def normalize_(
    images: Tensor, mean: tuple[float, ...] = IMAGENET_MEAN, std: tuple[float, ...] = IMAGENET_STD
) -> Tensor:
    """(image - mean) / std for each channel, in place."""
    mean, std = (images.new_tensor(values).view(1, -1, 1, 1) for values in (mean, std))
    return images.sub_(mean).mul_(1 / std)


def standardize(images: Tensor) -> Tensor:
    """Shifts and scales each image to mean 0 and standard deviation 1 over all its values.

    The divisor is at least 1 / sqrt(number of values), as if one value differed by 1: a flat image has deviation 0.
    """
    centred = images - images.mean(dim=(1, 2, 3), keepdim=True)
    deviation = centred.square().mean(dim=(1, 2, 3), keepdim=True).sqrt_()
    return centred.div_(deviation.clamp_min_(images[0].numel() ** -0.5))
