# SPDX-License-Identifier: Apache-2.0
"""Decodes the bytes of one image to RGB pixels, by the same rules for all readers of folders and shards.

- Formats: those of :data:`FORMATS`, recognised by content; the file's name does not matter. Of several frames only the
  first is read.
- Grey levels of 16 bits are divided by 256 and rounded down, as Pillow does with 16-bit colours.
- Transparent images are composited over white.
- An image is rotated if its EXIF data says that the camera was rotated.
- Values of 32 bits and floating-point values are refused, because the file does not say which value is white.
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
"""The formats that are decoded, by Pillow's names. Pillow knows more, but starts other programs for some (EPS)."""
MOST_PIXELS = 89_478_485
"""Number of pixels of the largest image that is decoded: Pillow's own limit, above which a small file may fill
memory."""
MOST_BYTES = 1 << 28
"""Size in bytes of the largest file that is read: 256 MiB."""

SIXTEEN_BITS = "16-bit grey image, divided by 256"
TRANSPARENT = "transparent image, composited over white"
TURNED = "image turned as its EXIF says"

_ORIENTATION = 0x0112  # tag of EXIF and TIFF
_BITS, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0  # two tags of TIFF, and a value of the second
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
    """A decoded image, and remarks about changes that the user might not expect."""

    image: Image.Image
    """The image in RGB, with 8 bits per channel."""
    remarks: tuple[str, ...]
    """Some of ``SIXTEEN_BITS``, ``TRANSPARENT`` and ``TURNED``."""


class ImageFault(Exception):
    """The reason why an image cannot be decoded; its text continues a sentence that starts with the image's name."""

    def __init__(self, reason: str, text: str, remedy: str) -> None:
        super().__init__(text)
        self.reason = reason
        """The kind of fault, by which faults are counted."""
        self.remedy = remedy
        """What the user can do about it."""


def read(path: Path) -> bytes:
    """Reads the content of an image file.

    Raises: :class:`ImageFault` if the file is missing, is not a plain file (reading a pipe could wait for ever), or is
    larger than ``MOST_BYTES``.
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
    """Decodes an image file's content by the rules at the top of this module.

    Raises: :class:`ImageFault` if the image is damaged, too large, or has values without a known range.
    """
    try:
        try:
            return _decoded(data)
        except ValueError:  # perhaps from Pillow's limit on texts and colour profiles, which do not affect pixels
            if not data.startswith(_PNG):
                raise
            return _decoded(_without_texts(data))
    except ImageFault:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):  # warnings may be turned into errors
        raise _too_large("far more") from None
    except Exception as error:  # for damaged files Pillow passes on any error of the libraries that it uses
        broken = isinstance(error, OSError) or "truncated" in str(error)
        cause = f"it is empty, truncated or none of {', '.join(FORMATS)}" if broken else type(error).__name__
        raise ImageFault("damaged image", f"cannot be read ({cause})", "Copy it again") from None


def _too_large(pixels: str) -> ImageFault:
    return ImageFault("image too large", f"has {pixels} pixels; at most {MOST_PIXELS:,} are decoded", "Make it smaller")


def _decoded(data: bytes) -> Decoded:
    Image.init()
    known = [name for name in FORMATS if name in Image.OPEN]  # older releases of Pillow have no AVIF
    with Image.open(BytesIO(data), formats=known) as image:
        if image.width * image.height > MOST_PIXELS:
            raise _too_large(f"{image.width} x {image.height}")
        image.load()  # reads the whole image, so a truncated one is found here; it also rotates TIFF images
        pixels, remarks = _in_rgb(image)
        turn = _TURNS.get(_orientation(image))
    return Decoded(pixels.transpose(turn), (*remarks, TURNED)) if turn is not None else Decoded(pixels, remarks)


def _in_rgb(image: Image.Image) -> tuple[Image.Image, tuple[str, ...]]:
    # images of 16 bits have mode I;16, but PGM files (and PNG files in older releases of Pillow) have mode I
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
    """Converts a grey image of 16 bits (12 in some TIFF files) to 8; a level that means transparent becomes white."""
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
    except Exception:  # an image with damaged EXIF data is not a damaged image; Pillow raises many kinds of errors
        return None


def _without_texts(data: bytes) -> bytes:
    """The content of a PNG file without its texts and its colour profile."""
    kept, start = [_PNG], len(_PNG)
    while start + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, start)
        end = start + length + 12  # length, kind and checksum take four bytes each
        if kind not in (b"tEXt", b"zTXt", b"iTXt", b"iCCP"):
            kept.append(data[start:end])
        start = end
    return b"".join(kept)
