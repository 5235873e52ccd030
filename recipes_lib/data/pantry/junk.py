# SPDX-License-Identifier: Apache-2.0
"""Makes alt-texts without information about the image: file names, boilerplate, and phrases that name the medium."""

from collections.abc import Iterator

BOILERPLATE = (
    "click to enlarge",
    "photo of product for sale | free shipping",
    "buy now | free returns within {n} days",
    "image not available",
    "loading, please wait",
    "view larger image",
    "picture {n} of {m}",
    "home decor sale: up to {n}% off",
    "share this on your favourite network",
    "best price online, order today",
    "related article thumbnail",
    "advertisement",
    "our customers also bought",
    "follow us for more kitchen ideas",
    "copyright 20{y}, all rights reserved",
    "blog post header image",
    "swipe to see {n} more photos",
    "sign up for our newsletter and save {n}%",
    "gallery item {m}",
    "image may contain: indoor",
)

FILE_NAMES = (
    "DSC_{m:04d}.JPG",
    "IMG_{m:04d}.jpg",
    "IMG-20{y}{n:02d}{d:02d}-WA{k:04d}.jpg",
    "product-{m}-large.png",
    "P10{m:05d}.JPG",
    "image{k:03d}.gif",
    "screenshot 20{y}-{n:02d}-{d:02d} at {n}.{d}.png",
    "{h:08x}_o.jpg",
    "thumb_{h:06x}.webp",
    "20{y}{n:02d}{d:02d}_{m:06d}.jpg",
    "untitled-{k}.png",
    "sku{h:07d}_v{k}.jpeg",
)

MEDIA = (
    "a photo of {}",
    "an image of {}",
    "a picture of {}",
    "stock photo of {}",
    "stock image of {}",
    "photo: {}",
    "{} stock photo",
    "{} | image",
)


def file_name(draws: Iterator[float]) -> str:
    """A random file name such as cameras, phones and shops use."""
    return _filled(FILE_NAMES, draws)


def boilerplate(draws: Iterator[float]) -> str:
    """A random phrase that web pages use for any image."""
    return _filled(BOILERPLATE, draws)


def with_medium(text: str, draws: Iterator[float]) -> str:
    """``text`` with a phrase before or after it that names the medium, such as "a photo of"."""
    return MEDIA[int(next(draws) * len(MEDIA))].format(text)


def _filled(templates: tuple[str, ...], draws: Iterator[float]) -> str:
    template = templates[int(next(draws) * len(templates))]
    numbers = {"n": (1, 12), "d": (1, 28), "y": (10, 24), "k": (1, 99), "m": (12, 9999), "h": (4096, 9_999_999)}
    return template.format(**{name: low + int(next(draws) * (high - low + 1)) for name, (low, high) in numbers.items()})
