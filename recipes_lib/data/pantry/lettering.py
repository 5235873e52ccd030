# SPDX-License-Identifier: Apache-2.0
"""Draws words into pictures, as on a shop's banner or a meme."""

from collections.abc import Sequence
from functools import cache

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from recipes_lib.randomness import uniform

_SMALLEST, _LARGEST = 6, 400  # font sizes in pixels; below 6 letters cannot be read
_TALLEST = 0.28  # share of the picture's height: a larger band would hide the object


def stamp(images: Tensor, words: Sequence[str], keys: Tensor) -> Tensor:
    """Draws a word per picture on a band at its top or bottom, as large as fits the width; "" changes nothing.

    The picture's key decides about the edge and whether the band is light or dark. So neither reveals the class, and a
    picture that another CPU renders with one bit of difference still gets the same band. The font is Pillow's own. In a
    picture of 32 pixels, words of up to six letters can be read.

    Shapes: ``images`` uint8 [N, 3, H, W], ``keys`` int64 [N] (:func:`recipes_lib.randomness.sample_keys`) -> uint8
    [N, 3, H, W], a copy.
    Raises: ``ValueError`` if there is not one word and one key per image.
    """
    if not len(words) == len(keys) == len(images):
        raise ValueError(
            f"{len(words)} words and {len(keys)} keys for {len(images)} images: give one of each per image, '' for no word."
        )
    height, width = images.shape[2:]
    stamped = images.clone()
    band = cache(_band)  # a cache for this call, because a few words occur again and again
    draws = (uniform(keys, "pantry lettering", 2) < 0.5).tolist()
    for row, (word, (dark, top)) in enumerate(zip(words, draws, strict=True)):
        if word:
            letters = band(word, height, width)
            paint = letters if dark else 255 - letters
            edge = slice(0, len(letters)) if top else slice(height - len(letters), height)
            stamped[row, :, edge] = paint
    return stamped


def _band(word: str, height: int, width: int) -> Tensor:
    """A band of white letters on black over the whole width, as uint8 [rows, width]."""
    size = _SMALLEST
    while size < _LARGEST and _fits(word, size + 1, width, _TALLEST * height):
        size += 1
    font = ImageFont.load_default(size)
    left, top, right, bottom = font.getbbox(word)
    rows = min(height, bottom - top + 2)
    canvas = Image.new("L", (width, rows))
    ImageDraw.Draw(canvas).text(((width - right + left) // 2 - left, 1 - top), word, fill=255, font=font)
    return torch.frombuffer(bytearray(canvas.tobytes()), dtype=torch.uint8).view(rows, width)


def _fits(word: str, size: int, width: int, tallest: float) -> bool:
    left, top, right, bottom = ImageFont.load_default(size).getbbox(word)
    return right - left <= width - 2 and bottom - top + 2 <= tallest
