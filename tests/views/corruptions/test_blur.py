# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from recipes_lib.randomness import sample_keys
from recipes_lib.views.corruptions import blur
from recipes_lib.views.corruptions.parameters import IMAGENET_C, Glass


@pytest.fixture
def dot():
    """One white pixel in the middle of black ones."""
    images = torch.zeros(1, 3, 33, 33)
    images[:, :, 16, 16] = 1
    return images


@pytest.mark.parametrize(("radius", "soften"), [*IMAGENET_C.defocus_blur, (0.3, 0.4), (1.5, 0.1)])
def test_a_disk_has_sum_one_and_no_border_of_zeros(radius, soften):
    kernel = blur.disk(radius, soften)
    assert abs(kernel.sum() - 1) < 0.02  # the authors' softening mirrors the disk at the border of its array
    torch.testing.assert_close(kernel, kernel.T)
    assert kernel.shape[0] % 2 == 1
    assert soften < 0.2 or kernel[0].max() > 0


def test_defocus_spreads_a_dot_over_a_disk(dot):
    spread = blur.defocus_blur(dot, 3, 0.1)[0, 0]
    reached = (spread > 1e-4).nonzero() - 16
    assert (reached.pow(2).sum(dim=1) <= 9).all()
    assert len(reached) == 29  # pixels whose centre is at most 3 away
    assert abs(spread.sum() - 1) < 1e-5


@pytest.mark.parametrize(("degrees", "step"), [(0.0, (0, -1)), (90.0, (-1, 0)), (-90.0, (1, 0)), (180.0, (0, 1))])
def test_motion_runs_against_the_direction_from_which_pixels_are_taken(dot, degrees, step):
    blurred = blur.motion_blur(dot, torch.tensor([degrees]), radius=3, sigma=1.5)[0, 0]
    trail = [blurred[16 + k * step[0], 16 + k * step[1]].item() for k in range(7)]
    assert trail == sorted(trail, reverse=True)
    assert min(trail[:4]) > 0.01
    assert trail[0] / trail[1] == pytest.approx(2.718281828 ** (1 / 4.5), rel=1e-4)


def test_a_flat_image_stays_as_it_is_under_every_blur():
    flat = torch.full((2, 3, 40, 56), 0.6)
    keys = sample_keys(0, 0, torch.arange(2))
    for found in (
        blur.defocus_blur(flat, 6, 0.5),
        blur.glass_blur(flat, keys, "glass", Glass(0.9, 2, 1)),
        blur.motion_blur(flat, torch.tensor([20.0, -70.0]), 10, 3),
        blur.zoom_blur(flat, 0.02, 11),
        blur.smooth(flat, 9.0, border="reflect", truncate=3.0),
    ):
        torch.testing.assert_close(found, flat, atol=1e-4, rtol=0)


def test_zoom_blur_keeps_the_centre_and_moves_the_rest_outwards():
    image = torch.zeros(1, 3, 41, 41)
    image[..., 20, 20] = 1  # the centre of an odd side is the centre of every crop
    image[..., 20, 30] = 1
    blurred = blur.zoom_blur(image, 0.05, 5)[0, 0]
    assert blurred[20, 20] > 0.4
    assert blurred[20, 31:35].sum() > 0.2
    assert blurred[20, 26:30].sum() < 1e-3


def test_glass_takes_pixels_from_near_by_and_none_far_away():
    ramp = torch.arange(40.0).expand(1, 3, 40, 40) / 255
    moved = blur.glass_blur(ramp, sample_keys(0, 0, torch.arange(1)), "glass", Glass(0.05, 2, 1)) - ramp
    assert 0.5 < moved.abs().mean() * 255 < 6
    assert (moved * 255).round().unique().numel() > 3


def test_smoothing_without_width_changes_nothing(dot):
    assert torch.equal(blur.smooth(dot, 0.05, border="nearest"), dot)
