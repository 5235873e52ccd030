# SPDX-License-Identifier: Apache-2.0
import itertools

import pytest
import torch
from torchvision.transforms.v2 import functional as peer

from recipes_lib.randomness import sample_keys
from recipes_lib.views import colour

FACTORS = torch.tensor([0.0, 0.3, 0.8, 1.0, 1.3, 1.9])
SHIFTS = torch.tensor([-0.5, -0.3, 0.0, 0.1, 0.27, 0.5])


def images(levels=None):
    values = torch.rand(6, 3, 20, 24, generator=torch.Generator().manual_seed(0))
    return values if levels is None else (values * levels).round() / levels


def each(function, batch, *parameters):
    rows = zip(*[values.tolist() for values in parameters], strict=True)
    return torch.stack([function(image, *row) for image, row in zip(batch, rows, strict=True)])


def jittered(batch, parameters, code):
    """One of the four jitters alone."""
    factors = torch.zeros(len(batch), 4)
    factors[:, code] = parameters
    return colour.color_jitter(batch, factors, torch.full((len(batch), 1), code))


@pytest.mark.parametrize("name", ["adjust_brightness", "adjust_contrast", "adjust_saturation"])
def test_a_blend_is_torchvisions(name):
    ours = jittered(images(), FACTORS, getattr(colour, name.removeprefix("adjust_").upper()))
    torch.testing.assert_close(ours, each(getattr(peer, name), images(), FACTORS), atol=1e-6, rtol=0)


# coarse levels make greys, and pixels with two equal channels, where hue changes its formula
@pytest.mark.parametrize("levels", [None, 255, 4, 1])
def test_hue_is_torchvisions(levels):
    batch = images(levels)
    ours = jittered(batch, SHIFTS, colour.HUE)
    torch.testing.assert_close(ours, each(peer.adjust_hue, batch, SHIFTS), atol=5e-6, rtol=0)


def test_each_sample_is_jittered_in_its_own_order():
    orders = torch.tensor(list(itertools.permutations(range(4))))  # all 24
    g = torch.Generator().manual_seed(1)
    batch = torch.rand(24, 3, 12, 16, generator=g)
    factors = torch.cat([0.4 + 1.2 * torch.rand(24, 3, generator=g), torch.rand(24, 1, generator=g) - 0.5], dim=1)
    functions = (peer.adjust_brightness, peer.adjust_contrast, peer.adjust_saturation, peer.adjust_hue)
    expected = []
    for image, order, factor in zip(batch, orders.tolist(), factors.tolist(), strict=True):
        for code in order:
            image = functions[code](image, factor[code])
        expected.append(image)
    torch.testing.assert_close(colour.color_jitter(batch, factors, orders), torch.stack(expected), atol=2e-5, rtol=0)


def test_jitter_in_a_batch_is_jitter_alone():
    orders = torch.tensor(list(itertools.permutations(range(4))))[::4]
    factors = torch.stack([FACTORS, FACTORS.flip(0), FACTORS.roll(2), SHIFTS], dim=1)
    together = colour.color_jitter(images(), factors, orders)
    alone = [colour.color_jitter(images()[i : i + 1], factors[i : i + 1], orders[i : i + 1]) for i in range(6)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-6, rtol=0)


def test_a_sample_told_to_do_nothing_stays_as_it_is():
    order = torch.tensor([[0, 1, 2, 3]]).repeat(6, 1)
    order[::2] = colour.NOTHING
    factors = torch.stack([FACTORS, FACTORS, FACTORS, SHIFTS], dim=1)
    jittered = colour.color_jitter(images(), factors, order)
    assert torch.equal(jittered[::2], images()[::2])
    assert not torch.equal(jittered[1], images()[1])


def test_jitter_leaves_its_input_alone():
    batch = images()
    jittered(batch, SHIFTS, colour.HUE)
    assert torch.equal(batch, images())


def test_each_image_is_solarized_from_a_threshold_of_its_own():
    batch, thresholds = images(), torch.linspace(0, 1, len(images()))
    wanted = torch.stack([peer.solarize(image, float(t)) for image, t in zip(batch, thresholds, strict=True)])
    assert torch.equal(colour.solarize(batch, thresholds), wanted)


def test_grayscale_solarize_and_invert_are_torchvisions():
    batch = images()
    torch.testing.assert_close(colour.grayscale(batch), peer.rgb_to_grayscale(batch, 3), atol=1e-6, rtol=0)
    assert torch.equal(colour.solarize(batch, torch.full((len(batch),), 0.5)), peer.solarize(batch, 0.5))
    assert torch.equal(colour.invert(batch), peer.invert(batch))


def test_equalize_is_torchvisions_image_by_image():
    batch = images(255)
    batch[5] = 0.25  # nothing to spread
    assert torch.equal(colour.equalize(batch), torch.stack([peer.equalize(image) for image in batch]))
    levels = colour.equalize(0.5 + batch[:1] / 4)  # a quarter of the levels, spread over all
    assert (levels.min(), levels.max()) == (0, 1)


def test_channels_are_shuffled_per_sample():
    order = torch.tensor([[2, 0, 1], [0, 1, 2], [1, 0, 2], [0, 2, 1], [2, 1, 0], [1, 2, 0]])
    expected = torch.stack([image[row] for image, row in zip(images(), order, strict=True)])
    assert torch.equal(colour.shuffle_channels(images(), order), expected)


def test_noise_has_its_deviation_and_depends_on_the_sample_alone():
    keys = sample_keys(0, 0, torch.arange(64))
    grey = torch.full((64, 3, 32, 32), 0.5)
    noise = colour.add_noise(grey, keys, "noise", 0.05) - 0.5
    assert noise.mean().abs() < 1e-3
    assert abs(float(noise.std()) - 0.05) < 1e-3
    assert torch.equal(colour.add_noise(grey[:2], keys[[7, 3]], "noise", 0.05) - 0.5, noise[[7, 3]])


def test_normalize_is_torchvisions():
    expected = peer.normalize(images(), list(colour.IMAGENET_MEAN), list(colour.IMAGENET_STD))
    torch.testing.assert_close(colour.normalize_(images()), expected, atol=2e-6, rtol=0)


def test_standardized_images_have_mean_0_and_deviation_1():
    values = colour.standardize(images() * 0.3 + 0.2)
    torch.testing.assert_close(values.mean(dim=(1, 2, 3)), torch.zeros(6), atol=1e-5, rtol=0)
    torch.testing.assert_close(values.std(dim=(1, 2, 3), correction=0), torch.ones(6), atol=1e-5, rtol=0)


def test_a_flat_image_is_standardized_to_zeros():
    assert colour.standardize(torch.full((1, 3, 8, 8), 0.25)).abs().max() < 1e-4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_jitter_on_the_gpu_is_that_of_the_cpu():
    orders = torch.tensor(list(itertools.permutations(range(4))))[::4]
    factors = torch.stack([FACTORS, FACTORS, FACTORS, SHIFTS], dim=1)
    ours = colour.color_jitter(images().cuda(), factors, orders).cpu()
    torch.testing.assert_close(ours, colour.color_jitter(images(), factors, orders), atol=2e-5, rtol=0)
