# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from recipes_lib.data import objects3d


def test_an_instance_has_the_same_shape_and_colour_wherever_it_is_drawn():
    alone = objects3d.canonical([7], seed=3, instance=[2])
    among = objects3d.canonical([1, 7, 7], seed=3, instance=[2, 2, 5])
    for name in ("stretch", "colour"):
        assert torch.equal(getattr(alone, name)[0], getattr(among, name)[1])
        assert not torch.equal(getattr(alone, name)[0], getattr(among, name)[2])


def test_canonical_objects_are_clearly_coloured_and_stretched_little():
    factors = objects3d.canonical(list(range(500)), seed=0)
    assert (factors.colour.amax(1) - factors.colour.amin(1)).min() > 0.25
    assert factors.stretch.min() >= 1 / 1.15 - 1e-6
    assert factors.stretch.max() <= 1.15 + 1e-6


def test_fix_changes_the_named_field_only():
    factors = objects3d.canonical([0, 1], seed=0)
    new = objects3d.fix(factors, background="checks", azimuth=[10, 20])
    assert new.background.tolist() == [3, 3]
    assert new.azimuth.tolist() == [10, 20]
    same = set(factors.to_dict()) - {"background", "azimuth"}
    assert all(torch.equal(getattr(new, name), getattr(factors, name)) for name in same)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"pose": 3}, "There is no factor 'pose'.*azimuth"),
        ({"size": 2.0}, "factors.size holds 2: use values from 0.1 to 1.5"),
        ({"background": "wood"}, "Backgrounds are plain, fade, stripes, checks, clouds"),
        ({"position": [0.0, 0.0, 0.0]}, r"factors.position has shape \[3\]"),
        ({"roll": float("nan")}, "factors.roll holds nan"),
    ],
)
def test_a_wrong_value_is_named(values, said):
    with pytest.raises(ValueError, match=said):
        objects3d.fix(objects3d.canonical([0, 1]), **values)


def test_a_mesh_that_does_not_exist_is_named():
    with pytest.raises(ValueError, match=r"factors.mesh holds 1000: use values from 0 to 999"):
        objects3d.canonical([1000])
    with pytest.raises(ValueError, match="1 instances for 2 meshes"):
        objects3d.canonical([1, 2], instance=[0])
