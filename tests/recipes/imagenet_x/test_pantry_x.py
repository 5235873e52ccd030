# SPDX-License-Identifier: Apache-2.0
"""Pantry-X: what is set is marked, nothing else is, and the marks come from the true factors alone."""

import pytest
import torch

from recipes_lib.data import pantry
from recipes_lib.factors import annotations
from recipes_lib.recipes.imagenet_x import pantry_x
from recipes_lib.recipes.imagenet_x.pantry_x import FACTORS

N = 600


def share_of(factors: pantry.Factors) -> dict[str, float]:
    return dict(zip(FACTORS, pantry_x.marks(factors).double().mean(dim=0).tolist(), strict=True))


def test_the_factors_are_imagenet_xs_but_for_those_without_a_twin():
    twins = [name for name in annotations.FACTORS if name not in ("subcategory", "person_blocking")]
    assert list(FACTORS) == twins


def test_an_ordinary_scene_bears_no_mark():
    assert not pantry_x.marks(pantry_x.scenes(N, 3, "train", {})).any()


@pytest.mark.parametrize("name", FACTORS)
def test_a_factor_that_is_set_is_marked_and_no_other_is(name):
    factors = pantry_x.scenes(N, 3, "train", {name: 1.0})
    factors.check()
    found = share_of(factors)
    assert found.pop(name) > 0.98  # a very colourful palette may have every colour near it
    assert set(found.values()) == {0.0}


@pytest.mark.parametrize("name", FACTORS)
def test_a_factor_that_is_set_leaves_the_class_and_most_of_the_rest(name):
    plain, changed = (pantry_x.scenes(N, 3, "train", {name: share}).to_dict() for share in (0.0, 1.0))
    moved = {field for field in plain if not torch.equal(plain[field], changed[field])}
    own = {"background": 3, "color": 2, "object_blocking": 2, "darker": 2}
    assert "label" not in moved
    assert len(moved) == own.get(name, 1)


def test_shares_are_kept_and_independent():
    shares = dict.fromkeys(FACTORS, 0.3)
    shown = pantry_x.marks(pantry_x.scenes(4000, 5, "test", shares)).double()
    found = dict(zip(FACTORS, shown.mean(dim=0).tolist(), strict=True))
    # the later of two that exclude each other takes the place of the earlier one
    expected = dict.fromkeys(FACTORS, 0.3) | {"smaller": 0.3 * 0.7, "darker": 0.3 * 0.7 * 0.7}
    assert found == pytest.approx(expected, abs=0.03)
    alike = torch.corrcoef(shown.T) - torch.eye(len(FACTORS))
    for pair in (("smaller", "larger"), ("darker", "brighter"), ("darker", "style")):
        a, b = map(FACTORS.index, pair)
        alike[a, b] = alike[b, a] = 0
    assert float(alike.abs().max()) < 0.07


def test_a_larger_share_keeps_the_images_of_a_smaller_one():
    few, many = (pantry_x.scenes(N, 3, "train", {"darker": share}).light_strength for share in (0.05, 0.5))
    dark = few < 0.6
    assert 0 < dark.sum() < (many < 0.6).sum()
    assert torch.equal(few[dark], many[dark])


def test_splits_and_seeds_are_draws_of_their_own():
    drawn = [
        pantry_x.scenes(N, seed, split, {"smaller": 0.5}).size
        for seed, split in ((0, "train"), (1, "train"), (0, "test"))
    ]
    assert not any(torch.equal(drawn[i], drawn[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


@pytest.mark.parametrize("shares", [{"darkness": 0.1}, {"darker": 1.5}, {"subcategory": 0.1}])
def test_an_unknown_factor_or_share_is_refused(shares):
    with pytest.raises(ValueError, match="use a share in"):
        pantry_x.scenes(4, 0, "train", shares)


def test_pictures_come_with_annotations_that_a_factor_report_takes():
    images = pantry_x.image_set(24, 0, "test", {"darker": 0.5, "multiple_objects": 0.5})
    assert images.images.shape == (24, 3, 32, 32)
    found = pantry_x.annotations(images)
    assert (found.classes, found.factors, list(found.marks)) == (12, FACTORS, ["multi"])
    dark = found.marks["multi"][:, FACTORS.index("darker")]
    brightness = images.images.double().mean(dim=(1, 2, 3)).numpy()
    assert 0 < dark.sum() < 24
    assert brightness[dark].mean() < 0.8 * brightness[~dark].mean()
