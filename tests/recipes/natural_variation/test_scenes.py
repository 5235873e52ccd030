# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from recipes_lib.data import objects3d
from recipes_lib.randomness import sample_keys
from recipes_lib.recipes.natural_variation import scenes
from recipes_lib.recipes.natural_variation.sources import FACTORS

needs_objects = pytest.mark.skipif(objects3d.missing() is not None, reason=str(objects3d.missing()))
KEYS = sample_keys(0, 0, torch.arange(24))
FIELDS = {
    "pose": {"azimuth", "elevation", "roll"},
    "position": {"position"},
    "background": {"background", "table_colour", "wall_colour", "background_colours", "background_layout"},
    "lighting": {"light_colour"},
    "size": {"size"},
}


def _made(kind: str):
    return scenes.Pantry(0) if kind == "pantry" else scenes.Objects(0, pairs=12)


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("kind", ["pantry", "objects"])
def test_varying_a_factor_changes_its_fields_and_no_other(kind, factor):
    made = _made(kind)
    before = made.canonical(torch.arange(24) % len(made.class_names), torch.arange(24))
    after = made.vary(before, factor, KEYS)
    changed = {name for name, value in before.to_dict().items() if not torch.equal(value, getattr(after, name))}
    assert changed
    assert changed <= FIELDS[factor]
    after.check()


@pytest.mark.parametrize("kind", ["pantry", "objects"])
def test_a_factor_that_varies_with_another_has_the_value_that_it_has_alone(kind):
    made = _made(kind)
    start = made.canonical(torch.zeros(24, dtype=torch.int64), torch.arange(24))
    both = made.vary(made.vary(start, "pose", KEYS), "size", KEYS)
    assert torch.equal(both.azimuth, made.vary(start, "pose", KEYS).azimuth)
    assert torch.equal(both.size, made.vary(start, "size", KEYS).size)


@pytest.mark.parametrize("kind", ["pantry", "objects"])
def test_no_background_hides_an_object(kind):
    made = _made(kind)
    numbers = torch.arange(2000)
    start = made.canonical(numbers % 12, numbers)
    after = made.vary(start, "background", sample_keys(1, 0, numbers))
    for name in ("table_colour", "wall_colour"):
        colours = getattr(after, name) if kind == "pantry" else after.background_colours.view(-1, 2, 3)[:, 0]
        assert (colours - start.colour).norm(dim=1).min() >= scenes.CONTRAST - 1e-6


def test_twins_of_the_pantry_are_one_kind_in_two_widths():
    made = scenes.Pantry(0, twins=True)
    assert made.class_names[:4] == ("wide mug", "narrow mug", "wide bottle", "narrow bottle")
    assert made.families.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    found = made.canonical(torch.tensor([0, 1] * 50), torch.arange(100))
    wide, narrow = found.instance[0::2], found.instance[1::2]
    assert torch.equal(found.label, torch.zeros(100, dtype=torch.int64))
    assert wide[:, 0].min() > narrow[:, 0].max() + 0.4
    assert wide[:, 1].max() < narrow[:, 1].min() - 0.4


@needs_objects
def test_twins_among_the_objects_overlap_more_than_others():
    meshes = torch.tensor(scenes.TWINS[:6]).flatten()
    found = objects3d.masks(objects3d.fix(objects3d.canonical(meshes), stretch=1.0, size=0.95), 32).flatten(1).float()
    both = found @ found.T
    overlap = both / (both.diagonal()[:, None] + both.diagonal() - both)
    twin = torch.arange(12) ^ 1
    assert (overlap.fill_diagonal_(0).argmax(1) == twin).sum() >= 10  # similarity was measured over four poses


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="pairs = 31 is not allowed: use 1 to 30"):
        scenes.Objects(0, pairs=31)
    made = scenes.Pantry(0)
    with pytest.raises(ValueError, match="There is no factor 'colour'"):
        made.vary(made.canonical(torch.tensor([0]), torch.tensor([0])), "colour", KEYS[:1])
