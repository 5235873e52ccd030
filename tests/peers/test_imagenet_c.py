# SPDX-License-Identifier: Apache-2.0
"""Parity of the fifteen corruptions with plain statements of their published formulas: one image, one pixel at a time.

The authors' package (``imagenet-c``) and ``imagecorruptions`` need versions of numpy, scipy, setuptools and
scikit-image that no longer go with ours, so they are no peers here. Each formula is written anew with numpy, scipy,
Pillow and matplotlib, and gets the random numbers that ours drew. Five bytes in ten thousand may differ by one, where
both values lie within a rounding error of a whole number.
"""

import io

import numpy as np
import pytest
import torch
import torchvision
from matplotlib.colors import hsv_to_rgb, rgb_to_hsv
from PIL import Image
from scipy import ndimage, stats

from recipes_lib.config.evaluation import CORRUPTIONS, SEVERITIES
from recipes_lib.data import pantry
from recipes_lib.randomness import normal, sample_keys, uniform
from recipes_lib.views.corruptions import corrupt
from recipes_lib.views.corruptions.parameters import for_side

COUNTS = {32: 3, 224: 1}


@pytest.fixture(scope="module")
def images():
    """Pantry images: {side: uint8 [B, 3, side, side]}."""
    draw = {"split": "test", "seed": 0, "scenes": "natural"}
    return {side: pantry.dataset(count, size=side, **draw).images for side, count in COUNTS.items()}


def keys_of(count):
    return sample_keys(0, 0, torch.arange(count))


def strengths(side, name, severity):
    return vars(for_side(side))[name][severity - 1]


# the formulas, each of one image [H, W, 3] in [0, 1], its key and its strengths -> [H, W, 3], before it is cut to bytes


def gaussian_noise(x, key, purpose, std):
    return x + std * normal(key, purpose, x.size).numpy().reshape(3, *x.shape[:2]).transpose(1, 2, 0)


def shot_noise(x, key, purpose, photons):
    draws = uniform(key, purpose, x.size).double().numpy().reshape(3, *x.shape[:2]).transpose(1, 2, 0)
    counts = stats.poisson.ppf(draws, x * photons)
    return np.maximum(counts, 0) / photons


def impulse_noise(x, key, purpose, share):
    draws = uniform(key, purpose, x.size).numpy().reshape(3, *x.shape[:2]).transpose(1, 2, 0)
    return np.where(draws < share / 2, 1.0, np.where(draws < share, 0.0, x))


def disk(radius, soften):
    half = max(8, int(radius))
    grid = np.arange(-half, half + 1)
    kernel = (grid[:, None] ** 2 + grid**2 <= radius**2).astype(float)
    ring = np.arange(-1, 2) if radius <= 8 else np.arange(-2, 3)
    weights = np.exp(-(ring**2) / (2 * soften**2))
    weights /= weights.sum()
    for axis in (0, 1):
        kernel = ndimage.correlate1d(kernel, weights, axis=axis, mode="mirror")
    return kernel / kernel.sum() if radius <= 7 else kernel / (grid[:, None] ** 2 + grid**2 <= radius**2).sum()


def defocus_blur(x, key, purpose, look):
    return np.stack([ndimage.correlate(x[..., c], disk(*look), mode="mirror") for c in range(3)], axis=2)


def gaussian_filter(x, sigma):
    return ndimage.gaussian_filter(x, (sigma, sigma, 0), mode="nearest", truncate=4.0)


def glass_blur(x, key, purpose, look):
    height, width = x.shape[:2]
    x = np.floor(gaussian_filter(x, look.sigma) * 255 + 1e-9)
    for turn in range(look.rounds):
        draws = uniform(key, f"{purpose} {turn}", 2 * height * width).numpy().reshape(2, height, width)
        down, right = (np.floor(2 * look.reach * draws) - look.reach).astype(int)
        for h in range(height - look.reach, look.reach, -1):
            for w in range(width - look.reach, look.reach, -1):
                there = h + down[h, w], w + right[h, w]
                x[h, w], x[there] = x[there], x[h, w]  # as the authors write it: two views, so nothing is exchanged
    return gaussian_filter(x / 255, look.sigma)


def along_a_path(x, degrees, radius, sigma):
    weights = np.exp(-(np.arange(2 * radius + 1) ** 2) / (2 * sigma**2))
    weights /= weights.sum()
    height, width = x.shape[:2]
    total = np.zeros_like(x)
    for i, weight in enumerate(weights):
        down, right = (
            int(np.ceil(i * part - 0.5)) for part in (np.sin(np.radians(degrees)), np.cos(np.radians(degrees)))
        )
        rows = np.clip(np.arange(height) + down, 0, height - 1)
        columns = np.clip(np.arange(width) + right, 0, width - 1)
        total += weight * x[rows][:, columns]
    return np.floor(total * 255 + 0.5 + 1e-4) / 255


def motion_blur(x, key, purpose, look):
    return along_a_path(x, -45 + 90 * uniform(key, purpose, 1).item(), *look)


def clipped_zoom(x, factor):
    side = x.shape[0]
    length = int(np.ceil(side / factor))
    top = (side - length) // 2
    large = ndimage.zoom(x[top : top + length, top : top + length], (factor, factor, 1), order=1)
    trim = (large.shape[0] - side) // 2
    return large[trim : trim + side, trim : trim + side]


def zoom_blur(x, key, purpose, look):
    step, count = look
    factors = np.arange(1, 1 + (count - 0.5) * step, step)
    assert len(factors) == count
    return (x + sum(clipped_zoom(x, factor) for factor in factors)) / (count + 1)


def snow(x, key, purpose, look):
    side = x.shape[0]
    length = int(np.ceil(side / look.zoom))
    top = (side - length) // 2
    layer = np.zeros((side, side, 1))
    draws = normal(key, f"{purpose} flakes", length**2).double().numpy().reshape(length, length, 1)
    layer[top : top + length, top : top + length] = look.mean + look.std * draws
    layer = clipped_zoom(layer, look.zoom)
    layer[layer < look.threshold] = 0
    layer = np.floor(np.clip(layer, 0, 1) * 255 + 1e-4) / 255
    degrees = -135 + 90 * uniform(key, f"{purpose} direction", 1).item()
    layer = along_a_path(layer, degrees, look.radius, look.sigma)
    grey = x @ np.array([0.299, 0.587, 0.114])
    white = np.maximum(x, grey[..., None] * 1.5 + 0.5)
    return look.keep * x + (1 - look.keep) * white + layer + np.rot90(layer, k=2)


def diamond_square(random, decay):
    side = len(random)
    heights, step, size = np.zeros((side, side)), side, 1.0
    while step >= 2:
        half = step // 2
        for r in range(0, side, step):
            for c in range(0, side, step):
                corners = [heights[(r + a) % side, (c + b) % side] for a in (0, step) for b in (0, step)]
                heights[r + half, c + half] = np.mean(corners) + size * random[r + half, c + half]
        for r in range(0, side, half):
            for c in range(half if (r // half) % 2 == 0 else 0, side, step):
                near = [
                    heights[(r + a) % side, (c + b) % side] for a, b in ((half, 0), (-half, 0), (0, half), (0, -half))
                ]
                heights[r, c] = np.mean(near) + size * random[r, c]
        step, size = half, size / decay**2
    heights -= heights.min()
    return heights / heights.max()


def fog(x, key, purpose, look):
    thickness, decay = look
    side = 1 << (x.shape[0] - 1).bit_length()
    random = 2 * uniform(key, purpose, side * side).double().numpy().reshape(side, side) - 1
    density = diamond_square(random, decay)[: x.shape[0], : x.shape[1], None]
    return (x + thickness * density) * x.max() / (x.max() + thickness)


def brightness(x, key, purpose, added):
    hsv = rgb_to_hsv(x)
    hsv[..., 2] = np.clip(hsv[..., 2] + added, 0, 1)
    return hsv_to_rgb(hsv)


def contrast(x, key, purpose, factor):
    means = x.mean(axis=(0, 1), keepdims=True)
    return (x - means) * factor + means


def elastic_transform(x, key, purpose, look):
    side = x.shape[0]
    size, sigma, reach = look
    moves = reach * (2 * uniform(key, f"{purpose} corners", 6).double().numpy().reshape(3, 2) - 1)
    centre, third = np.array([side // 2] * 2), side // 3
    corners = centre + third * np.array([[1, 1], [1, -1], [-1, -1]])
    back = np.linalg.solve(np.c_[corners + moves, np.ones(3)], corners)
    rows, columns = np.mgrid[:side, :side]
    right, down = (np.stack([columns, rows, np.ones_like(rows)], axis=-1) @ back).transpose(2, 0, 1)
    x = np.stack([ndimage.map_coordinates(x[..., c], [down, right], order=1, mode="mirror") for c in range(3)], axis=2)
    if size:
        random = 2 * uniform(key, f"{purpose} displacements", 2 * side**2).double().numpy().reshape(2, side, side) - 1
        right, down = (size * ndimage.gaussian_filter(part, sigma, mode="reflect", truncate=3) for part in random)
        at = [rows + down, columns + right]
        x = np.stack([ndimage.map_coordinates(x[..., c], at, order=1, mode="reflect") for c in range(3)], axis=2)
    return x


def pixelate(x, key, purpose, factor):
    picture = Image.fromarray(np.rint(x * 255).astype(np.uint8))
    small = picture.resize([int(side * factor) for side in picture.size], Image.BOX)
    return np.asarray(small.resize(picture.size, Image.BOX)) / 255


def jpeg_compression(x, key, purpose, quality):
    picture = torch.from_numpy(np.rint(x * 255).astype(np.uint8)).permute(2, 0, 1).contiguous()
    read = torchvision.io.decode_jpeg(torchvision.io.encode_jpeg(picture, quality=quality))
    return read.permute(1, 2, 0).numpy() / 255


FORMULAS = {name: globals()[name] for name in CORRUPTIONS if name != "frost"}


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("side", COUNTS)
def test_each_byte_is_that_of_the_published_formula(images, side, name, severity):
    pictures = images[side]
    ours = corrupt(pictures, name, severity, torch.arange(len(pictures))).permute(0, 2, 3, 1).numpy()
    look = strengths(side, name, severity)
    for picture, key, found in zip(pictures, keys_of(len(pictures)).split(1), ours, strict=True):
        x = picture.permute(1, 2, 0).double().numpy() / 255
        values = np.clip(FORMULAS[name](x, key, f"{name} {severity}", look), 0, 1) * 255
        beyond = np.maximum(found - values, values - 1 - found)  # a byte is its value, cut off: within (-1, 0]
        assert beyond.max() < 1.1
        assert (beyond > (0.15 if name == "elastic_transform" else 0.001)).mean() < 5e-4


def test_pillow_and_torchvision_agree_on_a_jpeg_file(images):
    picture = images[224][0]
    file = io.BytesIO()
    Image.fromarray(picture.permute(1, 2, 0).numpy()).save(file, "JPEG", quality=25)
    read = torchvision.io.decode_jpeg(torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8))
    assert torch.equal(read, torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1))


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("name", ["gaussian_noise", "shot_noise", "impulse_noise"])
def test_noise_changes_an_image_as_much_as_numpys_generators_do(images, name, severity):
    picture, draw = images[224][0].double().numpy() / 255, np.random.default_rng(0)
    strength = strengths(224, name, severity)
    match name:
        case "gaussian_noise":
            theirs = picture + draw.normal(scale=strength, size=picture.shape)
        case "shot_noise":
            theirs = draw.poisson(picture * strength) / strength
        case "impulse_noise":
            hit, white = draw.random(picture.shape) <= strength, draw.random(picture.shape) <= 0.5
            theirs = np.where(hit, white, picture)
    theirs = np.floor(np.clip(theirs, 0, 1) * 255)
    ours = corrupt(images[224][:1], name, severity, torch.arange(1))[0].numpy().astype(float)
    change = [np.abs(values - picture * 255).mean() for values in (ours, theirs)]
    assert change[0] == pytest.approx(change[1], rel=0.05)
