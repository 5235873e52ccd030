# SPDX-License-Identifier: Apache-2.0
import dataclasses

import pytest
import torch

from recipes_lib.data import pantry
from recipes_lib.data.pantry.factors import NAMES, RANGES


@pytest.fixture(scope="module")
def drawn() -> pantry.Factors:
    return pantry.sample_factors(300, seed=0, scenes="controlled")


def test_every_field_has_a_range_and_one_row_an_image(drawn):
    assert set(drawn.to_dict()) == set(RANGES)
    assert {len(value) for value in drawn.to_dict().values()} == {300}
    assert all(value.ndim in (1, 2) for value in drawn.to_dict().values())
    drawn.check()


def test_fixing_sets_one_field_for_all_images_and_leaves_the_others(drawn):
    fixed = pantry.fix(drawn, label="kettle", table_colour=(1.0, 0.5, 0.0), roll=3)
    assert (fixed.label == pantry.CLASSES.index("kettle")).all()
    assert torch.equal(fixed.table_colour, torch.tensor([1.0, 0.5, 0.0]).expand(300, 3))
    assert (fixed.roll == 3.0).all()
    same = set(RANGES) - {"label", "table_colour", "roll"}
    assert all(torch.equal(getattr(fixed, name), getattr(drawn, name)) for name in same)


def test_fixing_takes_a_value_an_image(drawn):
    sizes = torch.linspace(0.4, 1.0, 300)
    assert torch.equal(pantry.fix(drawn, size=sizes).size, sizes)


def test_a_correlation_ties_about_the_share_it_is_asked_for(drawn):
    table = [pantry.BACKGROUNDS[position % 6] for position in range(12)]
    tied = pantry.correlate(drawn, "background", "label", table, share=0.8)
    follows = tied.background == drawn.label % 6
    assert 0.75 < follows.float().mean() < 0.92  # 0.8, and a sixth of the others by chance
    assert torch.equal(tied.background[~follows], drawn.background[~follows])
    everyone = pantry.correlate(drawn, "colour", "label", torch.eye(12)[:, :3].tolist())
    assert torch.equal(everyone.colour, torch.eye(12)[drawn.label, :3])


def test_who_is_tied_depends_on_the_position_in_the_data_set(drawn):
    table = ["wood"] * 12
    whole = pantry.correlate(drawn, "background", "label", table, share=0.5)
    rest = torch.arange(100, 300)
    part = pantry.correlate(drawn.select(rest), "background", "label", table, share=0.5, start=100)
    assert torch.equal(part.background, whole.background[rest])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"label": "mugg"}, "factors.label = 'mugg' is not known. Did you mean 'mug'?"),
        ({"style": "oil"}, "There are: photo, poster, sketch, dusk"),
        ({"colur": 0.5}, "There is no factor 'colur'. Did you mean 'colour'?"),
        ({"size": 9.0}, "factors.size holds 9: use values from 0.1 to 1.5"),
        ({"size": float("nan")}, "factors.size holds nan"),
        ({"size": "big"}, "this factor takes numbers"),
        ({"colour": (0.1, 0.2)}, r"factors.colour has shape \[2\]: use \[300, 3\], or \[3\] for all"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(drawn, values, message):
    with pytest.raises(ValueError, match=message):
        pantry.fix(drawn, **values)


def test_rendering_checks_factors_that_were_replaced_by_hand(drawn):
    broken = dataclasses.replace(drawn, label=drawn.label + 11, azimuth=drawn.azimuth[:5])
    with pytest.raises(ValueError, match=r"label holds \d+: use values from 0 to 11 \(mug, .*\n.*azimuth has 5 rows"):
        pantry.render(broken, 16)


def test_a_wrong_correlation_is_refused(drawn):
    with pytest.raises(ValueError, match="cause = 'size' is no choice"):
        pantry.correlate(drawn, "background", "size", ["wood"])
    with pytest.raises(ValueError, match="table has 1 entries; label takes 12 values"):
        pantry.correlate(drawn, "background", "label", ["wood"])
    with pytest.raises(ValueError, match=r"share = 1.5 is not allowed"):
        pantry.correlate(drawn, "background", "label", ["wood"] * 12, share=1.5)


def test_named_fields_start_at_zero_and_end_with_their_last_name():
    assert all(RANGES[field] == (0, len(names) - 1) for field, names in NAMES.items())
