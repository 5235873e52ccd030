# SPDX-License-Identifier: Apache-2.0
"""What a view's pixels look like: colour jitter, greyscale, solarisation, noise and normalisation, per sample.

Each function takes float images [B, 3, H, W] in [0, 1] with one parameter per sample, returns a new tensor, and agrees
with torchvision's function of the same name at the same parameters. Names that end in ``_`` work in place.
"""

import torch
from torch import Tensor

from recipes_lib.randomness import normal

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
"""The codes of the four jitters in an ``order``; torchvision numbers them alike."""
NOTHING = -1
"""The code that leaves a sample as it is."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def adjust_brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Times ``factor`` [B] (>= 0), clipped to [0, 1]."""
    return _single(images, factor, BRIGHTNESS)


def adjust_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Blends with the image's mean grey: ``factor`` [B] 0 is flat grey, 1 the image itself."""
    return _single(images, factor, CONTRAST)


def adjust_saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Blends with the greyscale image: ``factor`` [B] 0 is greyscale, 1 the image itself."""
    return _single(images, factor, SATURATION)


def adjust_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Turns the hue of HSV by ``shift`` [B] of the full circle, in [-0.5, 0.5]."""
    return _single(images, shift, HUE)


def _single(images: Tensor, factor: Tensor, code: int) -> Tensor:
    factors = torch.zeros(len(images), 4)
    factors[:, code] = factor.cpu()
    return color_jitter(images, factors, torch.full((len(images), 1), code))


def color_jitter(images: Tensor, factors: Tensor, order: Tensor) -> Tensor:
    """Brightness, contrast, saturation and hue, each sample in an order of its own.

    Shapes: ``images`` float [B, 3, H, W]; ``factors`` float [B, 4]: those of :func:`adjust_brightness`,
    :func:`adjust_contrast`, :func:`adjust_saturation` and :func:`adjust_hue`; ``order`` int64 [B, n]: which of the four
    (or ``NOTHING``) comes first, second, ...
    """
    return color_jitter_(images.clone(), factors, order)


def color_jitter_(images: Tensor, factors: Tensor, order: Tensor) -> Tensor:
    """:func:`color_jitter` in place; ``factors`` and ``order`` on the CPU, where they decide what is computed."""
    for codes in order.unbind(dim=1):
        turned = codes == HUE
        if turned.all():
            _turn_hue_(images, factors[:, HUE])
            continue
        if turned.any():
            rows = turned.nonzero()[:, 0].to(images.device)
            images.index_copy_(0, rows, _turn_hue_(images.index_select(0, rows), factors[turned, HUE]))
        _blend_(images, factors, codes)
    return images


def _blend_(images: Tensor, factors: Tensor, codes: Tensor) -> None:
    """One of brightness, contrast and saturation for each sample; hue and nothing leave it as it is.

    All three are clip(factor * image + (1 - factor) * other), where other is black, the mean grey, or the grey image.
    """
    blended = (codes != HUE) & (codes != NOTHING)
    if not blended.any():
        return
    factor = torch.where(blended, factors.gather(1, codes.clamp(0, 2)[:, None])[:, 0], 1.0)
    flat, grey = codes == CONTRAST, codes == SATURATION
    other = None
    if flat.any() or grey.any():
        other = luma(images)  # [B, 1, H, W]
        if flat.any():
            mean = other.mean(dim=(2, 3), keepdim=True)
            if grey.any():
                mean.mul_(_column(flat, images))
                other.mul_(_column(grey, images)).add_(mean)
            else:
                other = mean.mul_(_column(flat, images))
        else:
            other.mul_(_column(grey, images))
        other.mul_(_column(1 - factor, images))
    images.mul_(_column(factor, images))
    if other is not None:
        images.add_(other)
    images.clamp_(0, 1)


def _column(values: Tensor, images: Tensor) -> Tensor:
    """[B] -> [B, 1, 1, 1] on the images' device, in their dtype."""
    return values.to(images)[:, None, None, None]


def luma(images: Tensor) -> Tensor:
    """Grey of ITU-R BT.601: float [B, 3, H, W] -> [B, 1, H, W]."""
    red, green, blue = images.split(1, dim=1)
    return (red * 0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114)


def _turn_hue_(images: Tensor, shift: Tensor) -> Tensor:
    """Hue is a place on a hexagon, 0 to 6; the turned colour lies at the same distance between least and largest."""
    red, green, blue = images.split(1, dim=1)
    largest = torch.maximum(red, green).clamp_min_(0)
    largest = torch.maximum(largest, blue, out=largest)
    least = torch.minimum(red, green)
    least = torch.minimum(least, blue, out=least)
    chroma = largest - least
    hue = torch.where(largest == red, green - blue, torch.where(largest == green, blue - red, red - green))
    hue.div_(chroma.clamp_min(1e-12))  # grey has chroma 0, and any hue
    hue.add_(torch.where(largest == red, 0.0, torch.where(largest == green, 2.0, 4.0)))
    hue.add_(_column(6 * shift, images)).remainder_(6)
    for channel, (centre, sign) in zip((red, green, blue), ((3, 1), (2, -1), (4, -1)), strict=True):
        share = (hue - centre).abs_().mul_(sign).add_(-1 if sign == 1 else 2).clamp_(0, 1)
        torch.addcmul(least, share, chroma, out=channel)
    return images


def grayscale(images: Tensor, apply: Tensor) -> Tensor:
    """Three equal channels of grey where ``apply`` bool [B] is set."""
    return torch.where(apply.to(images.device)[:, None, None, None], luma(images), images)


def solarize(images: Tensor, threshold: float | Tensor, apply: Tensor) -> Tensor:
    """Inverts the pixels of at least ``threshold`` ([] or [B]) where ``apply`` bool [B] is set."""
    threshold = torch.as_tensor(threshold, dtype=images.dtype).expand(len(images))
    above = torch.where(apply.cpu(), threshold.cpu(), torch.inf)
    return torch.where(images >= _column(above, images), 1 - images, images)


def invert(images: Tensor, apply: Tensor) -> Tensor:
    """The negative, 1 - image, where ``apply`` bool [B] is set."""
    return torch.where(apply.to(images.device)[:, None, None, None], 1 - images, images)


def shuffle_channels(images: Tensor, order: Tensor) -> Tensor:
    """Channel ``order[b, c]`` of image b becomes its channel c; ``order`` int64 [B, 3]."""
    return images.gather(1, order.to(images.device)[:, :, None, None].expand_as(images))


def add_noise(images: Tensor, keys: Tensor, purpose: str, std: float) -> Tensor:
    """Adds normal noise of standard deviation ``std`` (of the range 0 to 1) to each value, clipped to [0, 1]."""
    noise = normal(keys, purpose, images[0].numel()).to(images).view_as(images)
    return noise.mul_(std).add_(images).clamp_(0, 1)


def normalize(images: Tensor, mean: tuple[float, ...] = IMAGENET_MEAN, std: tuple[float, ...] = IMAGENET_STD) -> Tensor:
    """(image - mean) / std for each channel."""
    shape = (1, len(mean), 1, 1)
    return (images - images.new_tensor(mean).view(shape)).div_(images.new_tensor(std).view(shape))


def standardize(images: Tensor) -> Tensor:
    """Mean 0 and standard deviation 1 over all values of each image.

    A flat image has no deviation to divide by: the divisor is at least 1 / sqrt(values), as if one value differed by 1.
    """
    centred = images - images.mean(dim=(1, 2, 3), keepdim=True)
    deviation = centred.square().mean(dim=(1, 2, 3), keepdim=True).sqrt_()
    return centred.div_(deviation.clamp_min_(images[0].numel() ** -0.5))
