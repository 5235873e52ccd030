# SPDX-License-Identifier: Apache-2.0
import torch

from recipes_lib.randomness import sample_keys
from recipes_lib.views.corruptions import digital

DRAW = torch.Generator().manual_seed(0)
IMAGES = torch.randint(256, (3, 3, 32, 48), generator=DRAW).float() / 255
KEYS = sample_keys(0, 0, torch.arange(3))


def test_contrast_keeps_the_mean_of_each_channel_and_scales_its_spread():
    found = digital.contrast(IMAGES, 0.3)
    torch.testing.assert_close(found.mean(dim=(2, 3)), IMAGES.mean(dim=(2, 3)))
    torch.testing.assert_close(found.std(dim=(2, 3)), 0.3 * IMAGES.std(dim=(2, 3)))


def test_an_affine_map_that_moves_all_corners_alike_shifts_the_image():
    moves = torch.tensor([3.0, -2.0]).expand(3, 3, 2)  # right, down
    found = digital.affine(IMAGES, moves)
    torch.testing.assert_close(found[:, :, :-2, 3:], IMAGES[:, :, 2:, :-3], atol=1e-4, rtol=0)
    torch.testing.assert_close(found[:, :, :-2, 0], IMAGES[:, :, 2:, 3], atol=1e-4, rtol=0)  # mirrored at pixel 0


def test_a_constant_displacement_shifts_the_image_and_mirrors_its_edge():
    field = torch.zeros(3, 2, 32, 48)
    field[:, 0] = -1
    found = digital.displaced(IMAGES, field)
    torch.testing.assert_close(found[..., 1:], IMAGES[..., :-1], atol=1e-4, rtol=0)
    torch.testing.assert_close(found[..., 0], IMAGES[..., 0], atol=1e-4, rtol=0)


def test_an_elastic_transform_of_size_zero_is_the_affine_map_alone():
    moved = digital.elastic_transform(IMAGES, KEYS, "elastic", 0, 0, 0.0)
    torch.testing.assert_close(moved, IMAGES, atol=1e-4, rtol=0)
    moved = digital.elastic_transform(IMAGES, KEYS, "elastic", 3.0, 1.0, 0.0)
    assert (moved - IMAGES).abs().mean() > 0.01


def test_pixelation_to_half_the_side_gives_blocks_of_two_with_their_mean():
    found = digital.pixelate(IMAGES, 0.5)
    assert torch.equal(found[:, :, ::2], found[:, :, 1::2])
    assert torch.equal(found[..., ::2], found[..., 1::2])
    means = torch.nn.functional.avg_pool2d(IMAGES, 2)
    assert (found[:, :, ::2, ::2] - means).abs().max() < 1.01 / 255


def test_jpeg_changes_more_at_lower_quality():
    bytes_ = (IMAGES * 255).byte()
    changes = [(digital.jpeg_compression(bytes_, q).float() - bytes_.float()).abs().mean() for q in (95, 40, 7)]
    assert changes == sorted(changes)
    assert changes[0] > 0
