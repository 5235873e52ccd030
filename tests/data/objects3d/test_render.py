# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

from recipes_lib.data import objects3d
from recipes_lib.data.objects3d.render import window

pytestmark = pytest.mark.skipif(objects3d.missing() is not None, reason=str(objects3d.missing()))


@pytest.fixture(scope="module")
def factors() -> objects3d.Factors:
    return objects3d.canonical([4, 8, 17, 8], seed=1, instance=[0, 0, 0, 1])


def test_an_image_does_not_depend_on_what_it_is_rendered_beside(factors):
    together = objects3d.render(factors, 32)
    order = torch.tensor([2, 0, 3, 1])
    assert torch.equal(objects3d.render(factors.select(order), 32), together[order])
    assert torch.equal(objects3d.render(factors.select(torch.tensor([3])), 32)[0], together[3])


def test_a_window_of_size_one_touches_the_unit_sphere():
    """Analytic: a sphere of radius 1 at distance 4 is seen under asin(1/4), the half angle of view."""
    projection = torch.tensor(window(torch.zeros(2).numpy(), 1.0), dtype=torch.float64).view(4, 4).T
    touching = torch.tensor([math.sqrt(1 - 1 / 16), 0.0, -(4 - 1 / 4), 1.0], dtype=torch.float64)  # on sphere and cone
    clip = projection @ touching
    torch.testing.assert_close(clip[0] / clip[3], torch.tensor(1.0, dtype=torch.float64))


def test_position_moves_the_mask_by_the_same_number_of_pixels(factors):
    centred = objects3d.masks(objects3d.fix(factors, size=0.5), 64)
    moved = objects3d.masks(objects3d.fix(factors, size=0.5, position=[0.25, -0.5]), 64)  # 8 pixels right, 16 down
    assert torch.equal(moved, centred.roll((16, 8), (1, 2)))


def test_size_scales_the_masks_area_by_its_square(factors):
    large = objects3d.masks(objects3d.fix(factors, size=1.0), 128).float().mean((1, 2))
    small = objects3d.masks(objects3d.fix(factors, size=0.5), 128).float().mean((1, 2))
    torch.testing.assert_close(small * 4, large, rtol=0.05, atol=0)


@pytest.mark.parametrize("field", ["azimuth", "elevation", "roll"])
def test_a_full_turn_changes_nothing_and_a_part_of_it_something(factors, field):
    start = getattr(factors, field)[0].item()
    images = objects3d.render(factors, 32)
    turned = objects3d.render(objects3d.fix(factors, **{field: start - 360}), 32)
    assert (turned.int() - images.int()).abs().float().mean() < 0.05  # rounding may move an edge
    assert (objects3d.render(objects3d.fix(factors, **{field: start + 90}), 32) != images).float().mean() > 0.05


def test_roll_turns_the_mask_in_the_image_plane_anticlockwise(factors):
    upright = objects3d.masks(factors, 64)
    rolled = objects3d.masks(objects3d.fix(factors, roll=90), 64)
    assert (upright.rot90(1, (1, 2)) == rolled).float().mean() > 0.99
    assert (upright.rot90(-1, (1, 2)) == rolled).float().mean() < 0.97


def test_background_and_light_leave_the_mask_as_it_is(factors):
    mask = objects3d.masks(factors, 48)
    other = objects3d.fix(factors, background="clouds", background_colours=[0.1, 0.2, 0.3, 0.9, 0.4, 0.2])
    other = objects3d.fix(other, light_colour=[0.4, 0.6, 1.0], light_azimuth=200)
    assert torch.equal(objects3d.masks(other, 48), mask)


def test_a_background_shows_only_where_the_object_is_not(factors):
    image = objects3d.render(factors, 48)
    other = objects3d.render(objects3d.fix(factors, background_colours=0.2), 48)
    changed = (image != other).any(1)
    inside = objects3d.masks(factors, 48)
    shrunk = -torch.nn.functional.max_pool2d(-inside.float(), 3, 1, 1) > 0.5  # without the pixels of the edge
    assert not changed[shrunk].any()
    grown = torch.nn.functional.max_pool2d(inside.float(), 3, 1, 1) > 0.5
    assert changed[~grown].all()


def test_the_lights_colour_multiplies_the_whole_image(factors):
    image, tinted = (
        objects3d.render(factors, 32),
        objects3d.render(objects3d.fix(factors, light_colour=[1, 0.5, 0]), 32),
    )
    assert torch.equal(tinted[:, 0], image[:, 0])
    assert (tinted[:, 1].float() - image[:, 1].float() / 2).abs().max() <= 1
    assert tinted[:, 2].max() == 0


def test_a_plain_background_has_the_colour_that_was_asked_for(factors):
    image = objects3d.render(objects3d.fix(factors, background_colours=[0.2, 0.4, 0.6, 0, 0, 0]), 32)
    assert image[0, :, 0, 0].tolist() == [51, 102, 153]


@pytest.mark.parametrize("size", [7, 513])
def test_a_side_that_is_not_allowed_is_named(factors, size):
    with pytest.raises(ValueError, match=f"size = {size} is not allowed: use a side of 8 to 512 pixels"):
        objects3d.render(factors, size)
