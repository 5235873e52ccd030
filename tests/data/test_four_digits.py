# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from sklearn.datasets import load_digits

from recipes_lib.data import digits
from recipes_lib.data.four_digits import EXPOSURE, FAINT, dataset
from recipes_lib.errors import DataError


def draw(count: int, **changes):
    return dataset(count, **({"size": 32, "seed": 0, "split": "train"} | changes))


def test_an_image_depends_on_seed_split_and_index_alone():
    few = draw(40)
    assert torch.equal(draw(80).images[:40], few.images)
    assert not torch.equal(few.images, draw(40, seed=1).images)
    assert not torch.equal(few.images, draw(40, split="test").images)


def test_the_label_is_that_of_the_brightest_scan():
    images = draw(500)
    factors, target = images.factors, torch.from_numpy(load_digits().target)
    rows = torch.arange(500)
    assert torch.equal(target[factors["scans"][rows, factors["brightest"]]], images.labels)
    assert torch.equal(factors["brightness"].argmax(dim=1), factors["brightest"])
    others = factors["brightness"].clone()
    others[rows, factors["brightest"]] = FAINT[0]
    assert FAINT[0] <= others.min() <= others.max() <= FAINT[1]


def test_the_brightest_quadrant_can_be_seen_and_its_brightness_alone_does_not_tell_it():
    images = draw(2000)
    grey = images.images[:, 0].float()
    quadrants = grey.unfold(1, 16, 16).unfold(2, 16, 16).flatten(3).amax(dim=3).flatten(1)  # [N, 4]
    assert (
        torch.equal(quadrants.argmax(dim=1), images.factors["brightest"])
        or (quadrants.argmax(dim=1) == images.factors["brightest"]).float().mean() > 0.98
    )
    # a threshold on one quadrant's brightness: the best of all is far from perfect, because of the exposure
    bright = quadrants[torch.arange(2000), images.factors["brightest"]]
    faint = quadrants[images.factors["brightness"] < 1]
    best = max(((bright >= level).float().mean() + (faint < level).float().mean()) / 2 for level in range(0, 256, 4))
    assert best < 0.93


def test_no_scan_is_in_both_splits_and_these_are_the_splits_of_the_single_digits():
    train, test = draw(2000).factors["scans"], draw(1000, split="test").factors["scans"]
    assert not set(train.flatten().tolist()) & set(test.flatten().tolist())
    alone = digits.dataset(500, size=8, seed=0, split="test").factors["scan"]
    assert set(test.flatten().tolist()) == set(alone.tolist())


def test_hardly_a_value_is_cut_off():
    images = draw(2000)
    cut = (images.images == 0) | (images.images == 255)
    assert cut.float().mean() < 0.003
    assert EXPOSURE[0] <= images.factors["exposure"].min()
    assert images.factors["exposure"].max() <= EXPOSURE[1]


def test_another_size_is_refused():
    with pytest.raises(DataError, match=r"four_digits has images of 32 pixels, not of 64: --data.image-size 32"):
        draw(4, size=64)
