# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from torch import Tensor

from recipes_lib.data import pantry
from recipes_lib.data.pantry import render as render_function
from recipes_lib.data.pantry.factors import RANGES
from recipes_lib.data.pantry.things import things_of


@pytest.fixture(scope="module")
def drawn() -> pantry.Factors:
    """Photographs of a mug and a bowl behind a card: every factor shows in them."""
    factors = pantry.sample_factors(8, seed=0, scenes="controlled")
    return pantry.fix(
        factors, label="mug", extra_label=(1, 1), background="wood", azimuth=20, style="photo", occluder=1, objects=2,
        material="glossy", size=0.6, elevation=30, pattern="dots", position=(0.0, 0.0), light_strength=1.0,
        light_elevation=50, occluder_position=(0.5, 0.5), occluder_size=0.3, roll=5, light_azimuth=60, extra_azimuth=(30, 150),
    )  # fmt: skip


@pytest.fixture(scope="module")
def pictures(drawn) -> Tensor:
    return pantry.render(drawn, 32)


def test_pictures_are_bytes_of_the_asked_size(pictures):
    assert pictures.shape == (8, 3, 32, 32)
    assert pictures.dtype == torch.uint8
    assert pictures.float().std((2, 3)).min() > 2


@pytest.mark.parametrize("chunk", [1, 5])
def test_a_picture_does_not_depend_by_a_bit_on_how_many_are_rendered_at_once(chunk):
    factors = pantry.sample_factors(12, seed=1, scenes="controlled")
    assert torch.equal(pantry.render(factors, 24, chunk), pantry.render(factors, 24))


def test_a_picture_does_not_depend_by_a_bit_on_what_it_is_rendered_beside():
    factors = pantry.sample_factors(14, seed=2, scenes="controlled")
    together = pantry.render(factors, 24)
    order = torch.randperm(14, generator=torch.Generator().manual_seed(0))
    assert torch.equal(pantry.render(factors.select(order), 24), together[order])
    for index in (0, 9):
        assert torch.equal(pantry.render(factors.select(torch.tensor([index])), 24)[0], together[index])


def test_images_after_the_first_page_are_the_same_pictures(monkeypatch):
    factors = pantry.sample_factors(10, seed=3)
    whole = pantry.render(factors, 16)
    monkeypatch.setitem(render_function.__globals__, "_PAGE", 4 * 16 * 16)
    assert torch.equal(pantry.render(factors, 16, chunk=3), whole)


OTHER = {
    "label": "pot", "material": "metal", "pattern": "bands", "background": "boards", "style": "dusk", "occluder": 0,
    "objects": 1, "colour": (0.9, 0.1, 0.1), "trim_colour": (0.1, 0.9, 0.1), "pattern_colour": (0.1, 0.1, 0.9),
    "instance": (0.05, 0.95, 0.05, 0.95), "azimuth": 123.0, "elevation": 55.0, "roll": -15.0, "position": (0.2, -0.1),
    "size": 0.9, "table_colour": (0.9, 0.2, 0.2), "wall_colour": (0.2, 0.9, 0.2), "light_azimuth": 150.0,
    "light_elevation": 25.0, "light_strength": 0.4, "light_colour": (1.0, 0.5, 0.5), "occluder_size": 0.1,
    "occluder_position": (-0.5, 0.3), "occluder_colour": (0.5, 1.0, 0.5), "extra_label": (3, 3), "extra_hue": (0.9, 0.4),
    "extra_azimuth": (50.0, 170.0),
}  # fmt: skip


@pytest.mark.parametrize("field", RANGES)
def test_each_factor_shows_in_the_picture(drawn, pictures, field):
    changed = pantry.render(pantry.fix(drawn, **{field: OTHER[field]}), 32)
    differs = (changed != pictures).flatten(1).any(1)
    assert differs.all()


@pytest.mark.parametrize(
    ("off", "fields"),
    [
        ({"occluder": 0}, ("occluder_position", "occluder_size", "occluder_colour")),
        ({"objects": 1}, ("extra_label", "extra_azimuth", "extra_hue")),
        ({"pattern": "plain"}, ("pattern_colour",)),
    ],
)
def test_a_factor_of_what_is_absent_does_not_show(drawn, off, fields):
    without = pantry.fix(drawn, **off)
    changed = pantry.fix(without, **{field: OTHER[field] for field in fields})
    assert torch.equal(pantry.render(changed, 16), pantry.render(without, 16))


@pytest.mark.parametrize("name", pantry.CLASSES)
def test_every_class_stands_out_from_its_table(name):
    factors = pantry.fix(
        pantry.sample_factors(4, seed=0, scenes="controlled"),
        label=name, objects=1, occluder=0, style="photo", material="matte", pattern="plain", colour=(1.0, 0.0, 0.0),
        trim_colour=(1.0, 0.0, 0.0), table_colour=(0.5, 0.5, 0.5), wall_colour=(0.5, 0.5, 0.5), background="worktop",
        light_colour=(1.0, 1.0, 1.0), size=0.9, elevation=35, position=(0.0, 0.0),
    )  # fmt: skip
    picture = pantry.render(factors, 32).float()
    red = (picture[:, 0] > 2 * picture[:, 1]).float().mean((1, 2))
    assert red.min() > (0.02 if name == "spoon" else 0.05)
    assert red.max() < 0.7


def test_the_object_appears_where_it_was_put(drawn):
    one = pantry.fix(
        drawn, label="apple", objects=1, occluder=0, material="matte", pattern="plain", colour=(1.0, 0.0, 0.0),
        table_colour=(0.5, 0.5, 0.5), wall_colour=(0.5, 0.5, 0.5), background="worktop", size=0.4, roll=0,
    )  # fmt: skip
    for place in ((0.0, 0.0), (0.4, 0.0), (0.0, 0.4), (-0.3, -0.3)):
        picture = pantry.render(pantry.fix(one, position=place), 32).float()
        red = (picture[:, 0] > 2 * picture[:, 1]).float()
        steps = (2 * torch.arange(32) + 1) / 32 - 1
        right = (red * steps).sum((1, 2)) / red.sum((1, 2))
        up = -(red * steps[:, None]).sum((1, 2)) / red.sum((1, 2))
        torch.testing.assert_close(torch.stack([right, up], 1), torch.tensor(place).expand(8, 2), atol=0.08, rtol=0)


def test_half_the_size_is_the_picture_at_double_size_averaged():
    factors = pantry.sample_factors(24, seed=4)
    small, large = pantry.render(factors, 32).float(), pantry.render(factors, 64).float()
    averaged = large.unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2))
    # grey levels; the square root of film makes an average of edges a little darker than an edge of averages
    assert (averaged - small).abs().mean() < 4
    assert ((averaged - small).abs() > 40).float().mean() < 0.02


def test_more_light_is_never_darker(drawn):
    dim, bright = (pantry.render(pantry.fix(drawn, light_strength=s), 16).int() for s in (0.7, 1.3))
    assert (bright >= dim).all()


def test_what_stands_before_the_main_object_hides_it(drawn):
    factors = pantry.fix(drawn, label="pot", objects=2, extra_label="pot", extra_azimuth=(-90.0, 0.0), occluder=0)
    front = pantry.render(factors, 32)
    behind = pantry.render(pantry.fix(factors, extra_azimuth=(90.0, 0.0)), 32)
    alone = pantry.render(pantry.fix(factors, objects=1), 32)
    assert (front != alone).float().mean() > 1.5 * (behind != alone).float().mean()


def test_far_things_are_painted_first():
    factors = pantry.fix(pantry.sample_factors(5, seed=0), objects=3, extra_azimuth=(90.0, -90.0))
    things = things_of(factors)
    by_image = [things.layer[things.image == image] for image in range(5)]
    assert all(layers.tolist() == [1, 0, 2] for layers in by_image)  # main, behind it, before it


def test_an_odd_size_and_straight_rays_work(drawn):
    factors = pantry.fix(drawn, roll=0, azimuth=0, elevation=0, position=(0.0, 0.0))
    assert pantry.render(factors, 33).float().std((2, 3)).min() > 1


def test_wrong_sizes_are_refused(drawn):
    with pytest.raises(ValueError, match="size = 4 is not allowed: use a side of at least 8"):
        pantry.render(drawn, 4)
    with pytest.raises(ValueError, match="chunk = 0"):
        pantry.render(drawn, 16, chunk=0)


def test_a_struct_of_no_images_gives_no_pictures(drawn):
    none = drawn.select(torch.arange(0))
    assert pantry.render(none, 16).shape == (0, 3, 16, 16)


def test_a_contact_sheet_holds_every_picture_once(pictures):
    sheet = pantry.contact_sheet(pictures, columns=3, gap=2)
    assert sheet.shape == (3, 3 * 34 - 2, 3 * 34 - 2)
    assert torch.equal(sheet[:, 34:66, 68:100], pictures[5])
    assert (sheet[:, -1, -1] == 255).all()
    with pytest.raises(ValueError, match="columns = 0"):
        pantry.contact_sheet(pictures, columns=0)


def test_a_mask_is_where_the_objects_colour_shows(drawn):
    """Two pictures that differ in the colour of the object alone differ in its pixels, and by as much as it covers them."""
    one = pantry.fix(
        drawn, objects=1, occluder=0, material="matte", pattern="plain", colour=(0.0, 0.0, 0.0),
        trim_colour=(0.0, 0.0, 0.0), light_strength=0.6,
    )  # fmt: skip
    bright = pantry.fix(one, colour=(0.6, 0.6, 0.6), trim_colour=(0.6, 0.6, 0.6))
    pictures = [
        (pantry.render(factors, 48).double() / 255).square().sum(1) for factors in (one, bright)
    ]  # linear light
    differs, mask = pictures[1] - pictures[0], pantry.masks(one, 48)
    assert set(mask.unique().tolist()) == {0, 1 + pantry.CLASSES.index("mug")}
    inside = mask > 0
    edge = torch.nn.functional.max_pool2d(inside.double()[:, None], 3, 1, 1)[:, 0] > 0
    assert (differs[~edge] == 0).all()  # beyond the edge's own pixels nothing of the object is seen
    assert (differs[inside] > 0).double().mean() > 0.99
    assert 0.1 < inside.double().mean() < 0.6


def test_the_near_object_hides_the_far_one_and_the_card_hides_both(drawn):
    two = pantry.fix(
        drawn, objects=2, extra_label="pot", extra_azimuth=(-90.0, 0.0), occluder=0, occluder_position=(0.0, 0.0)
    )
    mug, pot = 1 + pantry.CLASSES.index("mug"), 1 + pantry.CLASSES.index("pot")
    front, behind = pantry.masks(two, 32), pantry.masks(pantry.fix(two, extra_azimuth=(90.0, 0.0)), 32)
    alone = pantry.masks(pantry.fix(two, objects=1), 32)
    assert (front == pot).sum() > 10 * (behind == pot).sum()  # the mug hides all but a rim of it
    assert (front == mug).sum() < (behind == mug).sum() == (alone == mug).sum()
    covered = pantry.masks(pantry.fix(two, extra_azimuth=(90.0, 0.0), occluder=1, occluder_size=1.0), 32)
    assert (covered == 0).all()


def test_a_mask_does_not_depend_on_light_colour_style_or_company():
    factors = pantry.sample_factors(9, seed=6, scenes="controlled")
    masks = pantry.masks(factors, 24)
    other = pantry.fix(
        factors, style="sketch", light_strength=0.2, colour=(0.1, 0.2, 0.3), table_colour=(1.0, 0.0, 0.0)
    )
    assert torch.equal(pantry.masks(other, 24), masks)
    assert torch.equal(pantry.masks(factors.select(torch.tensor([4])), 24)[0], masks[4])


@pytest.mark.parametrize("material", ["glass", "matte"])
def test_glass_has_the_mask_of_any_other_material(drawn, material):
    assert torch.equal(pantry.masks(pantry.fix(drawn, material=material), 24), pantry.masks(drawn, 24))


def test_masks_of_wrong_sizes_and_factors_are_refused(drawn):
    with pytest.raises(ValueError, match="size = 7 is not allowed: use a side of at least 8 pixels"):
        pantry.masks(drawn, 7)
