# SPDX-License-Identifier: Apache-2.0
import io
import os
import random
import time

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin

from recipes_lib.data import decode
from recipes_lib.data.decode import SIXTEEN_BITS, TRANSPARENT, TURNED, ImageFault
from recipes_lib.data.pools import samples

LEVELS = np.array([[0, 255, 256, 40_000, 65_535]], np.uint16)
EIGHT_BITS = [0, 0, 1, 156, 255]  # 40,000 / 256 = 156.25


def encoded(image: Image.Image | np.ndarray, kind: str, **options) -> bytes:
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind, **options)
    return file.getvalue()


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(decode.decode(data).image)


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


SIXTEEN = {
    "png": encoded(LEVELS, "PNG"),
    "tiff": encoded(LEVELS, "TIFF"),
    "pgm": b"P5 5 1 65535\n" + LEVELS.astype(">u2").tobytes(),
    "tiff that counts from white": encoded(65_535 - LEVELS, "TIFF", tiffinfo={262: 0}),
}


@pytest.mark.parametrize("name", SIXTEEN)
def test_sixteen_bit_grey_levels_are_divided_by_256_in_every_format(name):
    decoded = decode.decode(SIXTEEN[name])
    assert np.asarray(decoded.image)[0].tolist() == [[level] * 3 for level in EIGHT_BITS]
    assert decoded.remarks == (SIXTEEN_BITS,)


def test_grey_levels_of_ten_bits_reach_from_black_to_white():
    assert pixels(b"P5 3 1 1023\n" + np.array([0, 512, 1023], ">u2").tobytes())[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_values_whose_white_nobody_knows_are_refused(dtype):
    with pytest.raises(ImageFault, match="of which none is known to be white") as caught:
        decode.decode(encoded(np.ones((2, 2), dtype), "TIFF"))
    assert (caught.value.reason, caught.value.remedy) == ("image without a known white", "Save it with 8 or 16 bits")


def shape_in_alpha() -> Image.Image:
    """Black everywhere; only the transparency says where the shape is."""
    layer = np.zeros((1, 3, 4), np.uint8)
    layer[0, :, 3] = [0, 255, 128]
    return Image.fromarray(layer)


@pytest.mark.parametrize(
    ("kind", "mode"), [("PNG", "RGBA"), ("PNG", "LA"), ("PNG", "P"), ("TIFF", "RGBA"), ("TIFF", "LA"), ("WEBP", "RGBA")]
)
def test_transparent_images_are_composited_over_white(kind, mode):
    image = shape_in_alpha().quantize() if mode == "P" else shape_in_alpha().convert(mode)
    decoded = decode.decode(encoded(image, kind, **({"lossless": True} if kind == "WEBP" else {})))
    assert np.asarray(decoded.image)[0, :, 0].tolist() == [255, 0, 127]
    assert decoded.remarks == (TRANSPARENT,)


def test_a_level_of_sixteen_bits_that_stands_for_transparency_becomes_white():
    data = encoded(LEVELS, "PNG", transparency=256)
    assert pixels(data)[0, :, 0].tolist() == [0, 0, 255, 156, 255]


def test_an_opaque_alpha_channel_leaves_every_pixel_as_it_is():
    colours = noise(20, 30, 3)
    opaque = np.concatenate([colours, np.full((20, 30, 1), 255, np.uint8)], axis=2)
    decoded = decode.decode(encoded(opaque, "PNG"))
    assert np.array_equal(np.asarray(decoded.image), colours)
    assert decoded.remarks == ()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_turned_as_its_exif_says(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(noise(16, 32, 3), kind, exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert np.array_equal(pixels(data), np.asarray(expected))
    assert expected.size == ((32, 16) if orientation < 5 else (16, 32))
    if kind != "TIFF":  # Pillow turns these itself, and does not say so
        assert decode.decode(data).remarks == ((TURNED,) if orientation > 1 else ())


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_a_damaged_exif_note_leaves_the_image_as_it_is():
    data = encoded(noise(16, 32, 3), "JPEG", exif=b"Exif\0\0MM\0*" + b"\xff" * 30)
    assert pixels(data).shape == (16, 32, 3)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "RGB"])
def test_images_without_transparency_are_what_pillow_makes_of_them(mode):
    image = Image.fromarray(noise(8, 9, 3)).convert(mode)
    assert np.array_equal(pixels(encoded(image, "TIFF")), np.asarray(image.convert("RGB")))


def with_text(method: str) -> bytes:
    notes = PngImagePlugin.PngInfo()
    getattr(notes, method)("notes", "x" * (2 << 20), zip=True)
    return encoded(noise(5, 6, 3), "PNG", pnginfo=notes)


@pytest.mark.parametrize(
    "data",
    [with_text("add_text"), with_text("add_itxt"), encoded(noise(5, 6, 3), "PNG", icc_profile=bytes(3 << 20))],
    ids=["text", "international text", "colour profile"],
)
def test_texts_and_profiles_of_any_size_are_read_past(data):
    assert np.array_equal(pixels(data), noise(5, 6, 3))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("size", [(11_000, 9_000), (20_000, 10_000)])
def test_an_image_of_too_many_pixels_is_not_called_damaged_and_the_limit_is_said(size):
    with pytest.raises(ImageFault, match="at most 89,478,485 are decoded") as caught:
        decode.decode(encoded(Image.new("1", size), "PNG"))
    assert caught.value.reason == "image too large"
    assert "Copy" not in caught.value.remedy


@pytest.mark.parametrize("data", [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"", b"no image"])
def test_formats_that_are_not_meant_are_refused(data):
    with pytest.raises(ImageFault, match="none of JPEG, PNG, WEBP, AVIF, BMP, PPM, TIFF, GIF"):
        decode.decode(data)


@pytest.mark.skipif("AVIF" not in Image.registered_extensions().values(), reason="this Pillow reads no AVIF")
def test_a_damaged_avif_is_a_damaged_image():
    good, chance, kinds = encoded(noise(64, 64, 3), "AVIF"), random.Random(0), set()
    for _ in range(60):
        bad = bytearray(good)
        for _ in range(chance.randint(1, 8)):
            bad[chance.randrange(len(bad))] = chance.randrange(256)
        try:
            decode.decode(bytes(bad))
        except ImageFault as fault:
            kinds.add((fault.reason, str(fault)))
    assert ("damaged image", "cannot be read (RuntimeError)") in kinds


def test_a_pipe_a_device_and_a_folder_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "folder.png").mkdir()
    began = time.perf_counter()
    for name in ("pipe.png", "zero.png", "folder.png"):
        with pytest.raises(ImageFault, match="is no plain file"):
            decode.read(tmp_path / name)
    assert time.perf_counter() - began < 5


def test_a_file_without_end_is_refused_by_its_size(tmp_path):
    with (tmp_path / "a.png").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ImageFault, match=r"1,099,511,627,776 bytes; at most 268,435,456"):
        decode.read(tmp_path / "a.png")


def test_an_image_in_a_shard_follows_the_same_rule():
    decoded = samples.decode(SIXTEEN["png"], "sample 'a'")
    assert np.asarray(decoded.image)[0, :, 0].tolist() == EIGHT_BITS
    assert decoded.remarks == (SIXTEEN_BITS,)
