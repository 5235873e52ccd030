# SPDX-License-Identifier: Apache-2.0
import torch

from recipes_lib.randomness import sample_keys
from recipes_lib.views.corruptions import noise
from recipes_lib.views.corruptions.noise import gaussian_noise, impulse_noise, shot_noise

KEYS = sample_keys(0, 0, torch.arange(4))
GREY = torch.full((4, 3, 128, 128), 102 / 255)  # 0.4


def test_gaussian_noise_has_the_mean_of_the_image_and_the_standard_deviation_that_is_asked_for():
    found = gaussian_noise(GREY, KEYS, "noise", 0.18)
    assert abs(found.mean() - 0.4) < 2e-3
    assert abs(found.std() - 0.18) < 1e-3


def test_shot_noise_has_the_mean_and_the_variance_of_counts():
    for photons in (3, 60, 500):
        counts = shot_noise(GREY, KEYS, "noise", photons) * photons
        assert torch.allclose(counts, counts.round(), atol=1e-3)
        assert abs(counts.mean() / (0.4 * photons) - 1) < 0.01
        assert abs(counts.var() / (0.4 * photons) - 1) < 0.02


def test_shot_noise_leaves_black_black():
    assert shot_noise(torch.zeros(4, 3, 16, 16), KEYS, "noise", 3).eq(0).all()


def test_the_smallest_uniform_number_is_a_count_of_zero_at_every_value(monkeypatch):
    monkeypatch.setattr(noise, "uniform", lambda keys, purpose, count: torch.zeros(len(keys), count))
    values = torch.arange(256.0).view(1, 1, 16, 16).expand(1, 3, 16, 16) / 255
    assert noise.shot_noise(values, KEYS[:1], "noise", 5).eq(0).all()


def test_impulse_noise_makes_half_of_its_share_white_and_half_black_in_each_channel_by_itself():
    found = impulse_noise(GREY, KEYS, "noise", 0.27)
    assert abs(found.eq(1).float().mean() - 0.135) < 2e-3
    assert abs(found.eq(0).float().mean() - 0.135) < 2e-3
    assert (found[:, 0].eq(1) & found[:, 1].eq(0)).any()
    assert found[(found != 0) & (found != 1)].unique().tolist() == GREY.unique().tolist()
