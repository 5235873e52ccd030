# SPDX-License-Identifier: Apache-2.0
"""From the bytes of one image to RGB pixels: the one rule that every reader of folders and shards follows.

- Formats: those of :data:`FORMATS`, found by their content; a file's name says nothing. Of several frames the first counts.
- Grey levels of 16 bits are divided by 256 and rounded down, which is what Pillow does with 16-bit colours.
- Transparent images are composited over white.
- Where the file says by EXIF that the camera was turned, the image is turned back.
- Values of 32 bits and floating-point values are refused, for the file does not say which of them is white.
- An image of more than :data:`MOST_PIXELS` is refused, and so is a file of more than :data:`MOST_BYTES`.
"""

import stat
import struct
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "BMP", "PPM", "TIFF", "GIF")
"""What is decoded, as Pillow calls it. Pillow knows more, and starts other programs for some of them (EPS)."""
MOST_PIXELS = 89_478_485
"""Pixels of the largest image that is decoded: Pillow's own limit, above which a small file may fill the memory."""
MOST_BYTES = 1 << 28
"""Size of the largest file that is read."""

SIXTEEN_BITS = "16-bit grey image, divided by 256"
TRANSPARENT = "transparent image, composited over white"
TURNED = "image turned as its EXIF says"

_ORIENTATION = 0x0112  # of EXIF and TIFF
_BITS, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0  # of TIFF
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Decoded:
    """An image, and what was done to it that its owner might not expect."""

    image: Image.Image
    """In RGB, 8 bits per channel."""
    remarks: tuple[str, ...]
    """``SIXTEEN_BITS``, ``TRANSPARENT`` or ``TURNED``."""


class ImageFault(Exception):
    """Why an image is not decoded. Its text goes after the image's name: "cannot be read (...)"."""

    def __init__(self, reason: str, text: str, remedy: str) -> None:
        super().__init__(text)
        self.reason = reason
        """Its kind, under which it is counted."""
        self.remedy = remedy
        """What to do about it."""


def read(path: Path) -> bytes:
    """The content of an image file.

    Raises: :class:`ImageFault` where it is missing, no plain file (a pipe would wait for ever), or larger than
    ``MOST_BYTES``.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise ImageFault("damaged image", "is no plain file", "Take it away")
        if found.st_size > MOST_BYTES:
            text = f"has {found.st_size:,} bytes; at most {MOST_BYTES:,} are read"
            raise ImageFault("image too large", text, "Make it smaller")
        return path.read_bytes()
    except OSError as error:
        raise ImageFault("damaged image", f"cannot be read ({error.strerror})", "Copy it again") from None


def decode(data: bytes) -> Decoded:
    """The image whose file has the content ``data``, by the rules at the top of this module.

    Raises: :class:`ImageFault` where it is damaged, too large, or has values without a known range.
    """
    try:
        try:
            return _decoded(data)
        except ValueError:  # perhaps of Pillow's limit on texts and colour profiles, on which no pixel depends
            if not data.startswith(_PNG):
                raise
            return _decoded(_without_texts(data))
    except ImageFault:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):  # the warning: where it is made an error
        raise _too_large("far more") from None
    except Exception as error:  # Pillow's plug-ins hand on whatever the libraries below them raise on damaged files
        broken = isinstance(error, OSError) or "truncated" in str(error)
        cause = f"it is empty, truncated or none of {', '.join(FORMATS)}" if broken else type(error).__name__
        raise ImageFault("damaged image", f"cannot be read ({cause})", "Copy it again") from None


def _too_large(pixels: str) -> ImageFault:
    return ImageFault("image too large", f"has {pixels} pixels; at most {MOST_PIXELS:,} are decoded", "Make it smaller")


def _decoded(data: bytes) -> Decoded:
    Image.init()
    known = [name for name in FORMATS if name in Image.OPEN]  # AVIF came to Pillow late
    with Image.open(BytesIO(data), formats=known) as image:
        if image.width * image.height > MOST_PIXELS:
            raise _too_large(f"{image.width} x {image.height}")
        image.load()  # all of it, so a truncated image is found here; of TIFF, this turns the image too
        pixels, remarks = _in_rgb(image)
        turn = _TURNS.get(_orientation(image))
    return Decoded(pixels.transpose(turn), (*remarks, TURNED)) if turn is not None else Decoded(pixels, remarks)


def _in_rgb(image: Image.Image) -> tuple[Image.Image, tuple[str, ...]]:
    # what has 16 bits has the mode I;16, but PGM files (and in older releases of Pillow PNG files) the mode I
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return _eight_bits(image).convert("RGB"), (SIXTEEN_BITS,)
    if image.mode in ("I", "F"):
        kind = "32-bit or signed" if image.mode == "I" else "floating-point"
        text = f"has {kind} values, of which none is known to be white"
        raise ImageFault("image without a known white", text, "Save it with 8 or 16 bits")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        if layer.getchannel("A").getextrema()[0] < 255:
            page = Image.new("RGBA", image.size, "white")
            page.alpha_composite(layer)
            return page.convert("RGB"), (TRANSPARENT,)
    return image.convert("RGB"), ()


def _eight_bits(image: Image.Image) -> Image.Image:
    """A grey image of 16 bits (12 in some TIFF files) in 8. A level that stands for transparency becomes white."""
    tags = image.tag_v2 if image.format == "TIFF" else {}
    levels = np.asarray(image).astype(np.uint16)
    grey = (levels >> (tags.get(_BITS, (16,))[0] - 8)).astype(np.uint8)
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        grey = 255 - grey
    clear = image.info.get("transparency")
    return Image.fromarray(grey if clear is None else np.where(levels == clear, np.uint8(255), grey))


def _orientation(image: Image.Image) -> int | None:
    try:
        return image.getexif().get(_ORIENTATION)
    except Exception:  # a damaged note about an image does not make the image a damaged one; Pillow raises many kinds
        return None


def _without_texts(data: bytes) -> bytes:
    """A PNG file without its texts and its colour profile."""
    kept, start = [_PNG], len(_PNG)
    while start + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, start)
        end = start + length + 12  # length, kind and checksum take four bytes each
        if kind not in (b"tEXt", b"zTXt", b"iTXt", b"iCCP"):
            kept.append(data[start:end])
        start = end
    return b"".join(kept)
