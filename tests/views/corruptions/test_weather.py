# SPDX-License-Identifier: Apache-2.0
import torch

from recipes_lib.randomness import sample_keys
from recipes_lib.views.corruptions import weather
from recipes_lib.views.corruptions.parameters import IMAGENET_C

KEYS = sample_keys(0, 0, torch.arange(6))


def test_plasma_fills_its_range_and_is_rougher_with_less_decay():
    smooth, rough = (weather.plasma(KEYS, "fog", 128, decay) for decay in (3.0, 1.4))
    for found in (smooth, rough):
        assert found.amin(dim=(1, 2)).eq(0).all()
        assert found.amax(dim=(1, 2)).sub(1).abs().max() < 1e-6
    roughness = [found.diff(dim=2).abs().mean() for found in (smooth, rough)]
    assert roughness[1] > 3 * roughness[0]


def test_plasma_continues_across_its_borders():
    found = weather.plasma(KEYS, "fog", 64, 2.0)
    across = (found[:, :, 0] - found[:, :, -1]).abs().mean()
    assert across < 2 * found.diff(dim=2).abs().mean()


def test_fog_keeps_the_brightest_value_possible_and_lowers_the_contrast():
    images = torch.rand(6, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    foggy = weather.fog(images, KEYS, "fog", 2.0, 2.0)
    assert (foggy.amax(dim=(1, 2, 3)) <= images.amax(dim=(1, 2, 3)) + 1e-6).all()
    assert foggy.std() < images.std()


def test_snow_makes_an_image_whiter_and_its_flakes_are_there_twice_turned_by_half_a_turn():
    black = torch.zeros(6, 3, 64, 64)
    found = weather.snow(black, KEYS, "snow", IMAGENET_C.snow[0])
    base = 0.2 * 0.5  # what 0.8 of black and 0.2 of its whitened image give
    assert found.min() >= base - 1e-6
    assert found.mean() > base + 0.01
    torch.testing.assert_close(found, found.flip(2, 3))


def test_brightness_adds_to_the_largest_channel_and_keeps_the_ratio_of_the_channels():
    pixel = torch.tensor([0.2, 0.4, 0.1]).view(1, 3, 1, 1)
    assert torch.allclose(weather.brightness(pixel, 0.2).flatten(), torch.tensor([0.3, 0.6, 0.15]))
    assert torch.allclose(weather.brightness(pixel, 0.9).flatten(), torch.tensor([0.5, 1.0, 0.25]))
    assert torch.allclose(weather.brightness(torch.zeros(1, 3, 1, 1), 0.3).flatten(), torch.full((3,), 0.3))
