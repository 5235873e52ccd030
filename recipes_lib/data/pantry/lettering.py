# SPDX-License-Identifier: Apache-2.0
"""Words drawn into pictures, as on a shop's banner or a meme."""

import zlib
from collections.abc import Sequence
from functools import cache

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

_SMALLEST, _LARGEST = 6, 400  # font sizes in pixels; below 6 no letter can be read
_TALLEST = 0.28  # of the picture's height: more would hide the object


def stamp(images: Tensor, words: Sequence[str]) -> Tensor:
    """The pictures with a word on a band at their top or bottom, as large as fits the width; "" leaves one as it is.

    Which edge, and whether the band is light or dark, comes from the picture's own bytes, so neither tells the class.
    The font is Pillow's own. At 32 pixels words of up to six letters can be read.

    Shapes: ``images`` uint8 [N, 3, H, W] -> uint8 [N, 3, H, W], a copy.
    Raises: ``ValueError`` where there is not one word an image.
    """
    if len(words) != len(images):
        raise ValueError(f"{len(words)} words for {len(images)} images: give one each, '' for none.")
    height, width = images.shape[2:]
    stamped = images.clone()
    band = cache(_band)  # of this call: the same few words come again and again
    for row, word in enumerate(words):
        if word:
            choice = zlib.crc32(images[row].contiguous().numpy())
            letters = band(word, height, width)
            paint = letters if choice & 1 else 255 - letters
            edge = slice(0, len(letters)) if choice & 2 else slice(height - len(letters), height)
            stamped[row, :, edge] = paint
    return stamped


def _band(word: str, height: int, width: int) -> Tensor:
    """White letters on black over the whole width: uint8 [rows, width]."""
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
